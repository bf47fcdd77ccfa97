"""Where the frames go: a window on the screen, or a film in a file.

Both take an iterator of uint8 RGB frames [H, W, 3], all of one size, and neither knows what makes them. Each has a
check that is quick and needs no frames, so that a missing display or folder is told before a slow start.
"""

import contextlib
import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import imageio_ffmpeg
from tqdm import tqdm

from files import UserError, replacing

TITLE = "duralava"
QUIT_KEYS = ord("q"), 27  # 27 is Esc
POLL = 0.05  # s at most between two looks at keys, window and Ctrl-C
LATE = 0.1  # s behind the clock from which on drawing is skipped: less is not seen, and frames may come in bursts
LOST = 0.5  # s behind the clock from which on the delay is forgiven: else a long pause would be followed by a rush

FILMS = ".png", ".apng"


def show(frames, fps, size=512):
    """Show `frames` in a window until it is closed, or q or Esc is pressed.

    The window can be resized; the frames are smoothly enlarged to it, their aspect kept. The clock sets the pace: when
    drawing is too slow for it, up to every other frame is left out; when making the frames is too slow, all are shown.

    Args:
        frames: an iterator of uint8 RGB frames [H, W, 3]; the window opens when the first is there.
        fps: frames a second.
        size: height and width of the window at first, in pixels.

    Raises:
        UserError: see `check_display`.
        KeyboardInterrupt: Ctrl-C; the window is closed.
    """
    check_display()
    frames, period = iter(frames), 1 / fps
    first = next(frames)
    try:
        # Without WINDOW_GUI_NORMAL Qt adds a toolbar and complains of fonts; the letterbox is drawn by fitted().
        cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_FREERATIO | cv2.WINDOW_GUI_NORMAL)
        cv2.resizeWindow(TITLE, size, size)
        due = asked = time.perf_counter()
        drawn = False
        for frame in itertools.chain([first], frames):
            now = time.perf_counter()
            late, making = now - due, now - asked
            if late > LOST:
                due = now
            # Not drawing helps only where making the frame alone keeps the pace.
            drawn = not (drawn and late > LATE and making < period)
            if drawn:
                cv2.imshow(TITLE, fitted(frame, *window_size(size)))
            due += period
            if quit_before(due):
                return
            asked = time.perf_counter()
    finally:
        cv2.destroyAllWindows()


def quit_before(due):
    """Serve the window until the clock says `due`, and at least once; say whether its user has quit."""
    while True:
        # Whole milliseconds, rounded down and at least one: a key ends the wait early, so the clock decides.
        wait = min(POLL, due - time.perf_counter())
        key = cv2.waitKey(max(1, int(wait * 1000)))
        if key in QUIT_KEYS or not is_open():
            return True
        if time.perf_counter() > due - 0.001:
            return False


def is_open():
    """Whether the window is still there; of one that its user has closed OpenCV may say so, or raise an error."""
    try:
        return cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) >= 1
    except cv2.error:
        return False


def window_size(default):
    """Width and height of the window's picture in pixels; `default` for both while it has none."""
    _, _, width, height = cv2.getWindowImageRect(TITLE)
    return (width, height) if min(width, height) > 0 else (default, default)


def fitted(frame, width, height):
    """The RGB frame [H, W, 3] as BGR [height, width, 3]: scaled as far as its aspect allows, on black."""
    scale = min(width / frame.shape[1], height / frame.shape[0])
    w, h = max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))
    smooth = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    picture = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), (w, h), interpolation=smooth)
    left, top = (width - w) // 2, (height - h) // 2
    return cv2.copyMakeBorder(picture, top, height - h - top, left, width - w - left, cv2.BORDER_CONSTANT)


