"""Write frames to a video file or an animated picture, with ffmpeg."""

import contextlib
import itertools
import math
import re
import subprocess
import tempfile
from pathlib import Path

import imageio_ffmpeg
from tqdm import tqdm

from files import UserError, first_line, printable, replacing

# Frames a second. A GIF counts in hundredths of a second, and browsers show frames of one hundredth or less for ten.
MOST = {".gif": 50, ".png": 90, ".apng": 90, ".webp": 90}
LARGEST = 16_383  # pixels in height and width: what WebP has room for, and H.264 nearly

APNG = "-f", "apng", "-plays", "0", "-pred", "paeth"  # 18% smaller than the default of older versions of ffmpeg
BT709 = "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"
FORMATS = {  # ffmpeg's options by the ending of the file; animated pictures repeat for ever
    ".png": APNG,
    ".apng": APNG,
    ".gif": ("-f", "gif", "-loop", "0"),
    # Below quality 97, changes of up to two grey levels are dropped, and blocks appear in smooth gradients.
    ".webp": ("-f", "webp", "-c:v", "libwebp_anim", "-quality", "97", "-loop", "0"),
    ".mp4": ("-f", "mp4", "-c:v", "libx264", "-crf", "16", "-preset", "slow", "-movflags", "+faststart", *BT709),
    ".webm": ("-f", "webm", "-c:v", "libvpx-vp9", "-crf", "20", "-b:v", "0", "-row-mt", "1", *BT709),
}


def write(frames, path, fps, count, scale=1):
    """Write the first `count` of `frames` to `path`, in the format of its ending, one of FORMATS.

    APNG is lossless; MP4 is H.264, WebM is VP9. The file appears at `path` when it is complete; until then, and when
    anything fails, an older file there stays.

    Args:
        frames: an iterator of uint8 RGB frames [H, W, 3], all of one size; one frame makes a still picture.
        path: the file to write.
        fps: frames a second.
        count: number of frames, at least one.
        scale: enlarge height and width by this factor, bicubically.

    Raises:
        UserError: see `check`; or the frames are too large, there is no ffmpeg, or it failed.
    """
    check(path, fps)
    path, ending = Path(path), Path(path).suffix.lower()
    frames = iter(frames)
    first = next(frames)
    height, width = first.shape[:2]
    if max(width, height) * scale > LARGEST:
        raise UserError(f"a video of {width * scale}x{height * scale} pixels is too large, {LARGEST} are the most; "
                        "lower --scale or --grid")
    taken = tqdm(itertools.chain([first], itertools.islice(frames, count - 1)), total=count, desc=printable(path.name),
                 unit="frame")
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}", "-framerate", str(fps),
           "-i", "pipe:0")
    scaled, options = filters(ending, width * scale, height * scale), FORMATS[ending]
    with replacing(path) as part:
        out = f"file:{part}"  # without file: a path with a colon is read as an address
        if ending != ".gif":
            run(path, count, fps, [*raw, "-vf", scaled, *options, out], taken)
        else:  # in two passes, as in one ffmpeg would keep all frames until it knows their palette of 256 colours
            with tempfile.TemporaryFile(dir=path.parent) as video, tempfile.TemporaryFile(dir=path.parent) as palette:
                video_pipe, palette_pipe = (f"pipe:{file.fileno()}" for file in (video, palette))
                run(path, count, fps, [*raw, "-c:v", "ffvhuff", "-f", "nut", video_pipe, "-vf", f"{scaled},palettegen",
                                  "-c:v", "png", "-f", "image2pipe", palette_pipe], taken, video, palette)
                video.seek(0)
                palette.seek(0)
                run(path, count, fps, ["-f", "nut", "-i", video_pipe, "-f", "png_pipe", "-i", palette_pipe, "-lavfi",
                                  f"[0]{scaled}[a];[a][1]paletteuse", *options, out], (), video, palette)


def run(path, count, fps, arguments, frames, *files):
    """Run ffmpeg on `frames`, for the video at `path`; it inherits the open `files`.

    Raises:
        UserError: it failed, or wrote fewer than `count` frames.
    """
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()  # that of the package, else the system's
    except RuntimeError:
        raise UserError("no ffmpeg to write a video with: install it, and see that PATH leads to it") from None
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as log:  # a pipe that nobody reads can fill up
        try:
            process = subprocess.Popen([program, "-v", "error", "-y", "-progress", "pipe:1", *arguments], stdout=log,
                                       stdin=subprocess.PIPE, stderr=errors, pass_fds=[file.fileno() for file in files])
        except OSError as error:
            raise UserError(f"{program} cannot be run ({error.strerror}); reinstall ffmpeg") from None
        try:
            with contextlib.suppress(BrokenPipeError):  # ffmpeg has ended; `errors` holds the reason
                for frame in frames:
                    process.stdin.write(frame.tobytes())
            process.communicate()  # closes its input and waits for its end
        finally:
            process.kill()  # no effect where it has ended
            process.wait()
        errors.seek(0)
        log.seek(0)
        told = dict(re.findall(rb"^(frame|out_time_us)=\s*(\d+)", log.read(), re.M))  # the last of each
        written = int(told.get(b"frame", 0))
        if "libwebp_anim" in arguments:  # which counts a whole animation as one
            written = max(written, round(int(told.get(b"out_time_us", 0)) / 1e6 * fps))
        if process.returncode:
            reason = first_line(errors.read().decode(errors="replace"))
            raise UserError(f"{path} was not written: {program} failed with: {reason}")
        if written < count:
            raise UserError(f"{path} was not written: {program} ended after {written} of {count} frames; try again")


def filters(ending, width, height):
    """ffmpeg's filters for a file with this `ending`, of width x height pixels, both even where it is a video."""
    colours = ":out_color_matrix=bt709:out_range=tv,format=yuv420p" if ending in (".mp4", ".webm") else ""
    return f"scale={width}:{height}:flags=bicubic{colours}"


def check(path, fps=None):
    """Check, before anything slow, that a video of `fps` frames a second, if given, can be written to `path`.

    Raises:
        UserError: the ending is of no known format, or of one that cannot show so many frames a second; `path` is a
            folder, or its folder is missing or not writable.
    """
    path, ending = Path(path), Path(path).suffix.lower()
    if ending not in FORMATS:
        raise UserError(f"{path} has no ending of a known format: end it in one of {', '.join(FORMATS)}")
    if fps and fps > MOST.get(ending, math.inf):
        raise UserError(f"--fps {fps:g}: a {ending} shows at most {MOST[ending]} frames a second; take another ending, "
                        "or fewer")
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the video another name")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give the video another folder") from None
