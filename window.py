"""Show frames in a window on the screen, with OpenCV."""

import functools
import itertools
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import cv2

from files import UserError, first_line, replacing

TITLE = "duralava"
QUIT_KEYS = ord("q"), 27  # 27 is Esc
KEYS = {"space": "pause", "n": "new video", "+ -": "faster, slower", "f": "full screen", "s": "save a picture",
        "h": "these keys", "q": "quit"}
NOTE = 1.5  # s that a note stays on the picture
POLL = 0.05  # s at most between two checks of keys, window and Ctrl-C
LATE = 0.1  # s behind the clock from which on frames are skipped: shorter delays are not visible
MADE = 120  # frames over which the time that making one takes is averaged
LOST = 0.5  # s behind the clock from which on the clock is set back: else playback would rush after a long delay


def show(frames, fps, restart=None, size=512):
    """Show `frames` in a window until it is closed, or q or Esc is pressed; KEYS lists what other keys do.

    The window can be resized; the frames are enlarged to it bicubically, their aspect kept. Frames are timed by the
    clock: when drawing is too slow, up to every other frame is skipped; when making the frames, which may come in
    bursts, is too slow, all are shown, later.

    Args:
        frames: an iterator of uint8 RGB frames [H, W, 3]; the window opens when the first is there.
        fps: frames a second.
        restart: called when the user asks for a new video; without it that key does nothing.
        size: height and width of the window at first, in pixels.

    Raises:
        UserError: see `check_display`.
        KeyboardInterrupt: Ctrl-C; the window is closed.
    """
    check_display()
    frames = iter(frames)
    first = next(frames)
    window = Window(fps, restart, size)
    try:
        due = asked = time.perf_counter()
        drawn, made = False, deque(maxlen=MADE)
        for frame in itertools.chain([first], frames):
            now = time.perf_counter()
            late = now - due
            made.append(now - asked)
            if late > LOST:
                due = now
            # Skipping a frame helps only where making frames is fast enough.
            drawn = not (drawn and late > LATE and max(made[-1], sum(made) / len(made)) < 1 / window.fps)
            window.frame = frame
            if drawn:
                window.draw()
            due += 1 / window.fps
            window.serve(due)
            while window.paused and window.open:
                window.draw()  # a note ends, and the window may have another size
                due = time.perf_counter() + POLL
                window.serve(due)
            if not window.open:
                return
            asked = time.perf_counter()
    finally:
        cv2.destroyAllWindows()


class Window:
    """The window of `show` and its state, which keys change."""

    def __init__(self, fps, restart, size):
        self.fps, self.restart, self.size = fps, restart, size
        self.frame, self.open, self.paused, self.full, self.help = None, True, False, False, False
        self.note, self.noted = "", 0.0  # a text to show, and the time since which it is shown
        # Without WINDOW_GUI_NORMAL Qt adds a toolbar and complains about fonts; `fitted` adds the black bars.
        cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_FREERATIO | cv2.WINDOW_GUI_NORMAL)
        cv2.resizeWindow(TITLE, size, size)

    def draw(self):
        """Draw the frame, enlarged to the window, and the keys or a note on top."""
        picture = fitted(self.frame, *window_size(self.size))
        if self.help:
            picture = with_text(picture, [f"{key:6}{meaning}" for key, meaning in KEYS.items()])
        elif time.perf_counter() - self.noted < NOTE:
            picture = with_text(picture, [self.note])
        cv2.imshow(TITLE, picture)

    def serve(self, due):
        """Handle keys and mouse until the clock says `due`, and at least once."""
        while True:
            # Whole milliseconds, rounded down and at least one: a key ends the wait early, so the clock decides.
            wait = min(POLL, due - time.perf_counter())
            self.press(cv2.waitKey(max(1, int(wait * 1000))))
            self.open = self.open and is_open()
            if not self.open or time.perf_counter() > due - 0.001:
                return

    def press(self, key):
        """Handle a key; `key` is its code, -1 for none."""
        if key in QUIT_KEYS:
            self.open = False
        elif key == ord(" "):
            self.paused = not self.paused
        elif key == ord("n") and self.restart:
            self.restart()
            self.paused = False  # else nothing would be seen of it
            self.tell("a new video")
        elif key in (ord("+"), ord("=")):
            self.change_speed(1.25)
        elif key in (ord("-"), ord("_")):
            self.change_speed(0.8)
        elif key == ord("f"):
            self.full = not self.full
            cv2.setWindowProperty(TITLE, cv2.WND_PROP_FULLSCREEN, cv2.WINDOW_FULLSCREEN if self.full
                                  else cv2.WINDOW_NORMAL)
        elif key == ord("s"):
            self.tell(f"saved {save(self.frame)}")
        elif key == ord("h"):
            self.help = not self.help
            self.draw()

    def change_speed(self, factor):
        """Multiply the frames a second by `factor`, unless that leads out of 1 to 240 or further beyond."""
        if min(self.fps, 1) <= self.fps * factor <= max(self.fps, 240):
            self.fps *= factor
        self.tell(f"{self.fps:.3g} frames a second")

    def tell(self, note):
        """Show `note` for NOTE seconds."""
        self.note, self.noted = note, time.perf_counter()
        self.draw()


