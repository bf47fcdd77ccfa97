"""A run: what it leaves in its folder, and that no interruption costs more than it must."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import checkpoints
import data
import learn as program
import models
import prepare
import sample
import train
from backend import make_backend
from config import PRESETS, Config
from files import UserError
from gan import METRICS
from helpers import ROOT, learn, run_of, start, until

pytestmark = pytest.mark.slow
SHOWN = ["1_first", "2_second", "3_third", "4_middle", "5_last"]


def names(run):
    return sorted(path.name for path in run.iterdir() if "tfevents" not in path.name)


def step_of(run):
    return int(checkpoints.newest(run, "weights").name.removeprefix("weights."))


def events(run):
    found = EventAccumulator(str(run), size_guidance=dict(scalars=0))
    found.Reload()
    return found


@pytest.fixture
def trained(footage, small, monkeypatch):
    """A function that trains on the footage in this process: (config values) -> the run's folder."""
    monkeypatch.chdir(footage)
    return lambda run=None, **values: train.train(Config(**(small | values)), data.load("frames", 16), run)[0]


def test_a_run_leaves_what_playing_and_resuming_need(footage, flags):
    done = learn(footage, *flags, "--steps=6", "--save_every=4", "--seed=5")
    assert done.returncode == 0, done.stderr
    run = run_of(footage)
    assert re.fullmatch(r"\d{8}-\d{6}", run.name)
    assert names(run) == ["config.json", "state.4.h5", "state.6.h5", "weights.4.weights.h5", "weights.6.weights.h5"]
    saved = json.loads((run / "config.json").read_text())
    assert saved["seed"] == 5
    assert saved["width"] == 8
    assert f"--weights {run.relative_to(footage)} --mode live" in done.stdout
    assert re.search(r"generator [\d,]+, transition [\d,]+, discriminator [\d,]+ weights", done.stdout)
    assert "step 6" in done.stderr
    assert "steps/s" in done.stderr
    assert "kurt" in done.stderr
    assert "absl" not in done.stderr


@pytest.mark.usefixtures("eagerly")
def test_tensorboard_shows_curves_images_and_histograms(trained, monkeypatch):
    monkeypatch.setattr(train, "SAMPLE_EVERY", 5)
    found = events(trained(steps=10))
    tags = found.Tags()
    assert set(tags["scalars"]) == {*METRICS, "learning_rate"}
    assert set(tags["images"]) == {f"frames/{name}" for name in SHOWN}
    assert set(tags["histograms"]) == {f"latents/{name}" for name in SHOWN}
    assert [event.step for event in found.Scalars("learning_rate")] == [10]
    image = found.Images("frames/5_last")[-1]
    assert (image.step, image.width * image.height) == (10, 8 * 16 * 16), "eight chains side by side"


def test_stopped_and_resumed_is_as_if_never_stopped(footage, flags, trained):
    """Bit for bit: a run in one go, and one stopped by Ctrl-C and resumed; rolled out by a loop, as by default."""
    flags += ["--steps=60", "--save_every=30", f"--seq_len={models.UNROLL + 1}"]
    process = start(footage, *flags)
    until(lambda: list(footage.glob("logs/*/weights.30.weights.h5")), process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    run = run_of(footage)
    assert process.returncode == 130
    assert f"--resume {run.relative_to(footage)}" in output
    config = vars(Config.load(run / "config.json"))
    trained(run, **config)
    reference = trained(**config)
    for name in "weights.30.weights.h5", "weights.60.weights.h5", "state.60.h5":
        ours, theirs = checkpoints.arrays(run / name), checkpoints.arrays(reference / name)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours if key != "seconds"), name


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("end", [dict(steps=2), dict(steps=9, max_minutes=1e-6)])
def test_a_run_at_its_end_is_not_resumed(trained, end):
    run = trained(steps=2)
    before = (run / "config.json").read_text()
    with pytest.raises(UserError, match=r"trained to its end, 2 steps in 0 minutes; .* count from its beginning"):
        trained(run, **end)
    assert (run / "config.json").read_text() == before


@pytest.mark.usefixtures("eagerly")
def test_a_stopped_run_ends_with_the_step_under_way(trained, monkeypatch):
    step, begun = train.GAN.train, []

    def interrupted(*args):
        begun.append(args)
        if len(begun) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(train.GAN, "train", interrupted)
    assert "state.2.h5" in names(trained(steps=5))


