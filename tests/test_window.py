"""The window shows the frames in time, follows its keys, and closes when asked."""

import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import window
from files import UserError
from helpers import until
from screen import Window, environment, needs_windows

pytestmark = pytest.mark.slow

COLOURS = np.uint8([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 200, 50]]])  # four quarters: no two alike in BGR

# Shows the four quarters until it is quit, says how it ended and waits, so that the window can be seen to be gone.
SHOW = f"""
import itertools, sys
import numpy as np
import window
quarters = np.array({COLOURS.tolist()}, np.uint8).repeat(32, 0).repeat(32, 1)
try:
    window.show(itertools.repeat(quarters), fps=25)
    print("returned", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.read()
"""


def showing(display, script=SHOW, **env):
    """The window of a Python script on `display`."""
    return Window(display, [sys.executable, "-c", script], **env)


def centres(picture):
    """The colours in the middle of the four quarters of a picture."""
    h, w = picture.shape[:2]
    return picture[np.ix_([h // 4, 3 * h // 4], [w // 4, 3 * w // 4])]


def test_window_shows_the_frames_enlarged_smoothly(display):
    with showing(display, XDG_SESSION_TYPE="wayland") as window:
        window.wait_for_picture()
        picture = window.picture()
        assert picture.shape == (512, 512, 3)
        np.testing.assert_array_equal(centres(picture), COLOURS)
        edge = picture[100, 256 - 16:256 + 16, 1].astype(int)  # from red to green: the green rises
        assert len(set(edge)) > 6, "the border of two colours is a step, not a slope"
        window.key("q")
        assert window.process.communicate() == ("returned\n", "")  # and Qt said nothing


@pytest.mark.parametrize("width, height, side", [(900, 700, 700), (300, 600, 300)])
def test_picture_follows_the_window_and_keeps_its_aspect(display, width, height, side):
    left, top = (width - side) // 2, (height - side) // 2
    with showing(display) as window:
        window.wait_for_picture()
        window.xdotool("windowsize", window.id, width, height)

        def fits():
            picture = window.picture()
            if picture.shape != (height, width, 3):
                return False
            inner = picture[top:top + side, left:left + side]
            bars = int(picture.sum()) - int(inner.sum())
            return (centres(inner) == COLOURS).all() and inner.any(axis=2).all() and bars == 0

        until(fits)


@pytest.mark.parametrize("action, end", [
    (lambda window: window.key("q"), "returned"),
    (lambda window: window.key("Escape"), "returned"),
    (lambda window: window.close(), "returned"),
    (lambda window: window.interrupt(), "interrupted"),
], ids=["q", "escape", "close", "ctrl-c"])
def test_quitting_closes_the_window(display, action, end):
    with showing(display) as window:
        window.wait_for_picture()
        window.key("x")
        assert window.find(), "another key closed it"
        action(window)
        until(lambda: not window.find())
        assert window.process.poll() is None  # so it was closed, not lost with its process
        assert window.process.communicate() == (end + "\n", "")


# Grey frames; a new video is told on stdout.
GREY = """
import itertools, os
import numpy as np
import window
os.chdir(%r)
frames = itertools.repeat(np.full((16, 16, 3), 90, np.uint8))
window.show(frames, 10, restart=lambda: print("restarted", flush=True), size=300)
"""


@pytest.fixture
def grey(display, tmp_path):
    with showing(display, GREY % str(tmp_path)) as window:
        window.wait_for_picture()
        yield window


def test_n_asks_for_a_new_video(grey):
    grey.key("n")
    assert grey.process.stdout.readline() == "restarted\n"


def test_s_saves_the_frame(grey, tmp_path):
    for count in 1, 2:
        grey.key("s")
        pictures = until(lambda: len(found := list(tmp_path.glob("duralava-*.png"))) == count and found)  # noqa: B023
    for path in pictures:
        picture = np.asarray(Image.open(path))
        assert picture.shape == (16, 16, 3)
        assert (picture == 90).all()


def test_h_shows_the_keys(grey):
    assert (grey.picture() == 90).all()
    grey.key("h")
    until(lambda: len(np.unique(grey.picture())) > 20)
    assert (grey.picture()[:20] == 90).all(), "the text stands below"
    grey.key("h")
    until(lambda: (grey.picture() == 90).all())


@pytest.fixture
def managed(display):
    """A window manager on the display: without one no window can fill the screen."""
    if not shutil.which("openbox"):
        pytest.skip("openbox, a window manager, is not installed")
    env = environment(DISPLAY=display)
    manager = subprocess.Popen(["openbox"], env=env, stderr=subprocess.DEVNULL)
    until(lambda: not subprocess.run(["xdotool", "get_desktop"], env=env, capture_output=True).returncode, manager)
    yield
    manager.kill()
    manager.wait()


@pytest.mark.usefixtures("managed")
def test_f_fills_the_screen(grey):
    size = grey.picture().shape
    grey.key("f")
    until(lambda: grey.picture().shape == (1024, 1280, 3))
    grey.key("f")
    until(lambda: grey.picture().shape == size)


class Clock:
    """The clock by which `show` works in a test: time passes where the test says so, and while keys are waited for."""

    def __init__(self, monkeypatch, keys=(), early=False, drawing=0.0):
        self.now, self.keys, self.early, self.drawing, self.shown = 0.0, dict(keys), early, drawing, []
        monkeypatch.setattr(window, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(window, "check_display", lambda: None)
        for name, value in dict(namedWindow=None, resizeWindow=None, destroyAllWindows=None, getWindowProperty=1.0,
                                getWindowImageRect=(0, 0, 64, 64)).items():
            monkeypatch.setattr(window.cv2, name, lambda *_, value=value: value)
        monkeypatch.setattr(window.cv2, "imshow", self.imshow)
        monkeypatch.setattr(window.cv2, "waitKey", self.wait)

    def imshow(self, _, picture):
        self.shown.append((self.now, int(picture[0, 0, 0])))
        self.now += self.drawing

    def wait(self, milliseconds):
        self.now += (min(milliseconds, 7) if self.early else milliseconds) / 1000  # a key ends the wait
        due = [at for at in self.keys if at <= self.now]
        return self.keys.pop(due[0]) if due else ord("x") if self.early else -1

    def show(self, count, making=lambda _: 0, restart=None):
        """Show `count` frames, 20 a second; returns the seconds that took."""
        def frames():
            for i in range(count):
                self.now += making(i) if i else 0
                yield np.full((8, 8, 3), i, np.uint8)

        window.show(frames(), fps=20, restart=restart, size=64)
        return self.now


@pytest.mark.parametrize("early", [False, True], ids=["no keys", "keys all the time"])
def test_frames_come_by_the_clock(monkeypatch, early):
    clock = Clock(monkeypatch, early=early)
    assert clock.show(40) == pytest.approx(2, abs=0.01)
    assert [frame for _, frame in clock.shown] == list(range(40))
    assert np.diff([at for at, _ in clock.shown]) == pytest.approx(0.05, abs=0.01)


def test_frames_in_bursts_are_shown_in_time(monkeypatch):
    clock = Clock(monkeypatch)
    assert clock.show(36, lambda i: 0.12 if i % 6 == 0 else 0) == pytest.approx(36 / 20, abs=0.1)
    assert len(clock.shown) >= 34


def test_slow_drawing_skips_frames_and_stays_in_time(monkeypatch):
    clock = Clock(monkeypatch, drawing=0.08)
    assert clock.show(40) == pytest.approx(2, abs=0.2)  # not 3.2
    assert 20 <= len(clock.shown) < 32


def test_slow_making_shows_every_frame(monkeypatch):
    clock = Clock(monkeypatch)
    assert clock.show(15, lambda _: 0.1) > 1.4
    assert len(clock.shown) == 15


@pytest.mark.parametrize("burst", [3, 6, 50])
def test_slow_making_in_bursts_shows_every_frame(monkeypatch, burst):
    clock = Clock(monkeypatch)
    assert clock.show(200, lambda i: 0 if i % burst else 0.06 * burst) > 200 * 0.055
    assert len(clock.shown) > 190, "but for some at first, until it is known how slow making is"


def test_a_long_delay_is_not_followed_by_a_rush(monkeypatch):
    clock = Clock(monkeypatch)
    assert clock.show(30, lambda i: 1.0 if i == 5 else 0) == pytest.approx(30 / 20 + 1, abs=0.1)


def test_space_pauses_and_goes_on(monkeypatch):
    clock = Clock(monkeypatch, keys={0.5: ord(" "), 2.5: ord(" ")})
    assert clock.show(40) == pytest.approx(2 + 2, abs=0.1)
    frames, times = np.unique([frame for _, frame in clock.shown], return_counts=True)
    assert list(frames) == list(range(40))
    paused = [at for at, frame in clock.shown if frame == frames[times.argmax()]]
    assert paused[-1] - paused[0] == pytest.approx(2, abs=0.1)
    assert max(np.diff(paused)) < 0.1, "it is drawn all the time, as the window may change its size"


def test_a_new_video_ends_a_pause(monkeypatch):
    clock = Clock(monkeypatch, keys={0.5: ord(" "), 1.5: ord("n")})
    assert clock.show(40, restart=lambda: None) == pytest.approx(2 + 1, abs=0.1)


def test_plus_and_minus_change_the_speed(monkeypatch):
    clock = Clock(monkeypatch, keys={0.01 * i: ord("+") for i in range(4)})
    clock.show(40)
    assert np.diff([at for at, frame in clock.shown if frame > 10]).mean() == pytest.approx(1 / (20 * 1.25**4), rel=0.1)
    clock = Clock(monkeypatch, keys={0.01 * i: ord("-") for i in range(4)})
    clock.show(40)
    assert np.diff([at for at, frame in clock.shown if frame > 10]).mean() == pytest.approx(1 / (20 * 0.8**4), rel=0.1)


@pytest.mark.parametrize("fps, key", [(0.5, "-"), (0.5, "+"), (300, "-"), (300, "+")])
def test_a_speed_beyond_the_usual_changes_the_right_way(fps, key):
    screen = SimpleNamespace(fps=fps, tell=str)
    window.Window.change_speed(screen, 0.8 if key == "-" else 1.25)
    assert (screen.fps <= fps) if key == "-" else (screen.fps >= fps)


@pytest.mark.parametrize("there, back", [(1.25, 0.8), (0.8, 1.25)])
def test_the_speed_of_the_footage_is_reached_again(there, back):
    screen, speeds = SimpleNamespace(fps=30, tell=str), []
    for factor in [there] * 30 + [back] * 30:
        window.Window.change_speed(screen, factor)
        speeds.append(screen.fps)
    assert min(abs(fps - 30) for fps in speeds[30:]) < 1e-6


CHECK = """
import window
try:
    window.show(iter(()), fps=30)
except window.UserError as error:
    print(error)
"""


@needs_windows
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a display has no name")
@pytest.mark.parametrize("env, reason", [
    ({}, "DISPLAY is not set"),
    ({"DISPLAY": ":99999"}, "could not connect to display :99999"),
    ({"WAYLAND_DISPLAY": "wayland-9"}, "DISPLAY is not set"),
], ids=["none", "dead", "wayland"])
def test_no_display_is_told_in_one_sentence(env, reason):
    result = subprocess.run([sys.executable, "-c", CHECK], env=environment(**env), text=True, capture_output=True)
    assert result.stdout == (f"no display to open a window on: {reason}; use --mode video to write a video file "
                             "instead\n")
    assert (result.returncode, result.stderr) == (0, "")


def test_opencv_without_windows_is_told(monkeypatch):
    monkeypatch.setattr(window.cv2, "currentUIFramework", lambda: "")  # what the headless wheel answers
    window.check_display.cache_clear()
    with pytest.raises(UserError, match=r"opencv-python-headless.*--mode video"):
        window.check_display()
