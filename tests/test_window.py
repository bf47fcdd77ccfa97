"""The window shows the frames at their pace and closes when asked; the film holds every frame, or is not written."""

import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import window
from files import UserError
from helpers import until
from screen import Window, environment, needs_windows

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


# The window.

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
        time.sleep(0.1)
        assert window.find(), "another key closed it"
        action(window)
        until(lambda: not window.find())
        assert window.process.poll() is None  # so it was closed, not lost with its process
        assert window.process.communicate() == (end + "\n", "")


# Grey frames, each brighter than the one before, ten a second; a new lamp is told on stdout.
RISING = """
import os, sys
import numpy as np
import window
os.chdir(%r)
frames = (np.full((16, 16, 3), 40 + i %% 200, np.uint8) for i in range(10_000))
window.show(frames, 10, renew=lambda: print("renewed", flush=True), size=300)
"""


@pytest.fixture
def rising(display, tmp_path):
    with showing(display, RISING % str(tmp_path)) as window:
        window.wait_for_picture()
        yield window


def grey(window):
    return int(window.picture()[10, 10, 0])


def rate(window, seconds=1.5):
    """Frames a second, by how much brighter the window becomes."""
    start, before = time.monotonic(), grey(window)
    time.sleep(seconds)
    after = grey(window)
    return (after - before) % 200 / (time.monotonic() - start)


def assert_pace(window, low, high, seconds=1.5):
    """The window shows between `low` and `high` frames a second, as soon as the machine has time for it."""
    rates = []
    while not (rates and low < rates[-1] < high):
        rates.append(rate(window, seconds))
        assert len(rates) < 10, rates


def test_space_pauses_and_goes_on(rising):
    rising.key("space")
    time.sleep(0.3)
    assert rate(rising, 0.7) == 0
    rising.key("space")
    time.sleep(0.3)
    assert_pace(rising, 7, 13)


def test_plus_and_minus_change_the_speed(rising):
    for _ in range(4):
        rising.key("plus")
    time.sleep(0.2)
    assert_pace(rising, 19, 30)  # 10 * 1.25^4 = 24.4
    for _ in range(8):
        rising.key("minus")
    time.sleep(0.2)
    assert_pace(rising, 2.5, 5.5, seconds=3)


def test_n_asks_for_a_new_lamp(rising):
    rising.key("n")
    assert rising.process.stdout.readline() == "renewed\n"


def test_s_saves_the_frame(rising, tmp_path):
    rising.key("space")
    rising.key("s")
    rising.key("s")
    until(lambda: len(list(tmp_path.glob("duralava-*.png"))) == 2)
    time.sleep(0.2)
    first, second = (np.asarray(Image.open(path)) for path in tmp_path.glob("duralava-*.png"))
    assert first.shape == (16, 16, 3)
    assert (first == first[0, 0, 0]).all()
    np.testing.assert_array_equal(first, second)


def test_h_shows_the_keys(rising):
    rising.key("space")
    time.sleep(0.3)
    plain = rising.picture()
    assert (plain == plain[0, 0]).all()
    rising.key("h")
    until(lambda: len(np.unique(rising.picture())) > 20)
    assert (rising.picture()[:20] == plain[:20]).all(), "the text stands below"
    rising.key("h")
    until(lambda: (rising.picture() == plain).all())


@pytest.fixture
def managed(display):
    """A window manager on the display: without one no window can fill the screen."""
    if not shutil.which("openbox"):
        pytest.skip("openbox, a window manager, is not installed")
    manager = subprocess.Popen(["openbox"], env=environment(DISPLAY=display), stderr=subprocess.DEVNULL)
    time.sleep(1)
    yield
    manager.kill()
    manager.wait()


@pytest.mark.usefixtures("managed")
def test_f_fills_the_screen(rising):
    size = rising.picture().shape
    rising.key("f")
    until(lambda: rising.picture().shape == (1024, 1280, 3))
    rising.key("f")
    until(lambda: rising.picture().shape == size)


# Frames at 20 a second, the making or the drawing of some delayed: prints the seconds and the frames drawn.
PACE = """
import time
import cv2
import numpy as np
import window

def timed(count, making, drawing):
    def frames():
        for i in range(count):
            if i:
                time.sleep(making(i))
            yield np.full((8, 8, 3), 99, np.uint8)

    def slowly(title, picture):
        drawn.append(time.sleep(drawing))
        imshow(title, picture)

    drawn, imshow = [], cv2.imshow
    cv2.imshow = slowly
    try:
        start = time.perf_counter()
        window.show(frames(), fps=20, size=64)
        print(time.perf_counter() - start, len(drawn), flush=True)
    finally:
        cv2.imshow = imshow

window.check_display()
timed(%s)
"""


def pace(display, count, making="lambda i: 0", drawing=0, keys=False):
    with showing(display, PACE % f"{count}, {making}, {drawing}") as window:
        while keys and window.process.poll() is None:
            window.key("x")
        out, err = window.process.communicate()
    assert not err
    seconds, drawn = out.split()
    return float(seconds), int(drawn)


def test_the_clock_sets_the_pace_whatever_keys_are_pressed(display):
    seconds, drawn = pace(display, 40, keys=True)
    assert 1.9 < seconds < 2.4
    assert drawn >= 38  # every one, but for a hiccup of the machine


def test_frames_in_bursts_keep_the_pace(display):
    seconds, drawn = pace(display, 36, making="lambda i: 0.12 if i % 6 == 0 else 0")
    assert 1.7 < seconds < 2.2
    assert drawn >= 34


def test_slow_drawing_leaves_out_frames_but_keeps_the_pace(display):
    seconds, drawn = pace(display, 40, drawing=0.08)  # 3.2 s, if all were drawn
    assert 1.9 < seconds < 2.6
    assert 20 <= drawn < 32


def test_slow_making_shows_every_frame(display):
    seconds, drawn = pace(display, 15, making="lambda i: 0.1")
    assert seconds > 1.4
    assert drawn == 15


def test_a_long_pause_is_not_followed_by_a_rush(display):
    seconds, _ = pace(display, 30, making="lambda i: 1.0 if i == 5 else 0")
    assert seconds > 0.25 + 1.0 + 1.1  # 25 frames are left after it: 1.25 s


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