@functools.cache
def check_display():
    """See that a window can be opened, in 0.3 s.

    Raises:
        UserError: there is no display, it does not answer, or OpenCV was built without windows.
    """
    film = "use --mode video to write a film instead"
    if not cv2.currentUIFramework():
        raise UserError("no display to open a window on: this OpenCV cannot open windows; replace "
                        f"opencv-python-headless by opencv-python, or {film}")
    if sys.platform != "linux":
        return
    if os.environ.get("DISPLAY"):
        # OpenCV's wheel has no Wayland plugin: on a Wayland desktop Qt would grumble, then do just this.
        os.environ.setdefault("QT_QPA_PLATFORM", "xcb")
    # Qt does not raise an error without a display, it aborts the process: so let another process try.
    attempt = f"import cv2, os; cv2.namedWindow({TITLE!r}, cv2.WINDOW_GUI_NORMAL); os._exit(0)"
    try:
        probe = subprocess.run([sys.executable, "-c", attempt], stdin=subprocess.DEVNULL, capture_output=True,
                               text=True, errors="replace", timeout=30)
    except subprocess.TimeoutExpired:
        raise UserError(f"no display to open a window on: nothing answers at DISPLAY={os.environ.get('DISPLAY')}; "
                        f"{film}") from None
    if probe.returncode:
        reason = first_line(probe.stderr) if os.environ.get("DISPLAY") else "DISPLAY is not set"
        raise UserError(f"no display to open a window on: {reason}; {film}")


def film(frames, path, fps, seconds):
    """Write `seconds` of `frames` to an animated PNG that plays for ever, without loss.

    30 s of 64x64 pixels at 30 frames a second take 3.5 MB, of a simulated lamp as of a real one, and 1.7 s on two cores
    beside the making of the frames. The file appears at `path` when it is whole; until then, and when anything fails,
    one that was there stays.

    Args:
        frames: an iterator of uint8 RGB frames [H, W, 3]; `round(seconds * fps)` are taken, at least one (which
            makes a still picture).
        path: the file to write, ending in .png or .apng.
        fps: frames a second.
        seconds: length of the film.

    Raises:
        UserError: see `check_film`; or there is no ffmpeg, or it failed.
    """
    check_film(path)
    program, count = ffmpeg(), max(1, round(seconds * fps))
    frames = iter(frames)
    first = next(frames)
    height, width = first.shape[:2]
    with replacing(path) as part, tempfile.TemporaryFile() as errors:  # a file, as a pipe nobody reads can fill up
        command = [
            program, "-v", "error", "-y",
            "-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}", "-framerate", str(fps),
            "-i", "pipe:0",
            "-f", "apng", "-plays", "0",
            "-pred", "paeth",  # 18% smaller than none, the default of old ffmpegs; mixed or level 9 gain 1% more
            f"file:{part}",  # or a path with a colon would be taken for an address
        ]
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors)
        except OSError as error:
            raise UserError(f"{program} cannot be run ({error.strerror}); reinstall ffmpeg") from None
        try:
            taken = itertools.chain([first], itertools.islice(frames, count - 1))
            with contextlib.suppress(BrokenPipeError):  # ffmpeg has ended, and `errors` holds why
                for frame in tqdm(taken, total=count, desc=Path(path).name, unit="frame"):
                    process.stdin.write(frame.tobytes())
            process.communicate()  # ends the input and waits for the rest of the film
        finally:
            process.kill()  # does nothing to one that has ended
            process.wait()
        if process.returncode:
            errors.seek(0)
            reason = first_line(errors.read().decode(errors="replace"))
            raise UserError(f"{path} was not written: {program} failed with: {reason}")


def check_film(path):
    """See that a film can be written to `path`.

    Raises:
        UserError: it has the ending of no known format, is a folder, or its folder is missing or not writable.
    """
    path = Path(path)
    if path.suffix.lower() not in FILMS:
        raise UserError(f"{path} has no ending of a known format: end it in {' or '.join(FILMS)}")
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the film another name")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give the film another folder") from None


def ffmpeg():
    """The path of the system's ffmpeg, or else of the one that comes with imageio-ffmpeg."""
    try:
        return shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        raise UserError("no ffmpeg to write a film with: install it, and see that PATH leads to it") from None


def first_line(text):
    """The first line a program wrote, where its cause is, without the part of the program it names before."""
    lines = [line for line in text.splitlines() if line.strip()] or ["no message"]
    return re.sub(r"^(\[[^]]*\] *|qt\.\S+: )+", "", lines[0]).strip().rstrip(".")
