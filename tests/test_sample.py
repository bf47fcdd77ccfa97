"""Generated videos run for ever, are the same for the same seed, alone and among others, on either backend."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import learn
import sample
from helpers import ROOT, command, discs, write_frames
from helpers import learn as command_line
from screen import Window, environment, needs_windows
from window import fitted


def frames_of(run, count, **options):
    return np.stack(list(itertools.islice(sample.Sampler(run / "weights.10", **options).frames(), count)))


def test_a_seed_is_a_video(run):
    first = frames_of(run, 9, seed=1)
    assert first.shape == (9, 1, 16, 16, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(frames_of(run, 9, seed=1), first)
    assert (frames_of(run, 9, seed=2) != first).any()


def test_a_video_is_the_same_alone_and_among_others(run):
    alone, among = frames_of(run, 41, seed=1), frames_of(run, 41, seed=1, n=3)
    np.testing.assert_allclose(among[:, :1].astype(int), alone, atol=1)
    assert (among[:, 1] != among[:, 0]).any()
    assert (among[:, 2] != among[:, 1]).any()


def test_frames_between_two_steps_are_decoded(run):
    """every_nth is 2 here: each second frame is decoded from a latent in between, not blended from its neighbours."""
    frames = frames_of(run, 40)[:, 0].astype(float)
    change = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    assert change.min() > 0
    blend = (frames[0:-2:2] + frames[2::2]) / 2
    assert (np.abs(frames[1:-1:2] - blend) > 0.6).any(), "more than rounding"


def test_a_restart_is_a_crossfade(run):
    sampler, other = (sample.Sampler(run / "weights.10", seed=2) for _ in range(2))
    frames, others = sampler.frames(), other.frames()
    first = list(itertools.islice(frames, 10))
    np.testing.assert_array_equal(first, list(itertools.islice(others, 10)))
    sampler.restart()
    faded = np.concatenate(list(itertools.islice(frames, 2 * sample.CROSSFADE_STEPS + 2))).astype(float)
    steady = np.concatenate(list(itertools.islice(others, 2 * sample.CROSSFADE_STEPS + 2))).astype(float)
    assert np.abs(faded[-1] - steady[-1]).mean() > 5, "another video"
    assert sampler.next_state is None
    cut = np.abs(faded[-1] - steady[-1]).mean()
    assert np.abs(np.diff(faded, axis=0)).mean((1, 2, 3)).max() < cut / 2


def test_a_restart_during_a_fade_waits_for_its_end(run):
    sampler = sample.Sampler(run / "weights.10", seed=2)
    frames = sampler.frames()
    sampler.restart()
    next(frames)
    sampler.restart()
    for _ in range(2):
        assert sampler.next_state is not None
        for _ in itertools.islice(frames, 2 * sample.CROSSFADE_STEPS):
            pass
    assert sampler.next_state is None


def test_a_loop_has_no_seam(run):
    frames = np.stack(list(sample.Sampler(run / "weights.10", n=2, seed=1).loop(60))).astype(float)
    assert frames.shape == (120, 2, 16, 16, 3)
    again = np.concatenate([frames, frames])
    steps = np.abs(np.diff(again, axis=0)).mean((2, 3, 4))[:120]  # the last one is over the seam
    assert (steps[-1] <= np.quantile(steps, 0.99, axis=0)).all()
    assert (np.abs(frames[60] - frames[0]).mean((1, 2, 3)) > 2 * steps.mean(0)).all(), "it moves"


@pytest.mark.parametrize("steps", [1, 2, 10, 60])
def test_loops_may_be_short_and_end_where_they_begin(run, steps, monkeypatch):
    sampler, paths = sample.Sampler(run / "weights.10"), []
    decode = sampler.decode
    monkeypatch.setattr(sampler, "decode", lambda path: paths.append(path) or decode(path))
    assert len(list(sampler.loop(steps))) == 2 * steps
    np.testing.assert_array_equal(paths[-1][:, -1], paths[0][:, 0])


def test_few_pixels_are_drawn_at_once_however_many_frames_a_step_has(run, tmp_path, monkeypatch):
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | dict(every_nth=100)))
    shutil.copy(run / "weights.10.weights.h5", tmp_path)
    whole = frames_of(tmp_path, 150, n=2)
    monkeypatch.setattr(sample, "BATCH_PIXELS", 16 * 16 * 30)
    sizes, draw = [], sample.to_frames
    monkeypatch.setattr(sample, "to_frames", lambda generator, z: sizes.append(z.shape[0]) or draw(generator, z))
    np.testing.assert_allclose(frames_of(tmp_path, 150, n=2).astype(int), whole, atol=1)
    assert max(sizes) <= 30


GROWTH = """
import itertools, resource, sys
from pathlib import Path
import sample

