"""A video file -> its frames as a player shows them: turned as it says, in square pixels, in BT.709, each at its time.

It is read by PyAV, with the libraries of ffmpeg.
"""

import os
from collections import Counter
from contextlib import contextmanager
from itertools import islice

import av
import numpy as np

from data import fit, turned
from files import UserError

STRICT = dict(err_detect="explode")  # ffmpeg's option for the decoder: no frame rather than half a one made up
TRIED = 50  # frames by which it is found out whether STRICT suits a video
UNTAGGED, PQ, HLG, BT2020 = 2, 16, 18, 9  # of a frame's matrix, transfer and primaries (Rec. ITU-T H.273)
WHITE, PEAK = 203.0, 1000.0  # cd/m2 of a white page and of the brightest light of an HDR video (Report ITU-R BT.2408)
TO_BT709 = np.float32([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])  # BT.2407


class VideoReader:
    """A video file, read through once for what it says of itself; UserError if it is none, or cannot be read.

    rate: frames a second; of one whose rate varies the usual one. steady: whether they come at that rate throughout.
    seconds: how long it lasts. size: width and height as shown, in square pixels; known once a frame was read.
    lost: as in `data.record`; known once all were read.
    """

    def __init__(self, path):
        self.path, self.size, self.lost = path, None, []
        self.options = {}
        lenient, self.options = self.whole_frames(), STRICT
        if self.whole_frames() < lenient / 2:  # of an intact video with faults that players let pass
            self.options = {}
        self.n_packets, times, end, place = 0, [], 0.0, 0
        with self.opened() as (container, stream):
            for packet in packets(container):
                time = None if packet.pts is None else float(packet.pts * packet.time_base)
                end = max(end, (time or 0.0) + float((packet.duration or 0) * packet.time_base))
                place = max(place, (packet.pos or 0) + packet.size)
                if packet.stream == stream and packet.size:
                    self.n_packets += 1
                    times += [time] * (time is not None and not packet.is_discard)
            self.rate, self.steady = frame_rate(times, stream)
            self.timed = bool(times)  # whether frames carry times
            self.seconds = np.ptp(times) + 1 / self.rate if times else self.n_packets / self.rate
            # Frames that were announced and not found: the header counts more of them than there are packets, unless
            # it counts fields or ticks, or gives a length over 5% longer; or it does not count, and over half of the
            # file lies behind the last packet.
            steps = float(stream.average_rate or self.rate) / self.rate
            told = stream.frames / (steps if steps > 1.1 else 1) if self.steady else 0
            if stream.duration and "mp4" in container.format.name:  # whose edit lists cut frames off
                told = min(told, float(stream.duration * stream.time_base) * self.rate)
            length = ((container.start_time or 0) + (container.duration or 0)) / av.time_base
            longer, left = length / end if end else 1, os.path.getsize(path) - place
            behind = left > max(place, 2**16) and place and not told
            self.missing = max(0, round(told) - self.n_packets,
                               round(self.n_packets * (longer - 1)) if longer > 1.05 else 0,
                               round(self.n_packets * left / place) if behind else 0)

    @contextmanager
    def opened(self):
        """The container and its video stream."""
        # Not by its name, which may look like a protocol's and need not be UTF-8; and no file that it names itself.
        options = dict(buffer_size=2**18, metadata_errors="replace", container_options=dict(protocol_whitelist="none"))
        try:
            with open(os.open(self.path, os.O_RDONLY), "rb") as file, av.open(file, **options) as container:
                stream = container.streams.best("video")
                if stream is None or stream.codec_context is None:
                    raise UserError(f"{self.path} is not a video, as it holds no pictures; name one")
                stream.thread_type = "AUTO"
                stream.codec_context.options = self.options
                yield container, stream
        except (av.FFmpegError, LookupError, ArithmeticError, ValueError, MemoryError) as error:  # PyAV raises them all
            reason = getattr(error, "strerror", None) or "it is damaged, or of a kind without pictures"
            raise UserError(f"{self.path} is not a video that ffmpeg can read ({reason}); name one") from None
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}; check its disk, or copy it to another one"
                            ) from None

    def whole_frames(self):
        """How many of the first TRIED frames are whole."""
        with self.opened() as (container, stream):
            return sum(frame is not None for frame in islice(decoded(container, stream), TRIED))

    def timed_frames(self):
        """Yield (seconds since the first, frame) for every whole frame, in the order in which they are shown."""
        times, damaged, now = [], Counter(), 0.0  # damaged: by how many whole frames came before
        with self.opened() as (container, stream):
            for frame in decoded(container, stream):
                if frame is None:
                    damaged[len(times)] += 1
                    continue
                if not times:
                    self.note_orientation(frame, stream)
                    start = frame.time or 0.0
                if self.steady or frame.time is None:
                    now = len(times) / self.rate
                else:
                    # A step of over a second back, or over a minute ahead, is none of the video but of its clock.
                    if not -1 <= frame.time - start - now <= 60:
                        start = frame.time - now - 1 / self.rate
                    now = max(now, frame.time - start)
                times.append(now if frame.time is None else frame.time)
                yield now, frame
        # Where the times of frames are regular and in order, those that are missing show, also without an error.
        if self.steady and self.timed and len(times) > 1 and np.mean(np.diff(times) < 0) < 0.01:
            missing = np.rint(np.diff(np.maximum.accumulate(times)) * self.rate).astype(int) - 1
            damaged = {0: damaged[0]} | dict(enumerate(missing.tolist(), 1)) | {len(times): damaged[len(times)]}
        self.lost += [[round(times[max(n - 1, 0)] - times[0], 2), lost]
                      for n, lost in damaged.items() if times and lost > 0]
        # Some of the missing frames are told of already, where the times of others leave a gap.
        more = self.missing + min(0, self.n_packets - len(times) - sum(lost for _, lost in self.lost))
        self.lost += [[None, more]] * (more > 0)

    def note_orientation(self, frame, stream):
        """Note how pictures are shown that are like this frame."""
        try:
            turn = frame.side_data.get("DISPLAYMATRIX")
            right_x, right_y, _, down_x, down_y = np.frombuffer(turn, np.int32)[:5] if turn else (1, 0, 0, 0, 1)
        except ValueError:  # beside it is something that PyAV has no name for, such as the EXIF of a TIFF
            down_x, right_x = np.sin(np.radians(frame.rotation)), np.cos(np.radians(frame.rotation))
            right_y, down_y = -down_x, right_x
        across = abs(right_y) > abs(right_x)  # it lies on its side
        self.turn = across, (down_x if across else right_x) < 0, (right_y if across else down_y) < 0
        aspect = float(stream.sample_aspect_ratio or 1)
        self.stored = frame.width, frame.height
        shown = round(frame.width * max(1, aspect)), round(frame.height * max(1, 1 / aspect))
        self.size = shown[::-1] if across else shown

    def picture(self, frame, crop, img_size):
        """The part `crop` of a frame as it is shown, uint8 BGR [img_size, img_size, 3].

        Raises:
            UserError: its colours cannot be converted.
        """
        wide = frame.color_primaries == BT2020 or frame.color_trc in (PQ, HLG)
        # Of one that does not say how its colours are made, as of a television picture of its size.
        hd = frame.width >= 1280 or frame.height > 576
        matrix = ("ITU709" if hd else "ITU601") if frame.colorspace == UNTAGGED else None
        try:
            image = frame.reformat(*self.stored, "rgb48le" if wide else "bgr24", src_colorspace=matrix).to_ndarray()
        except (av.FFmpegError, ValueError) as error:
            raise UserError(f"{self.path} has colours that ffmpeg does not convert to RGB ({error}); convert it "
                            "to a usual format first") from None
        if frame.interlaced_frame:
            image = image[::2]  # the two halves of it were taken at two times
        image = turned(image, *self.turn)
        ends = np.multiply([crop[:2], np.add(crop[:2], crop[2:])], np.divide(image.shape[1::-1], self.size))
        (x, y), (right, bottom) = np.rint(ends).astype(int).tolist()
        image = fit(image, (x, y, max(1, right - x), max(1, bottom - y)), img_size)
        return to_bt709(image / np.float32(65535), frame.color_trc) if wide else image


