"""Weights found, weights read, and lamps that run for ever, repeatably, each for itself."""

import itertools
import resource
import shutil

import numpy as np
import pytest
from PIL import Image

import sample
from helpers import ROOT, command, learn
from screen import Window, environment, needs_windows
from window import fitted


def film(run, count, **options):
    return np.stack(list(itertools.islice(sample.Sampler(run / "weights.10", **options).frames(), count)))


def test_a_seed_is_a_film(run):
    first = film(run, 9, seed=1)
    assert first.shape == (9, 1, 16, 16, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(film(run, 9, seed=1), first)
    assert (film(run, 9, seed=2) != first).any()


def test_a_lamp_runs_alone_as_among_others(run):
    alone, among = film(run, 41, seed=1), film(run, 41, seed=1, n=3)
    np.testing.assert_allclose(among[:, :1].astype(int), alone, atol=1)
    assert (among[:, 1] != among[:, 0]).any()
    assert (among[:, 2] != among[:, 1]).any()


def test_between_two_steps_the_lamp_moves_on(run):
    """every_nth is 2 here: each second frame is decoded from a state in between, not blended from its neighbours."""
    frames = film(run, 40)[:, 0].astype(float)
    change = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    assert change.min() > 0
    blend = (frames[0:-2:2] + frames[2::2]) / 2
    assert (np.abs(frames[1:-1:2] - blend) > 0.6).any(), "more than rounding"


def test_a_new_lamp_comes_without_a_cut(run):
    lamps, quiet = (sample.Sampler(run / "weights.10", seed=2) for _ in range(2))
    frames, others = lamps.frames(), quiet.frames()
    first = list(itertools.islice(frames, 10))
    np.testing.assert_array_equal(first, list(itertools.islice(others, 10)))
    lamps.restart()
    melting = np.concatenate(list(itertools.islice(frames, 2 * sample.CROSSFADE_STEPS + 2))).astype(float)
    steady = np.concatenate(list(itertools.islice(others, 2 * sample.CROSSFADE_STEPS + 2))).astype(float)
    assert np.abs(melting[-1] - steady[-1]).mean() > 5, "another lamp"
    assert lamps.next_state is None
    cut = np.abs(melting[-1] - steady[-1]).mean()
    assert np.abs(np.diff(melting, axis=0)).mean((1, 2, 3)).max() < cut / 2


def test_a_loop_flows_into_its_beginning(run):
    frames = np.stack(list(sample.Sampler(run / "weights.10", n=2, seed=1).loop(60))).astype(float)
    assert frames.shape == (120, 2, 16, 16, 3)
    again = np.concatenate([frames, frames])
    steps = np.abs(np.diff(again, axis=0)).mean((2, 3, 4))[:120]  # the last one is over the seam
    assert (steps[-1] <= np.quantile(steps, 0.99, axis=0)).all()
    assert (np.abs(frames[60] - frames[0]).mean((1, 2, 3)) > 2 * steps.mean(0)).all(), "it moves"


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_loops_may_be_short(run, steps):
    frames = list(sample.Sampler(run / "weights.10").loop(steps))
    assert len(frames) == 2 * steps


def test_memory_stays_what_it_is(run):
    frames = sample.Sampler(run / "weights.10").frames()
    for _ in itertools.islice(frames, 1000):
        pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in itertools.islice(frames, 10_000):
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4_000  # kB


def test_video_from_the_command_line(run):
    folder = run.parents[1]
    done = learn(folder, "--mode=video", "--duration=2", "--fps=10", "--seed=3")
    assert done.returncode == 0, done.stderr
    assert "playing logs/20220104-213105/weights.10" in done.stdout
    expected = film(run, 20, seed=3)[:, 0]
    with Image.open(folder / "out.png") as png:
        assert (png.format, png.n_frames, png.info["loop"], png.size) == ("PNG", 20, 0, (16, 16))
        for i in range(20):
            png.seek(i)
            assert png.info["duration"] == 100
            np.testing.assert_allclose(np.asarray(png.convert("RGB")).astype(int), expected[i], atol=1)


def test_a_looping_wall_from_the_command_line(run):
    folder = run.parents[1]
    done = learn(folder, "--mode=video", "--duration=2", "--fps=10", "--loop", "--grid=2x3", "--scale=2", "--out=a.gif")
    assert done.returncode == 0, done.stderr
    with Image.open(folder / "a.gif") as gif:
        assert (gif.n_frames, gif.info["loop"], gif.size) == (20, 0, (96, 64))


def test_live_from_the_command_line(run, display):
    """The window shows the lamp's own frames, one after the other, and q ends it."""
    frames = np.stack([fitted(frame, 512, 512)[::8, ::8, ::-1] for frame in film(run, 400, seed=3)[:, 0]])
    with Window(display, command("--mode=live", "--weights", run, "--seed=3", "--fps=10")) as window:
        window.wait_for_picture()
        nearest = []
        while len(set(nearest)) < 3:
            distance = np.abs(frames.astype(int) - window.picture()[::8, ::8]).mean((1, 2, 3))
            assert distance.min() < 1
            nearest.append(int(distance.argmin()))
        assert nearest == sorted(nearest), "the film goes forward"
        window.key("q")
        output, errors = window.process.communicate(timeout=30)
        assert (window.process.returncode, errors) == (0, "")
        assert output.startswith(f"playing {run / 'weights.10'}\nin the window: space: pause, n: new video")


def test_the_weights_that_come_along_play_at_once(tmp_path):
    shipped = sorted((ROOT / "logs").glob("*/*.weights.h5"))
    if not shipped:
        pytest.skip("no weights come along")
    shutil.copytree(shipped[0].parent, tmp_path / "logs" / shipped[0].parent.name)
    done = learn(tmp_path, "--mode=video", "--duration=1")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out.png") as png:
        assert np.asarray(png.convert("RGB")).std() > 10, "a picture with contrast"


@needs_windows
def test_live_without_a_display(run):
    done = learn(run.parents[1], "--mode=live", env=environment())
    assert done.returncode == 2
    assert done.stderr == ("learn.py: no display to open a window on: DISPLAY is not set; use --mode video to write a "
                           "video file instead\n")


def test_a_wall_is_read_like_a_page():
    lamps = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(5, 2).repeat(3, 3)
    wall = sample.tile(lamps, rows=2)
    assert wall.shape == (8, 15, 3)
    np.testing.assert_array_equal(wall[::4, ::5, 0], [[0, 1, 2], [3, 4, 5]])
