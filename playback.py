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
KEYS = {"space": "pause", "n": "new lamp", "+ -": "faster, slower", "f": "full screen", "s": "save a picture",
        "h": "these keys", "q": "quit"}
NOTE = 1.5  # s that a note stays on the picture
POLL = 0.05  # s at most between two looks at keys, window and Ctrl-C
LATE = 0.1  # s behind the clock from which on drawing is skipped: less is not seen, and frames may come in bursts
GIF_FPS = 50  # a GIF counts in hundredths of a second, and browsers slow down what is quicker than two of them
LOST = 0.5  # s behind the clock from which on the delay is forgiven: else a long pause would be followed by a rush

APNG = "-f", "apng", "-plays", "0", "-pred", "paeth"  # 18% smaller than the default of old ffmpegs
BT709 = "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"
FILMS = {  # what ffmpeg is to write, by the film's ending; what can play for ever of itself does
    ".png": APNG,
    ".apng": APNG,
    ".gif": ("-f", "gif", "-loop", "0"),
    # Below 97 what changes by no more than two grey levels is left as it was, and squares gather in what glows.
    ".webp": ("-f", "webp", "-c:v", "libwebp_anim", "-quality", "97", "-loop", "0"),
    ".mp4": ("-f", "mp4", "-c:v", "libx264", "-crf", "16", "-preset", "slow", "-movflags", "+faststart", *BT709),
    ".webm": ("-f", "webm", "-c:v", "libvpx-vp9", "-crf", "20", "-b:v", "0", "-row-mt", "1", *BT709),
}


def show(frames, fps, renew=None, size=512):
    """Show `frames` in a window until it is closed, or q or Esc is pressed; KEYS says what other keys do.

    The window can be resized; the frames are smoothly enlarged to it, their aspect kept. The clock sets the pace: when
    drawing is too slow for it, up to every other frame is left out; when making the frames is too slow, all are shown.

    Args:
        frames: an iterator of uint8 RGB frames [H, W, 3]; the window opens when the first is there.
        fps: frames a second.
        renew: called where the user asks for a new lamp; without it that key does nothing.
        size: height and width of the window at first, in pixels.

    Raises:
        UserError: see `check_display`.
        KeyboardInterrupt: Ctrl-C; the window is closed.
    """
    check_display()
    frames = iter(frames)
    first = next(frames)
    window = Window(fps, renew, size)
    try:
        due = asked = time.perf_counter()
        drawn = False
        for frame in itertools.chain([first], frames):
            now = time.perf_counter()
            late, making = now - due, now - asked
            if late > LOST:
                due = now
            # Not drawing helps only where making the frame alone keeps the pace.
            drawn = not (drawn and late > LATE and making < window.period)
            window.frame = frame
            if drawn:
                window.draw()
            due += window.period
            window.serve(due)
            while window.paused and window.open:
                due = time.perf_counter() + POLL
                window.serve(due)
            if not window.open:
                return
            asked = time.perf_counter()
    finally:
        cv2.destroyAllWindows()


class Window:
    """The window of `show`, and what its keys have made of it."""

    def __init__(self, fps, renew, size):
        self.fps, self.renew, self.size = fps, renew, size
        self.frame, self.open, self.paused, self.full, self.help = None, True, False, False, False
        self.note, self.noted = "", 0.0  # what to tell, and when it was told
        # Without WINDOW_GUI_NORMAL Qt adds a toolbar and complains of fonts; the letterbox is drawn by fitted().
        cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_FREERATIO | cv2.WINDOW_GUI_NORMAL)
        cv2.resizeWindow(TITLE, size, size)

    @property
    def period(self):
        """Seconds from frame to frame."""
        return 1 / self.fps

    def draw(self):
        """Draw the frame, enlarged to the window, and over it what there is to tell."""
        picture = fitted(self.frame, *window_size(self.size))
        if self.help:
            picture = told(picture, [f"{key:6}{meaning}" for key, meaning in KEYS.items()])
        elif time.perf_counter() - self.noted < NOTE:
            picture = told(picture, [self.note])
        cv2.imshow(TITLE, picture)

    def serve(self, due):
        """Serve keys and mouse until the clock says `due`, and at least once."""
        while True:
            # Whole milliseconds, rounded down and at least one: a key ends the wait early, so the clock decides.
            wait = min(POLL, due - time.perf_counter())
            self.press(cv2.waitKey(max(1, int(wait * 1000))))
            self.open = self.open and is_open()
            if not self.open or time.perf_counter() > due - 0.001:
                return

    def press(self, key):
        """Do what a key asks for; `key` is its code, -1 for none."""
        if key in QUIT_KEYS:
            self.open = False
        elif key == ord(" "):
            self.paused = not self.paused
        elif key == ord("n") and self.renew:
            self.renew()
            self.tell("a new lamp")
        elif key in (ord("+"), ord("=")):
            self.pace(1.25)
        elif key in (ord("-"), ord("_")):
            self.pace(0.8)
        elif key == ord("f"):
            self.full = not self.full
            cv2.setWindowProperty(TITLE, cv2.WND_PROP_FULLSCREEN, cv2.WINDOW_FULLSCREEN if self.full
                                  else cv2.WINDOW_NORMAL)
        elif key == ord("s"):
            self.tell(f"saved {save(self.frame)}")
        elif key == ord("h"):
            self.help = not self.help
            self.draw()

    def pace(self, factor):
        """Show so many times as many frames a second, within reason."""
        self.fps = min(max(self.fps * factor, 1), 240)
        self.tell(f"{self.fps:.3g} frames a second")

    def tell(self, note):
        """Show `note` for a while."""
        self.note, self.noted = note, time.perf_counter()
        self.draw()


