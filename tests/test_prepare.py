"""Writing frames: each one of a video or of the simulated lamp, never half, never mixed, and nothing lost unasked."""

import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

import data
import prepare
import simulator
import video_reader
from files import UserError

pytestmark = pytest.mark.usefixtures("at_once")
LAVA_LAMP = Path(__file__).parents[2] / "shared" / "footage" / "lava_lamp.mp4"


def video_of(path, n_frames=40, width=64, height=48, fps=25):
    """A video whose left half is red and whose right half is blue; frame i has brightness 4 i + 60."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, (width, height))
    for i in range(n_frames):
        frame = np.zeros((height, width, 3), np.uint8)
        frame[:, :width // 2, 2] = frame[:, width // 2:, 0] = min(255, 4 * i + 60)
        writer.write(frame)
    writer.release()
    return path


def read(folder):
    return np.stack([np.asarray(Image.open(path)) for path in data.images(folder)])


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


# --- prepare


def test_every_frame_is_written_square_in_rgb_and_noted(tmp_path):
    video, folder = video_of(tmp_path / "lamp.avi"), tmp_path / "new" / "frames"
    noted = prepare.prepare(video, folder, 16)
    assert [path.name for path in data.images(folder)] == [f"image{i + 1:07d}.png" for i in range(40)]
    frames = read(folder).astype(int)
    assert frames.shape == (40, 16, 16, 3)
    brightness = np.arange(40)[:, None, None] * 4 + 60
    assert np.abs(frames[:, :, :7, 0] - brightness).max() < 12 and frames[:, :, :7, 2].max() < 12
    assert np.abs(frames[:, :, 9:, 2] - brightness).max() < 12 and frames[:, :, 9:, 0].max() < 12
    assert noted == data.record(folder) == json.loads((folder / data.RECORD).read_text())
    assert noted["source"] == "lamp.avi" and noted["fps"] == 25
    assert noted["n_frames"] == 40 and noted["complete"] is True
    assert noted["origin"]["kind"] == "video" and noted["origin"]["img_size"] == 16
    assert noted["origin"]["crop"] == [8, 0, 48, 48]  # the square in the middle
    assert set(contents(folder)) == {path.name for path in data.images(folder)} | {data.RECORD}


def test_the_frames_load(tmp_path):
    prepare.prepare(video_of(tmp_path / "lamp.avi"), tmp_path / "frames", 16)
    np.testing.assert_array_equal(np.load(data.load(tmp_path / "frames", 16)), read(tmp_path / "frames"))


@pytest.mark.parametrize("crop, square", [((0, 4, 32, 32), [0, 4, 32, 32]), ((32, 0, 16, 48), [32, 16, 16, 16])])
@pytest.mark.parametrize("img_size", [8, 16, 64])
def test_a_crop_is_taken_and_cut_square_in_its_middle(tmp_path, crop, square, img_size):
    noted = prepare.prepare(video_of(tmp_path / "lamp.avi", 3), tmp_path / "frames", img_size, crop)
    assert noted["origin"]["crop"] == square
    frames = read(tmp_path / "frames")
    assert frames.shape == (3, img_size, img_size, 3)
    left = crop[0] < 32
    # Away from the edge between the colours, which the JPEG frames of the video blur, only one of them is seen.
    inner = frames[:, :, :img_size // 2] if left else frames[:, :, img_size // 2:]
    assert (inner[..., 0 if left else 2] > 40).all() and (inner[..., 2 if left else 0] < 20).all()


@pytest.mark.parametrize("crop", [(0, 0, 65, 10), (60, 0, 10, 10), (0, 40, 10, 10), (-1, 0, 10, 10), (0, 0, 0, 10)])
def test_a_crop_outside_the_picture_is_refused(tmp_path, crop):
    with pytest.raises(UserError, match=r"--crop .* reaches out of the 64x48 pixels"):
        prepare.prepare(video_of(tmp_path / "lamp.avi", 2), tmp_path / "frames", 16, crop)
    assert not (tmp_path / "frames").exists()


def test_shrinking_averages():
    checks = np.indices((16, 16)).sum(0)[..., None].repeat(3, 2).astype(np.uint8) % 2 * 200
    assert np.abs(data.fit(checks, (0, 0, 16, 16), 8).astype(int) - 100).max() <= 1


@pytest.mark.parametrize("content", [b"", b"no video " * 1000, b"\x89PNG\r\n\x1a\n" + bytes(999),
                                     b"\0\0\1\xba" + bytes(99) + b"\0\0\1\xe0" * 99])
def test_what_is_not_a_video_is_refused_without_noise(tmp_path, capfd, content):
    path = tmp_path / "lamp.mp4"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"lamp\.mp4 is not a video"):
        prepare.prepare(path, tmp_path / "frames", 16)
    assert capfd.readouterr().err == ""
    assert not (tmp_path / "frames").exists()


def test_a_video_without_one_whole_frame_is_refused(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "lamp.png")
    content = bytearray((tmp_path / "lamp.png").read_bytes())
    content[200:5000] = bytes(4800)
    (tmp_path / "lamp.png").write_bytes(content)
    with pytest.raises(UserError, match=r"lamp\.png is not a video"):
        prepare.prepare(tmp_path / "lamp.png", tmp_path / "frames", 16)


def test_a_missing_video_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "missing.mp4", tmp_path):
        with pytest.raises(UserError, match="is not there, or is not a file"):
            prepare.prepare(path, tmp_path / "frames", 16)


def test_of_a_truncated_video_what_can_be_read_is_taken(tmp_path):
    video = video_of(tmp_path / "lamp.avi")
    whole = prepare.prepare(video, tmp_path / "whole", 16)
    video.write_bytes(video.read_bytes()[:video.stat().st_size // 2])
    part = prepare.prepare(video, tmp_path / "part", 16)
    assert 5 < part["n_frames"] < whole["n_frames"] and part["complete"]
    np.testing.assert_array_equal(read(tmp_path / "part")[:-1], read(tmp_path / "whole")[:part["n_frames"] - 1])


# --- videos as a player shows them


def encoded(path, frames, codec="ffv1", rate=30, pix_fmt="bgr0", pts=None, **tags):
    """A video of `frames`, uint8 RGB [N, H, W, 3] or VideoFrames, at times `pts` in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2] if isinstance(frames[0], np.ndarray) else (
            frames[0].height, frames[0].width)
        stream.pix_fmt = pix_fmt
        matrix = tags.pop("matrix", None)
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        if matrix:
            stream.set_display_matrix(matrix)
        if pts:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, frame in enumerate(frames):
            if isinstance(frame, np.ndarray):
                frame = av.VideoFrame.from_ndarray(frame)
            frame.pts, frame.time_base = (pts[i], Fraction(1, 1000)) if pts else (i, 1 / Fraction(rate))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def greys(levels, size=64):
    return [np.full((size, size, 3), level, np.uint8) for level in levels]