def with_text(picture, lines):
    """The BGR picture [H, W, 3] with lines of text in its lower left corner, on a darkened ground."""
    scale = min(max(picture.shape[1] / 900, 0.35), 1.0)
    height = round(32 * scale)
    picture = picture.copy()
    top = max(0, picture.shape[0] - height * len(lines) - height // 2)
    picture[top:] //= 4
    for i, line in enumerate(lines):
        key, meaning = line[:6], line[6:]
        place = top + height * (i + 1)
        for text, left in ((line, 0),) if len(lines) == 1 else ((key, 0), (meaning, round(110 * scale))):
            cv2.putText(picture, text, (height // 2 + left, place), cv2.FONT_HERSHEY_SIMPLEX, scale * 0.8,
                        (220, 220, 220), max(1, round(scale * 1.5)), cv2.LINE_AA)
    return picture


def save(frame):
    """Write the RGB frame to a new PNG in the current folder; returns its name, or why there is none."""
    stem = time.strftime("duralava-%Y%m%d-%H%M%S")
    name = next(name for i in itertools.count(1) if not Path(name := f"{stem}{f'-{i}' if i > 1 else ''}.png").exists())
    try:
        with replacing(name) as part:
            part.write_bytes(cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1])
    except OSError as error:
        return f"nothing: {error.strerror}"
    return name


def is_open():
    """Whether the window is still there; for one that its user has closed OpenCV may return this or raise an error."""
    try:
        return cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) >= 1
    except cv2.error:
        return False


def window_size(default):
    """Width and height of the window's picture in pixels; `default` for both while it has none."""
    _, _, width, height = cv2.getWindowImageRect(TITLE)
    return (width, height) if min(width, height) > 0 else (default, default)


def fitted(frame, width, height):
    """The RGB frame [H, W, 3] as BGR [height, width, 3]: scaled as far as its aspect allows, with black bars."""
    scale = min(width / frame.shape[1], height / frame.shape[0])
    w, h = max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))
    interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    picture = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), (w, h), interpolation=interpolation)
    left, top = (width - w) // 2, (height - h) // 2
    return cv2.copyMakeBorder(picture, top, height - h - top, left, width - w - left, cv2.BORDER_CONSTANT)


@functools.cache
def check_display():
    """Check, before anything slow, that a window can be opened; takes 0.3 s.

    Raises:
        UserError: there is no display, it does not answer, or OpenCV was built without windows.
    """
    instead = "use --mode video to write a video file instead"
    if not cv2.currentUIFramework():
        raise UserError("no display to open a window on: this OpenCV cannot open windows; replace "
                        f"opencv-python-headless by opencv-python, or {instead}")
    if sys.platform != "linux":
        return
    if os.environ.get("DISPLAY"):
        # OpenCV's wheel has no Wayland plugin: on a Wayland desktop Qt would warn, then do the same.
        os.environ.setdefault("QT_QPA_PLATFORM", "xcb")
    # Without a display Qt aborts the process instead of raising an error, so another process tries first.
    attempt = f"import cv2, os; cv2.namedWindow({TITLE!r}, cv2.WINDOW_GUI_NORMAL); os._exit(0)"
    try:
        probe = subprocess.run([sys.executable, "-c", attempt], stdin=subprocess.DEVNULL, capture_output=True,
                               text=True, errors="replace", timeout=30)
    except subprocess.TimeoutExpired:
        raise UserError(f"no display to open a window on: nothing answers at DISPLAY={os.environ.get('DISPLAY')}; "
                        f"{instead}") from None
    if probe.returncode:
        reason = first_line(probe.stderr) if os.environ.get("DISPLAY") else "DISPLAY is not set"
        raise UserError(f"no display to open a window on: {reason}; {instead}")