def told(picture, lines):
    """The BGR picture [H, W, 3] with lines of text in its lower left corner, on a darker ground."""
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
    """Write the RGB frame as a PNG of its own in the current folder; returns its name, or why there is none."""
    stem = time.strftime("lamp-%Y%m%d-%H%M%S")
    name = next(name for i in itertools.count(1) if not Path(name := f"{stem}{f'-{i}' if i > 1 else ''}.png").exists())
    try:
        with replacing(name) as part:
            part.write_bytes(cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1])
    except OSError as error:
        return f"nothing: {error.strerror}"
    return name


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


def film(frames, path, fps, count, scale=1):
    """Write `count` of `frames` to a film in the format of its ending, one of FILMS.

    Animated pictures play for ever, and APNG is without loss; MP4 (H.264) and WebM (VP9) play wherever videos do. The
    file appears at `path` when it is whole; until then, and when anything fails, one that was there stays.

    Args:
        frames: an iterator of uint8 RGB frames [H, W, 3]; one frame makes a still picture.
        path: the file to write.
        fps: frames a second.
        count: frames to take, at least one.
        scale: enlarge the frames so many times, smoothly.

    Raises:
        UserError: see `check_film`; or there is no ffmpeg, or it failed.
    """
    check_film(path, fps)
    program, ending = ffmpeg(), Path(path).suffix.lower()
    frames = iter(frames)
    first = next(frames)
    height, width = first.shape[:2]
    with replacing(path) as part, tempfile.TemporaryFile() as errors:  # a file, as a pipe nobody reads can fill up
        command = [
            program, "-v", "error", "-y",
            "-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}", "-framerate", str(fps),
            "-i", "pipe:0", "-vf", filters(ending, width * scale, height * scale), *FILMS[ending],
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


def filters(ending, width, height):
    """ffmpeg's filters between frames and a film of width x height pixels."""
    if ending == ".gif":  # the 256 colours that suit this film best
        return f"scale={width}:{height}:flags=bicubic,split[a][b];[a]palettegen[p];[b][p]paletteuse"
    if ending in (".mp4", ".webm"):  # colour at half the resolution, as all players know it, wants even sizes
        width, height = (round(side / 2) * 2 for side in (width, height))
        return f"scale={width}:{height}:flags=bicubic:out_color_matrix=bt709:out_range=tv,format=yuv420p"
    return f"scale={width}:{height}:flags=bicubic"


def tiled(lamps, rows):
    """Frames [lamps, H, W, 3] as one picture, `rows` of them: [rows * H, lamps / rows * W, 3]."""
    _, height, width, _ = lamps.shape
    columns = len(lamps) // rows
    grid = lamps.reshape(rows, columns, height, width, 3)
    return grid.swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def check_film(path, fps):
    """See that a film of `fps` frames a second can be written to `path`.

    Raises:
        UserError: it has the ending of no known format, or of one that is too slow; it is a folder, or its folder is
            missing or not writable.
    """
    path = Path(path)
    if path.suffix.lower() not in FILMS:
        raise UserError(f"{path} has no ending of a known format: end it in one of {', '.join(FILMS)}")
    if path.suffix.lower() == ".gif" and fps > GIF_FPS:
        raise UserError(f"--fps {fps:g}: a .gif shows at most {GIF_FPS} frames a second; take another ending, or fewer")
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