def levels(folder):
    return read(folder).mean((1, 2, 3))


def test_pixels_that_are_not_square_become_so(tmp_path):
    y, x = np.mgrid[:144, :180]  # PAL at 16:9, a quarter of its size
    circle = np.uint8((((x - 90) * 64 / 45) ** 2 + (y - 72) ** 2 < 50 ** 2) * 255)[..., None].repeat(3, 2)
    video = encoded(tmp_path / "dvd.mp4", [circle] * 2, "libx264", pix_fmt="yuv420p",
                    sample_aspect_ratio=Fraction(64, 45))
    noted = prepare.prepare(video, tmp_path / "frames", 64)
    seen = read(tmp_path / "frames")[0, ..., 0] > 128
    assert noted["origin"]["crop"] == [56, 0, 144, 144]  # of 256x144
    assert abs(int(seen.any(0).sum()) - int(seen.any(1).sum())) <= 1
    half = prepare.prepare(video, tmp_path / "half", 64, (128, 0, 128, 144))  # its right half, in pixels as shown
    assert half["origin"]["crop"] == [128, 8, 128, 128]
    assert (read(tmp_path / "half")[0, 32, :20] > 128).all() and (read(tmp_path / "half")[0, 32, 30:] < 128).all()


@pytest.mark.parametrize("matrix, shown", [
    ((1, 0, 0, 1), lambda picture: picture),
    ((0, 1, -1, 0), lambda picture: np.rot90(picture, -1)),  # a quarter turn clockwise
    ((-1, 0, 0, -1), lambda picture: np.rot90(picture, 2)),
    ((0, -1, 1, 0), lambda picture: np.rot90(picture)),
    ((-1, 0, 0, 1), lambda picture: picture[:, ::-1]),
    ((0, 1, 1, 0), lambda picture: picture.swapaxes(0, 1)),
])
def test_a_video_is_turned_as_it_says(tmp_path, matrix, shown):
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:16, 32:] = 200, 40, 40  # at the top, right
    picture[16:, 32:] = 40, 40, 200
    a, b, c, d = matrix
    video = encoded(tmp_path / "phone.mov", [picture] * 2, "png", pix_fmt="rgb24", matrix=(a, b, 0, c, d, 0, 0, 0, 1))
    prepare.prepare(video, tmp_path / "frames", 16)
    wanted = shown(picture)
    off = (max(wanted.shape) - 32) // 2
    wanted = wanted[:, off:off + 32] if wanted.shape[1] > 32 else wanted[off:off + 32]
    np.testing.assert_allclose(read(tmp_path / "frames")[0], cv2.resize(wanted, (16, 16), interpolation=cv2.INTER_AREA),
                               atol=1)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_video_of_varying_rate_is_sampled_by_time(tmp_path, suffix):
    pts = [*range(0, 1000, 33), *range(1000, 3000, 100)]  # 30 a second, then 10
    frames = greys([10 + ms // 20 for ms in pts])  # brighter by 50 a second
    video = encoded(tmp_path / f"lamp{suffix}", frames, "libx264", pix_fmt="yuv444p", pts=pts)
    for fps in (None, 10):
        folder = tmp_path / f"frames{fps}"
        noted = prepare.prepare(video, folder, 16, fps=fps)
        assert noted["fps"] == fps or noted["fps"] == pytest.approx(30, rel=0.02)
        seconds = np.arange(noted["n_frames"]) / noted["fps"]
        assert seconds[-1] == pytest.approx(2.9, abs=0.11)
        assert np.abs(levels(folder) - 10 - 50 * seconds).max() < 50 * 0.1 + 2  # a frame stays for up to 0.1 s
        assert noted["lost"] == []


@pytest.mark.parametrize("jump", [-1.5, 600])
def test_where_the_clock_of_a_video_jumps_the_frames_go_on(tmp_path, jump):
    times = np.random.default_rng(0).choice([25, 33, 41, 60], 60).cumsum()
    length = times[-1] / 1000
    parts = [encoded(tmp_path / f"{i}.ts", greys(range(40 + 60 * i, 100 + 60 * i), 32), "libx264", pix_fmt="yuv420p",
                     pts=[round(time + 1000 * i * (length + jump)) for time in times]) for i in range(2)]
    video = tmp_path / "both.ts"
    video.write_bytes(b"".join(part.read_bytes() for part in parts))
    noted = prepare.prepare(video, tmp_path / "frames", 16, fps=30.0)
    assert noted["n_frames"] == pytest.approx(2 * 30 * length, abs=4)
    found = levels(tmp_path / "frames")
    assert (np.diff(found) >= -1).all() and np.ptp(found) > 110


def test_what_players_let_pass_in_a_video_is_let_pass(tmp_path):
    whole = encoded(tmp_path / "whole.h264", greys(range(50, 110), 32), "libx264", pix_fmt="yuv420p").read_bytes()
    extra = bytes([0, 0, 0, 1, 6, 5, 200, *range(65, 85), 128])  # user data that end early
    parts = re.split(rb"(?=\x00\x00\x01)", whole)
    (tmp_path / "camera.h264").write_bytes(b"".join(
        extra + part if part[3:] and part[3] & 31 in (1, 5) else part for part in parts))  # before each picture
    assert prepare.prepare(tmp_path / "whole.h264", tmp_path / "frames", 16)["n_frames"] == 60
    noted = prepare.prepare(tmp_path / "camera.h264", tmp_path / "let_pass", 16)
    assert not noted["lost"]
    np.testing.assert_array_equal(read(tmp_path / "let_pass"), read(tmp_path / "frames"))


def test_a_video_of_two_rates_and_few_frames_has_one_of_them(tmp_path):
    first, *others = (Image.fromarray(frame) for frame in greys([50, 100, 150]))
    first.save(tmp_path / "lamp.gif", save_all=True, append_images=others, duration=[100, 200, 100])
    assert prepare.prepare(tmp_path / "lamp.gif", tmp_path / "frames", 16)["fps"] in (5, 10)


@pytest.mark.parametrize("rate", [60, Fraction(30000, 1001), 12])
def test_frames_are_at_the_rate_of_the_video(tmp_path, rate):
    video = encoded(tmp_path / "lamp.mp4", greys(range(50, 130, 2)), "libx264", rate, "yuv444p")
    noted = prepare.prepare(video, tmp_path / "frames", 16)
    assert noted["fps"] == data.record(tmp_path / "frames")["fps"] == pytest.approx(float(rate))
    assert noted["n_frames"] == 40 and (np.diff(levels(tmp_path / "frames")) > 0).all()


def test_fps_takes_frames_at_another_rate(tmp_path):
    video = encoded(tmp_path / "lamp.mp4", greys(range(50, 90)), "libx264", 60, "yuv444p")
    prepare.prepare(video, tmp_path / "all", 16)
    noted = prepare.prepare(video, tmp_path / "half", 16, fps=30.0)
    assert noted["fps"] == 30 and noted["n_frames"] == 20
    np.testing.assert_array_equal(read(tmp_path / "half"), read(tmp_path / "all")[::2])
    with pytest.raises(UserError, match="holds other images"):
        prepare.prepare(video, tmp_path / "half", 16)
    for fps in (1e-9, 1e9):
        with pytest.raises(UserError, match=r"--fps .* is out of bounds"):
            prepare.prepare(video, tmp_path / "none", 16, fps=fps)


def test_of_a_video_shorter_than_a_frame_is_shown_one_is_taken(tmp_path):
    video = encoded(tmp_path / "lamp.mp4", greys([50, 90, 130]), "libx264", 30, "yuv444p")
    assert prepare.prepare(video, tmp_path / "frames", 16, fps=2.0)["n_frames"] == 1
    assert len(levels(tmp_path / "frames")) == 1


def test_a_video_slower_than_frames_may_be_is_refused(tmp_path):
    video = encoded(tmp_path / "lamp.mp4", greys([50, 90, 130]), "libx264", Fraction(1, 120), "yuv444p")
    with pytest.raises(UserError, match=r"lamp\.mp4 shows 0\.00833 frames a second; .*--fps"):
        prepare.prepare(video, tmp_path / "frames", 16)
    assert not (tmp_path / "frames").exists()


@pytest.mark.parametrize("size", [(64, 64), (1280, 720)])
@pytest.mark.parametrize("matrix, full", [(None, False), ("ITU709", False), ("ITU601", False), ("ITU709", True)])
def test_colours_are_as_the_video_says_and_as_television_does_where_it_says_nothing(tmp_path, size, matrix, full):
    picture = np.empty((size[1], size[0], 3), np.uint8)
    picture[:] = 200, 60, 30
    used = matrix or ("ITU709" if size[1] > 576 else "ITU601")
    frame = av.VideoFrame.from_ndarray(picture).reformat(
        format="yuv420p", dst_colorspace=used, dst_color_range="JPEG" if full else "MPEG")
    frame.colorspace = {None: 2, "ITU709": 1, "ITU601": 6}[matrix]
    video = encoded(tmp_path / "lamp.mp4", [frame], "libx264", pix_fmt="yuv420p",
                    colorspace=frame.colorspace, color_range=2 if full else 1, options={"qp": "1"})
    prepare.prepare(video, tmp_path / "frames", 16)
    assert np.abs(read(tmp_path / "frames")[0].astype(int) - [200, 60, 30]).max() <= 4


@pytest.mark.parametrize("transfer, white, grey", [(video_reader.PQ, 0.58, 0.38), (video_reader.HLG, 0.75, 0.38)])
def test_hdr_becomes_bt709_by_tone_mapping(transfer, white, grey):
    # Report ITU-R BT.2408, table 1: these signals are a white page, 203 cd/m2, and a grey card, 26 cd/m2.
    signal = np.float32([0, grey, white, 1])[:, None, None].repeat(3, 2)
    black, card, page, lamp = video_reader.to_bt709(signal, transfer)[:, 0, 0].astype(int)
    assert black <= 1 and lamp == 255
    assert card == pytest.approx(255 * (26 / 203) ** (1 / 2.4), abs=3)  # the dark half of the light is left as it is
    assert 220 < page < 240
    ramp = video_reader.to_bt709(np.linspace(0, 1, 256, dtype=np.float32)[:, None, None].repeat(3, 2), transfer)
    assert (np.diff(ramp[:, 0, 0].astype(int)) >= 0).all()
    # BT.709's red in BT.2020 is a red with some green and blue; in BT.709 it is red alone again.
    red = video_reader.to_bt709(np.float32([[[0.9, 0, 0]]]), transfer)[0, 0]
    assert red[2] > 200 and max(red[:2]) == 0


def test_an_hlg_video_is_brought_to_bt709(tmp_path):
    frames = [np.full((32, 32, 3), int(0.75 * 65535), np.uint16)]
    frame = av.VideoFrame.from_ndarray(frames[0], "rgb48le").reformat(format="yuv420p10le", dst_colorspace=9)
    tags = dict(colorspace=9, color_range=1, color_trc=video_reader.HLG, color_primaries=video_reader.BT2020)
    video = encoded(tmp_path / "phone.mkv", [frame] * 2, "ffv1", pix_fmt="yuv420p10le", **tags)
    prepare.prepare(video, tmp_path / "frames", 16)
    assert np.abs(levels(tmp_path / "frames") - 229).max() < 6


def test_av1_is_read(tmp_path):
    video = encoded(tmp_path / "lamp.mkv", greys(range(50, 150, 10)))
    # Not by PyAV's encoder, SVT-AV1: run as root, it gives this process real-time priority for good.
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", video, "-c:v", "libaom-av1", "-cpu-used", "8", "-pix_fmt",
                    "yuv420p", tmp_path / "lamp.mp4"], check=True, capture_output=True)
    video = tmp_path / "lamp.mp4"
    assert prepare.prepare(video, tmp_path / "frames", 16)["n_frames"] == 10
    assert np.abs(levels(tmp_path / "frames") - np.arange(50, 150, 10)).max() < 4