def decoded(container, stream):
    """The frames of a stream in the order in which they are shown, None for a damaged one."""
    for packet in packets(container, stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            frames = [None]
        yield from (None if frame is None or frame.is_corrupt else frame for frame in frames)


def packets(container, *streams):
    """The packets of the streams, or of all, those after a damaged part too."""
    for _ in range(1000):
        try:
            yield from container.demux(*streams)
            return
        except av.FFmpegError:  # the next call goes on behind it
            pass


def frame_rate(times, stream):
    """Frames a second, and whether they come at that rate throughout but for a hundredth, given their times."""
    told = min(float(stream.guessed_rate or stream.average_rate or 25), 1000.0)
    steps = np.diff(np.sort(times))
    steps = steps[steps > 0]
    if not len(steps):
        return told, True
    usual = np.sort(steps)[len(steps) // 2]
    off = np.abs(steps - usual)
    even = off <= 0.05 * usual + 1.01 * float(stream.time_base)  # to which times are rounded
    # Where they are rounded to whole frames, a step of two frames is even too, and one of them is missing.
    rate = min(1 / steps[even & (off <= 0.55 * usual)].mean(), 1000.0)
    return told if abs(told / rate - 1) < 0.02 else rate, np.mean(even) >= 0.99


def sample(timed, rate, duration):
    """Of `timed` frames, (seconds, frame), those shown `rate` times a second; the last one is shown for `duration`.

    At least one, however short all of it is.
    """
    shown, now, n = None, 0.0, 0
    for now, frame in timed:
        while shown is not None and (n + 0.499) / rate < now:
            yield shown
            n += 1
        shown = frame
    while shown is not None and (n == 0 or (n + 0.499) / rate < now + duration):
        yield shown
        n += 1


def to_bt709(signal, transfer):
    """The BT.2020 `signal`, RGB float [H, W, 3] in 0..1, as BT.709, uint8 BGR.

    PQ and HLG become light as Rec. ITU-R BT.2100 says, HLG on a screen of PEAK. What is brighter than half of WHITE is
    then brought below it along Reinhard's curve, by the brightest of red, green and blue, so that hues stay.
    """
    if transfer == PQ:
        root = signal ** (1 / 78.84375)
        light = 10000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
    elif transfer == HLG:
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        light = PEAK * scene * (scene @ np.float32([0.2627, 0.6780, 0.0593]))[..., None] ** 0.2
    else:
        light = WHITE * signal**2.4
    if transfer in (PQ, HLG):
        most = np.maximum(light.max(-1, keepdims=True), 1e-6)
        over, top = np.minimum(most, PEAK) / (WHITE / 2) - 1, PEAK / (WHITE / 2) - 1
        light = np.where(over > 0, light / most * (WHITE / 2) * (1 + over / (1 + over * (1 - 1 / top))), light)
    image = np.clip(light / WHITE @ TO_BT709.T, 0, 1) ** (1 / 2.4)
    return np.rint(255 * image[..., ::-1]).astype(np.uint8)