def resident_memory():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

frames = sample.Sampler(Path(sys.argv[1])).frames(50)
for _ in itertools.islice(frames, 2000):
    pass
before = resident_memory()
for _ in itertools.islice(frames, 20_000):
    pass
print(resident_memory() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux, which tells a process its memory")
def test_memory_of_playing_stays_what_it_is(run):
    done = subprocess.run([sys.executable, "-c", GROWTH, str(run / "weights.10")], text=True, capture_output=True,
                          env=os.environ | dict(PYTHONPATH=str(ROOT)))  # whose memory is not that of other tests too
    assert int(done.stdout.splitlines()[-1]) < 4e6, done.stderr


def test_videos_play_at_the_rate_of_the_footage(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | dict(fps=12.5)))
    shutil.copy(run / "weights.10.weights.h5", tmp_path)
    for flags, fps, count in ([], 12.5, 25), (["--fps=50"], 50, 100):
        assert learn.main(["--mode=video", "--weights", str(tmp_path), "--duration=2", *flags, "--overwrite", "--out",
                           str(tmp_path / "out.png")]) == 0
        with Image.open(tmp_path / "out.png") as png:
            assert png.n_frames == count
            png.seek(1)
            assert png.info["duration"] == pytest.approx(1000 / fps)


def test_a_video_takes_the_place_of_a_file_only_where_asked(run, tmp_path, capsys):
    film = tmp_path / "lamp.mp4"
    film.write_bytes(b"footage")
    flags = ["--mode=video", f"--weights={run}", f"--out={film}", "--duration=0.1"]
    assert learn.main(flags) == 2
    assert re.search(r"lamp\.mp4 is there already; .* --overwrite$", capsys.readouterr().err)
    assert film.read_bytes() == b"footage"
    assert learn.main([*flags, "--overwrite"]) == 0
    assert film.read_bytes() != b"footage"


# Under JAX: writes frames, then evaluates, and says whether TensorFlow was imported.
UNDER_JAX = """
import itertools, sys
from pathlib import Path
import numpy as np
import learn
run = Path(sys.argv[1])
assert learn.main(["--mode=video", "--weights", str(run), "--seed=3", "--duration=2", "--fps=10", "--loop"]) == 0
assert learn.main(["--mode=eval", "--weights", str(run), "--data_dir=frames", "--steps=3000"]) == 0
import keras, sample
assert keras.backend.backend() == "jax"
np.save("frames.npy", np.stack(list(itertools.islice(sample.Sampler(run / "weights.10", 2, 3).frames(), 40))))
from config import Config
from models import VideoModel
import checkpoints
checkpoints.save_weights(sample.load(run / "weights.10")[1], Path("weights.11"))
loaded = sorted(name for name in sys.modules if name.partition(".")[0] in ("tensorflow", "tf2onnx"))
print(loaded[:3])
"""


