"""Write frames to a video file or an animated picture, with ffmpeg."""

import contextlib
import itertools
import shutil
import subprocess
import tempfile
from pathlib import Path

import imageio_ffmpeg
from tqdm import tqdm

from files import UserError, first_line, replacing

GIF_FPS = 50  # a GIF counts in hundredths of a second, and browsers slow down frames shorter than two of them

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
        UserError: see `check`; or there is no ffmpeg, or it failed.
    """
    check(path, fps)
    program, ending = ffmpeg(), Path(path).suffix.lower()
    frames = iter(frames)
    first = next(frames)
    height, width = first.shape[:2]
    with replacing(path) as part, tempfile.TemporaryFile() as errors:  # a pipe that nobody reads can fill up
        command = [
            program, "-v", "error", "-y",
            "-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}", "-framerate", str(fps),
            "-i", "pipe:0", "-vf", filters(ending, width * scale, height * scale), *FORMATS[ending],
            f"file:{part}",  # without file: a path with a colon is read as an address
        ]
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors)
        except OSError as error:
            raise UserError(f"{program} cannot be run ({error.strerror}); reinstall ffmpeg") from None
        try:
            taken = itertools.chain([first], itertools.islice(frames, count - 1))
            with contextlib.suppress(BrokenPipeError):  # ffmpeg has ended; `errors` holds the reason
                for frame in tqdm(taken, total=count, desc=Path(path).name, unit="frame"):
                    process.stdin.write(frame.tobytes())
            process.communicate()  # closes its input and waits for its end
        finally:
            process.kill()  # no effect where it has ended
            process.wait()
        if process.returncode:
            errors.seek(0)
            reason = first_line(errors.read().decode(errors="replace"))
            raise UserError(f"{path} was not written: {program} failed with: {reason}")


def filters(ending, width, height):
    """ffmpeg's filters for a file with this `ending`, of width x height pixels."""
    if ending == ".gif":  # a palette of 256 colours made from these frames
        return f"scale={width}:{height}:flags=bicubic,split[a][b];[a]palettegen[p];[b][p]paletteuse"
    if ending in (".mp4", ".webm"):  # 4:2:0, which every player decodes, needs even sizes
        width, height = (round(side / 2) * 2 for side in (width, height))
        return f"scale={width}:{height}:flags=bicubic:out_color_matrix=bt709:out_range=tv,format=yuv420p"
    return f"scale={width}:{height}:flags=bicubic"


def check(path, fps=None):
    """Check, before anything slow, that a video of `fps` frames a second, if given, can be written to `path`.

    Raises:
        UserError: the ending is of no known format, or of one that cannot show so many frames a second; `path` is a
            folder, or its folder is missing or not writable.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path} has no ending of a known format: end it in one of {', '.join(FORMATS)}")
    if path.suffix.lower() == ".gif" and fps and fps > GIF_FPS:
        raise UserError(f"--fps {fps:g}: a .gif shows at most {GIF_FPS} frames a second; take another ending, or fewer")
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the video another name")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give the video another folder") from None


def ffmpeg():
    """The path of the system's ffmpeg, or else of the one in the package imageio-ffmpeg."""
    try:
        return shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        raise UserError("no ffmpeg to write a video with: install it, and see that PATH leads to it") from None