@pytest.mark.parametrize("name", [b"lamp\xe9.mkv", b"concat:a.mkv|b.mkv", b"-lamp.mkv", b"http:lamp.mkv",
                                  b"lamp [1]\n.mkv", b"%d lamp %s.mkv", b"l" * 251 + b".mkv", b"lamp"])
def test_names_may_hold_anything(tmp_path, monkeypatch, name):
    encoded(tmp_path / "lamp.mkv", greys([9, 200])).rename(tmp_path / os.fsdecode(name))
    monkeypatch.chdir(tmp_path)
    noted = prepare.prepare(os.fsdecode(name), "frames", 16)
    assert noted["n_frames"] == 2 and data.record("frames")["source"] == os.fsdecode(name)


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile lamp.mkv\n",
                                  "#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\nlamp.mkv\n#EXT-X-ENDLIST\n"])
def test_what_only_names_other_files_is_no_video(tmp_path, monkeypatch, text):
    monkeypatch.chdir(encoded(tmp_path / "lamp.mkv", greys([9, 200])).parent)
    Path("list").write_text(text)
    with pytest.raises(UserError, match="list is not a video"):
        prepare.prepare("list", "frames", 16)


@pytest.mark.parametrize("suffix, codec", [(".mp4", "libx264"), (".mkv", "libx264"), (".ts", "mpeg2video")])
def test_behind_a_damaged_middle_reading_goes_on_and_tells_what_is_lost(tmp_path, suffix, codec):
    frames = [*np.random.default_rng(0).integers(0, 60, (150, 32, 32, 3), np.uint8)
              + np.arange(150, dtype=np.uint8)[:, None, None, None]]
    video = encoded(tmp_path / f"lamp{suffix}", frames, codec, pix_fmt="yuv420p", gop_size=15,
                    options=dict(qp="20"))  # x264's rate control is not the same each time
    whole = prepare.prepare(video, tmp_path / "whole", 16)
    assert whole["n_frames"] == 150 and whole["lost"] == []
    content = bytearray(video.read_bytes())
    middle = len(content) // 2
    content[middle:middle + len(content) // 20] = bytes(len(content) // 20)
    video.write_bytes(content)
    noted = prepare.prepare(video, tmp_path / "frames", 16)
    assert 120 <= noted["n_frames"] < 150
    assert noted["n_frames"] + sum(n for _, n in noted["lost"]) == pytest.approx(150, abs=1)
    assert all(1.5 < seconds < 3.5 for seconds, _ in noted["lost"])
    assert abs(levels(tmp_path / "frames")[-1] - levels(tmp_path / "whole")[-1]) < 3  # the end was reached


def test_a_video_that_was_cut_off_says_how_much_is_missing(tmp_path):
    video = video_of(tmp_path / "lamp.avi")
    video.write_bytes(video.read_bytes()[:video.stat().st_size // 2])
    noted = prepare.prepare(video, tmp_path / "frames", 16)
    [[where, lost]] = [place for place in noted["lost"] if place[0] is None]
    assert where is None and noted["n_frames"] + lost == pytest.approx(40, abs=1)


@pytest.mark.parametrize("dropped, lost", [((40, 41, 42, 100), [[1.3, 3], [3.3, 1]]),
                                           (range(2, 110, 4), None)])  # too many to say that the rate is even
def test_frames_that_a_camera_dropped_are_told_once(tmp_path, dropped, lost):
    with av.open(str(tmp_path / "lamp.avi"), "w") as container:
        stream = container.add_stream("mjpeg", 30, width=32, height=32, pix_fmt="yuvj420p")
        for i, grey in enumerate(greys(range(50, 170), 32)):
            frame = av.VideoFrame.from_ndarray(grey, "rgb24")
            frame.pts = i
            for packet in stream.encode(frame):
                if i not in dropped:
                    container.mux(packet)
    record = prepare.prepare(tmp_path / "lamp.avi", tmp_path / "frames", 16)
    assert record["fps"] == 30
    assert lost is None or record["lost"] == lost


def test_a_gif_that_holds_its_last_picture_is_whole(tmp_path):
    first, *others = (Image.fromarray(grey) for grey in greys(range(0, 240, 8), 16))
    first.save(tmp_path / "lamp.gif", save_all=True, append_images=others, duration=[100] * 29 + [1000])
    record = prepare.prepare(tmp_path / "lamp.gif", tmp_path / "frames", 16)
    assert (record["fps"], record["lost"]) == (10, [])


def test_a_disk_that_fails_under_a_video_is_told(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (50, 64, 64, 3), np.uint8)  # which takes room
    video, opened = encoded(tmp_path / "lamp.mkv", noise), []

    class Failing(io.FileIO):
        def readinto(self, buffer):
            if self.tell() > 2**17:
                raise OSError(5, "Input/output error")
            return super().readinto(buffer)

    def open_failing(descriptor, mode):
        opened.append(descriptor)
        return io.BufferedReader(Failing(descriptor)) if len(opened) == 4 else open(descriptor, mode)

    monkeypatch.setattr(video_reader, "open", open_failing, raising=False)
    with pytest.raises(UserError, match=r"lamp\.mkv cannot be read: Input/output error"):
        prepare.prepare(video, tmp_path / "frames", 16)
    assert len(opened) == 4, "while frames are written"


def test_a_folder_named_like_an_image_is_told_before_images_go(tmp_path):
    frames = tmp_path / "frames"
    prepare.simulate(2, frames, 16, 0)
    before = contents(frames)
    (frames / "my.png").mkdir()
    with pytest.raises(UserError, match=r"my\.png is a folder"):
        prepare.simulate(1, frames, 16, 1, overwrite=True)
    (frames / "my.png").rmdir()
    assert contents(frames) == before


def test_of_a_video_trimmed_at_its_end_or_padded_nothing_is_missing(tmp_path):
    video = encoded(tmp_path / "lamp.mp4", greys(range(50, 170, 2), 32), "libx264", pix_fmt="yuv420p")
    content = bytearray(video.read_bytes())
    (tmp_path / "padded.mp4").write_bytes(content + bytes(500_000))
    for box, offset in (b"elst", 12), (b"mvhd", 20), (b"tkhd", 24):  # of the length that is shown: a third
        place = content.find(box) + offset
        content[place:place + 4] = (int.from_bytes(content[place:place + 4]) // 3).to_bytes(4)
    (tmp_path / "trimmed.mp4").write_bytes(content)
    for name, n_frames in ("padded", 60), ("trimmed", 20):
        noted = prepare.prepare(tmp_path / f"{name}.mp4", tmp_path / name, 16)
        assert (noted["n_frames"], noted["lost"]) == (pytest.approx(n_frames, abs=1), [])


# --- two at once


def test_two_do_not_write_to_one_folder(tmp_path):
    script = ("import sys, time, files\nwith files.lock(sys.argv[1], 'writing frames to'):\n"
              "  print(flush=True)\n  time.sleep(60)")
    other = subprocess.Popen([sys.executable, "-c", script, tmp_path], cwd=Path(prepare.__file__).parent,
                             stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(UserError, match="another process is writing frames"):
            prepare.simulate(3, tmp_path, 16, 0)
        assert not data.images(tmp_path)
    finally:
        other.kill()
        other.communicate()
    assert prepare.simulate(3, tmp_path, 16, 0)["complete"]  # the lock went with its process


def test_what_a_killed_process_left_is_swept(tmp_path):
    for name in (".image.part", ".frames.json.123.part"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".mine.part").touch()
    prepare.simulate(3, tmp_path, 16, 0)
    assert [path.name for path in tmp_path.glob(".*")] == [".mine.part"]


# --- other frames in the folder


def test_the_same_source_again_changes_nothing(tmp_path, monkeypatch):
    video = video_of(tmp_path / "lamp.avi")
    noted = prepare.prepare(video, tmp_path / "frames", 16)
    monkeypatch.setattr(prepare, "write_image", None)
    assert prepare.prepare(video, tmp_path / "frames", 16) == noted
    assert prepare.prepare(video.rename(tmp_path / "renamed.avi"), tmp_path / "frames", 16) == noted


def test_frames_taken_away_or_added_are_left_so_unless_overwriting(tmp_path):
    video, folder = video_of(tmp_path / "lamp.avi"), tmp_path / "frames"
    prepare.prepare(video, folder, 16)
    whole = contents(folder)
    data.images(folder)[7].unlink()
    for n_frames in 39, 41:
        before = contents(folder)
        with pytest.raises(UserError, match=rf"holds {n_frames} images in place of the 40 of lamp\.avi.*--overwrite"):
            prepare.prepare(video, folder, 16)
        assert contents(folder) == before
        for number in 8, 999:
            shutil.copy(data.images(folder)[0], folder / f"image{number:07d}.png")
    prepare.prepare(video, folder, 16, overwrite=True)
    assert contents(folder) == whole
    for path in data.images(folder):
        path.unlink()
    prepare.prepare(video, folder, 16)
    assert contents(folder) == whole


@pytest.mark.parametrize("other", ["video", "size", "crop", "simulation"])
def test_another_source_is_refused_unless_overwriting(tmp_path, other):
    video, folder = video_of(tmp_path / "lamp.avi"), tmp_path / "frames"
    prepare.prepare(video, folder, 16)
    before = contents(folder)

    def write(folder, **options):
        if other == "simulation":
            return prepare.simulate(5, folder, 16, 0, **options)
        source = video_of(tmp_path / "lamp.avi", 30) if other == "video" else video
        return prepare.prepare(source, folder, 8 if other == "size" else 16, (0, 0, 9, 9) if other == "crop" else None,
                               **options)

    with pytest.raises(UserError, match=r"holds other images of lamp\.avi; .*--overwrite"):
        write(folder)
    assert contents(folder) == before
    write(folder, overwrite=True)
    write(tmp_path / "apart")
    assert contents(folder) == contents(tmp_path / "apart")


def test_a_folder_whose_images_were_removed_is_empty(tmp_path):
    prepare.simulate(3, tmp_path, 16, 0)
    for path in data.images(tmp_path):
        path.unlink()
    prepare.simulate(2, tmp_path, 16, 1)
    assert len(data.images(tmp_path)) == data.record(tmp_path)["n_frames"] == 2


@pytest.mark.parametrize("name", ["image0000001.png", "holiday.JPG"])
def test_images_of_the_user_are_refused_unless_overwriting(tmp_path, name):
    folder = tmp_path / "frames"
    folder.mkdir()
    Image.new("RGB", (9, 9)).save(folder / name)
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    with pytest.raises(UserError, match=r"holds other images; .*--overwrite"):
        prepare.simulate(3, folder, 16, 0)
    assert contents(folder) == before
    prepare.simulate(3, folder, 16, 0, overwrite=True)
    assert set(contents(folder)) == {"notes.txt", data.RECORD, *(f"image000000{i}.png" for i in (1, 2, 3))}


def test_a_video_among_the_images_to_remove_is_refused(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    first, *others = (Image.fromarray(frame) for frame in greys([50, 100, 150]))
    first.save(folder / "lamp.webp", save_all=True, append_images=others)
    before = contents(folder)
    with pytest.raises(UserError, match=r"lamp\.webp lies among the images of .*frames"):
        prepare.prepare(folder / "lamp.webp", folder, 16, overwrite=True)
    assert contents(folder) == before


def test_a_video_whose_colours_cannot_be_converted_is_refused(tmp_path):
    folder = tmp_path / "frames"
    prepare.simulate(3, folder, 16, 0)
    before = contents(folder)
    video = tmp_path / "lamp.mp4"
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i", "testsrc=duration=1",
                    "-c:v", "libx264", "-pix_fmt", "yuv420p", "-bsf:v", "h264_metadata=matrix_coefficients=8", video],
                   check=True)
    with pytest.raises(UserError, match=r"lamp\.mp4 .*convert"):
        prepare.prepare(video, folder, 16, overwrite=True)
    assert contents(folder) == before


def test_an_image_of_the_user_among_our_own_is_refused(tmp_path):
    folder = tmp_path / "frames"
    prepare.simulate(3, folder, 16, 0)
    Image.new("RGB", (9, 9)).save(folder / "extra.png")
    with pytest.raises(UserError, match="holds other images"):
        prepare.simulate(3, folder, 16, 0)
    assert (folder / "extra.png").exists()


def test_a_record_that_is_not_ours_is_kept(tmp_path):
    (tmp_path / data.RECORD).write_text("[1, 2]")
    with pytest.raises(UserError, match="holds other images"):
        prepare.simulate(3, tmp_path, 16, 0)
    assert (tmp_path / data.RECORD).read_text() == "[1, 2]"


def test_other_files_in_the_folder_do_not_matter(tmp_path):
    (tmp_path / ".gitkeep").touch()
    (tmp_path / "README.md").write_text("frames go here")
    prepare.simulate(3, tmp_path, 16, 0)
    assert len(data.images(tmp_path)) == 3 and (tmp_path / "README.md").exists()


# --- interruption


def test_a_killed_run_leaves_whole_images_and_is_made_good_by_the_next(tmp_path):
    video, folder = video_of(tmp_path / "lamp.avi", 100), tmp_path / "frames"
    script = """
import os, pathlib, signal, sys, prepare
write = pathlib.Path.write_bytes
def killed(path, data):
    if os.path.exists(f"{path.parent}/image0000050.png"):
        write(path, data[:100])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, data)
pathlib.Path.write_bytes = killed
prepare.prepare(sys.argv[1], sys.argv[2], 64)
"""
    done = subprocess.run([sys.executable, "-c", script, video, folder], cwd=Path(prepare.__file__).parent,
                          stderr=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL
    assert read(folder).shape == (50, 64, 64, 3)  # all of them are whole
    with pytest.raises(UserError, match="only part"):
        data.load(folder, 64)
    prepare.prepare(video, folder, 64)
    prepare.prepare(video, tmp_path / "unbroken", 64)
    assert contents(folder) == contents(tmp_path / "unbroken")


def test_an_interruption_while_overwriting_leaves_no_mixture_that_passes(tmp_path, monkeypatch):
    folder = tmp_path / "frames"
    prepare.simulate(5, folder, 16, 0)

    remove = Path.unlink

    def interrupted(path, **options):
        if path.name == "image0000003.png":
            raise KeyboardInterrupt
        remove(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare.simulate(3, folder, 16, 1, overwrite=True)
    assert len(data.images(folder)) == 3
    with pytest.raises(UserError, match="only part"):
        data.load(folder, 16)
    prepare.simulate(3, folder, 16, 1)
    prepare.simulate(3, tmp_path / "apart", 16, 1)
    assert contents(folder) == contents(tmp_path / "apart")


# --- simulate


def test_the_simulated_lamp_is_written_as_it_is(tmp_path):
    noted = prepare.simulate(12, tmp_path, 16, seed=3)
    np.testing.assert_array_equal(read(tmp_path), list(itertools.islice(simulator.frames(16, 3), 12)))
    assert noted["fps"] == 30 and noted["n_frames"] == 12 and noted["complete"]
    assert noted["origin"] == dict(kind="simulation", seed=3, n_frames=12, img_size=16)


# --- a real lamp


@pytest.mark.skipif(not LAVA_LAMP.exists(), reason=f"needs {LAVA_LAMP.name}, which is not part of the project")
def test_a_real_lamp(tmp_path):
    noted = prepare.prepare(LAVA_LAMP, tmp_path / "frames", 64, (60, 5, 280, 280))
    assert noted["n_frames"] == 909 and noted["fps"] == pytest.approx(29.97, abs=0.01)
    frames = np.load(data.load(tmp_path / "frames", 64))
    assert frames.shape == (909, 64, 64, 3)
    red, _, blue = frames[:, 16:48, 16:48].mean((0, 1, 2))
    assert abs(red - blue) > 20  # a coloured lamp ...
    assert frames.std(0).mean() > 2  # ... that moves