@pytest.mark.slow
def test_jax_plays_the_same_without_tensorflow(run, tmp_path):
    pytest.importorskip("jax", reason="jax is not installed")
    write_frames(tmp_path / "frames", discs(400, 16))
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    done = subprocess.run([sys.executable, "-c", UNDER_JAX, str(copy)], cwd=tmp_path, text=True, capture_output=True,
                          env=os.environ | dict(KERAS_BACKEND="jax", PYTHONPATH=str(ROOT)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "weights.10" in json.loads((copy / "eval.json").read_text())
    expected = frames_of(run, 40, n=2, seed=3)
    assert np.ptp(expected, axis=0).max() > 20, "it moves"
    assert np.abs(np.load(tmp_path / "frames.npy").astype(int) - expected).max() <= 1
    shutil.copy(tmp_path / "weights.11.weights.h5", copy)
    np.testing.assert_array_equal(next(sample.Sampler(copy / "weights.11", 2, 3).frames()), expected[0])


@pytest.mark.parametrize("mode", ["train", "video"])
def test_other_backends_are_refused_before_the_work(tmp_path, mode):
    done = command_line(tmp_path, f"--mode={mode}", env=os.environ | dict(KERAS_BACKEND="torch"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "set it to tensorflow or jax" in done.stderr
    assert not list(tmp_path.iterdir())


def test_settings_of_keras_change_nothing(run, tmp_path):
    (tmp_path / "keras.json").write_text('{"image_data_format": "channels_first", "floatx": "float16"}')
    done = command_line(tmp_path, "--mode=video", "--weights", run, "--duration=0.1",
                        env=os.environ | dict(KERAS_HOME=str(tmp_path)))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_video_from_the_command_line(run):
    folder = run.parents[1]
    done = command_line(folder, "--mode=video", "--duration=2", "--fps=10", "--seed=3")
    assert done.returncode == 0, done.stderr
    assert "playing logs/20220104-213105/weights.10" in done.stdout
    expected = frames_of(run, 20, seed=3)[:, 0]
    with Image.open(folder / "out.png") as png:
        assert (png.format, png.n_frames, png.info["loop"], png.size) == ("PNG", 20, 0, (16, 16))
        for i in range(20):
            png.seek(i)
            assert png.info["duration"] == 100
            np.testing.assert_allclose(np.asarray(png.convert("RGB")).astype(int), expected[i], atol=1)


def test_slow_footage_takes_no_more_memory(run, tmp_path, monkeypatch):
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | dict(every_nth=10_000)))
    shutil.copy(run / "weights.10.weights.h5", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "sysconf", lambda _: 2**11)  # a machine of 4 MiB, which 10,000 frames of 16x16 would fill
        assert learn.load_sampler(tmp_path, 1, 0)[0].config.every_nth == 10_000


@pytest.mark.slow
def test_a_looping_grid_of_videos(run, tmp_path):
    out = tmp_path / "a.gif"
    assert learn.main(["--mode=video", "--weights", str(run), "--duration=2", "--fps=10", "--loop", "--grid=2x3",
                       "--scale=2", "--out", str(out)]) == 0
    with Image.open(out) as gif:
        assert (gif.n_frames, gif.info["loop"], gif.size) == (20, 0, (96, 64))


@pytest.mark.slow
def test_live_from_the_command_line(run, display):
    """The window shows the run's own frames, one after the other, and q ends it."""
    frames = np.stack([fitted(frame, 512, 512)[::8, ::8, ::-1] for frame in frames_of(run, 400, seed=3)[:, 0]])
    with Window(display, command("--mode=live", "--weights", run, "--seed=3", "--fps=10")) as window:
        window.wait_for_picture()
        nearest = []
        while len(set(nearest)) < 3:
            distance = np.abs(frames.astype(int) - window.picture()[::8, ::8]).mean((1, 2, 3))
            assert distance.min() < 1
            nearest.append(int(distance.argmin()))
        assert nearest == sorted(nearest), "frames come in their order"
        window.key("q")
        output, errors = window.process.communicate()
        assert (window.process.returncode, errors) == (0, "")
        assert output.startswith(f"playing {run / 'weights.10'}\nin the window: space: pause, n: new video")


@pytest.mark.slow
@pytest.mark.parametrize("shipped", re.findall(r"^!(\d\S+\d)$", (ROOT / "logs/.gitignore").read_text(), re.MULTILINE))
def test_the_weights_that_come_along_play_at_once(tmp_path, monkeypatch, shipped):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "logs" / shipped, tmp_path / "logs" / shipped)
    assert learn.main(["--mode=video", "--duration=1"]) == 0
    with Image.open(tmp_path / "out.png") as png:
        assert np.asarray(png.convert("RGB")).std() > 10, "a picture with contrast"


@needs_windows
def test_live_without_a_display(run):
    done = command_line(run.parents[1], "--mode=live", env=environment())
    assert done.returncode == 2
    assert done.stderr == ("learn.py: no display to open a window on: DISPLAY is not set; use --mode video to write a "
                           "video file instead\n")


def test_tiles_are_in_reading_order():
    frames = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(5, 2).repeat(3, 3)
    tiled = sample.tile(frames, rows=2)
    assert tiled.shape == (8, 15, 3)
    np.testing.assert_array_equal(tiled[::4, ::5, 0], [[0, 1, 2], [3, 4, 5]])