def test_a_machine_that_is_gone_before_the_first_step_is_told(footage, small):
    engine = make_backend()

    def agree(_):
        raise ConnectionError

    engine.agree, engine.gone = agree, ConnectionError
    frames = data.load(footage / "frames", 16)
    with pytest.raises(UserError, match=r"another machine of this run is gone; .* \(ConnectionError after step 0\)"):
        train.train(Config(**small, distribute="multiworker"), frames, backend=engine)


def test_a_run_stopped_at_once_leaves_no_weights(footage, flags):
    process = start(footage, *flags, "--steps=100000")
    until(lambda: list(footage.glob("logs/*/config.json")), process)  # from here on a step may be under way
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "stopping as soon as this step is done and saved" in errors
    run = run_of(footage)
    assert checkpoints.find_state(run), "it can go on"
    assert not list(run.glob("weights.*"))


def test_a_killed_run_keeps_every_checkpoint_and_goes_on(footage, flags, trained):
    process = start(footage, *flags, "--steps=100000", "--save_every=2")
    until(lambda: len(list(footage.glob("logs/*/weights.*"))) > 5, process)
    process.kill()
    process.communicate()
    run = run_of(footage)
    for file in run.glob("weights.*"):
        sample.load(run / file.name.removesuffix(".weights.h5"))
    trained(run, **vars(Config.load(run / "config.json")) | dict(steps=step_of(run) // 2 * 2 + 4))
    assert not list(run.glob(".*part*")), "what the killed run was writing is swept away"
    assert len(list(run.glob("state.*"))) == 2


@pytest.mark.usefixtures("eagerly")
def test_the_state_is_saved_between_two_checkpoints(trained, footage, monkeypatch):
    monkeypatch.setattr(train, "STATE_SECONDS", 0)  # for minutes

    def fail(*args):
        if args[2] == 4:  # the step
            raise MemoryError

    monkeypatch.setattr(train, "show", fail)
    with pytest.raises(MemoryError):
        trained(steps=10, save_every=10)
    assert names(run_of(footage)) == ["config.json", "state.2.h5", "state.3.h5"]


def test_max_minutes_ends_a_run(trained, monkeypatch):
    seconds = iter(range(0, 10**6, 2))
    monkeypatch.setattr(train.time, "perf_counter", lambda: float(next(seconds)))
    run = trained(max_minutes=20.0)
    rates = [event.value for event in events(run).Scalars("learning_rate")]
    assert 100 < step_of(run) < 700
    assert rates[0] <= Config().learning_rate * train.LOG_EVERY / train.WARM_UP, "it warms up"
    constant = rates[train.WARM_UP // train.LOG_EVERY:int(len(rates) * (1 - train.FALL))]
    np.testing.assert_allclose(constant, Config().learning_rate, rtol=1e-6)
    assert rates[-1] < 0.2 * Config().learning_rate, "at the last point of the curve it has fallen"


def test_short_footage_is_trained_for_fewer_steps(footage, small, monkeypatch, capsys):
    monkeypatch.chdir(footage)
    configs = []
    monkeypatch.setattr(train, "train", lambda config, *_: configs.append(config) or (None, None))
    flags = {name: small[name] for name in ("img_size", "batch_size", "clip_len")}
    for given in {}, dict(max_minutes=0.0), dict(steps=5000), dict(max_minutes=2.0), dict(preset="original"):
        program.train(**flags | given)
    assert [config.steps for config in configs] == [910, 910, 5000, 910, 33_600], \
        "40 frames, independent after 3: 250 (40 / 3)^0.5"
    assert re.findall("augmentation, (.*)", capsys.readouterr().out) == [
        "910 training steps", "910 training steps", "5,000 training steps", "2 minutes", "33,600 training steps"]


@pytest.mark.parametrize("preset, rates", [({}, {0: 5e-4, 0.8: 5e-4, 0.9: 2.5e-4, 1: 0}),
                                           (PRESETS["original"], {0: 1e-3, 1 / 3: 7.5e-4, 0.5: 5e-4, 1: 0})])
def test_the_learning_rate_falls_linearly_in_the_end_or_along_a_cosine(preset, rates):
    found = [train.learning_rate(Config(**preset), 1000, progress) for progress in rates]
    np.testing.assert_allclose(found, list(rates.values()), atol=1e-12)


@pytest.mark.usefixtures("eagerly")
def test_the_original_trains(trained):
    assert step_of(trained(steps=2, arch="original", gamma=0.0)) == 2


@pytest.mark.usefixtures("eagerly")
def test_a_diverging_run_stops_and_keeps_its_checkpoint(trained, monkeypatch):
    run = trained(steps=2)
    before = names(run)
    monkeypatch.setattr(train, "learning_rate", lambda *_: 1e30)
    for begun in run, None:
        with pytest.raises(UserError, match=r"diverged after step \d+, [^;]*; start anew with a lower --learning_rate"):
            trained(begun, steps=10)
    assert names(run) == before


def test_an_empty_folder_gets_a_simulated_lamp(tmp_path, flags):
    process = start(tmp_path, *flags, "--steps=1")
    until(lambda: len(list(tmp_path.glob("frames/*.png"))) > 5, process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert "frames holds no frames: simulating" in output
    assert process.returncode == 130
    assert "Traceback" not in errors
    process = start(tmp_path, *flags, "--steps=1")
    assert process.stdout.readline().startswith("frames holds only part of its frames: simulating")
    process.terminate()
    process.communicate()
    assert process.returncode == 143


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("given", [{}, dict(img_size=16, seed=8)])
def test_an_interrupted_simulation_goes_on_as_it_was_asked_for(tmp_path, monkeypatch, capsys, given):
    monkeypatch.chdir(tmp_path)
    record = tmp_path / "frames" / data.RECORD
    prepare.simulate(3, record.parent, 32, 7)
    whole = json.loads(record.read_text())
    record.write_text(json.dumps(whole | dict(complete=False, n_frames=None)))
    assert program.main([*(f"--{name}={value}" for name, value in given.items()), "--every_nth=2"]) == 2
    assert "3 frames and a clip takes 5" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "logs").exists()
    assert json.loads(record.read_text()) == whole | dict(origin=whole["origin"] | given)


@pytest.mark.parametrize("extra, complaint", [
    (["--resume=."], ". holds no training state to resume from"),
    (["--every_nth=30"], "40 frames and a clip takes 61"),
    (["--data_dir=image.png"], "image.png")])
def test_what_cannot_begin_is_told_in_a_sentence(footage, flags, monkeypatch, capsys, extra, complaint):
    monkeypatch.chdir(footage)
    (footage / "image.png").write_bytes(b"")
    assert program.main([*(flags if "--resume" not in extra[0] else []), *extra]) == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]
    assert not (footage / "logs").exists()


def test_two_runs_of_one_second_have_folders_of_their_own(tmp_path):
    runs = {train.new_run(tmp_path) for _ in range(5)}
    assert len(runs) == 5
    assert all(run.is_dir() for run in runs)


@pytest.mark.usefixtures("eagerly")
def test_a_state_of_other_networks_is_refused(trained):
    run = trained(steps=1)
    with pytest.raises(UserError, match=r"state\.1\.h5 .*config.json"):
        trained(run, steps=2, rnn_units=9)


@pytest.mark.usefixtures("eagerly")
@pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="JAX is not installed")
def test_a_run_on_jax_resumes_and_plays_on_tensorflow(footage, flags, trained):
    script = ("import sys, learn; status = learn.main(sys.argv[1:]); "
              "assert 'tensorflow' not in sys.modules; sys.exit(status)")
    env = os.environ | dict(KERAS_BACKEND="jax", JAX_DISABLE_MOST_OPTIMIZATIONS="1", PYTHONPATH=str(ROOT))
    subprocess.run([sys.executable, "-c", script, *flags, "--steps=20", "--save_every=10"], check=True, cwd=footage,
                   env=env)
    run = run_of(footage)
    assert names(run) == ["config.json", "state.10.h5", "state.20.h5", "weights.10.weights.h5", "weights.20.weights.h5"]
    assert len(events(run).Scalars("loss/g_adv")) == 2
    trained(run, **vars(Config.load(run / "config.json")) | dict(steps=23))
    assert step_of(run) == 23
    assert program.main(["--mode=video", f"--weights={run / 'weights.20'}", "--duration=0.1"]) == 0
    with Image.open("out.png") as video:
        assert video.n_frames == 3
