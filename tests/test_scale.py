"""Larger, leaner, on several devices: whatever shares the work, what is learned is the same."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import checkpoints
import export
from config import Config
from distribution import check_cluster
from files import UserError
from helpers import ROOT, learn, start, until
from sharing import trained
from trainer import METRICS, Trainer, check_parts

STEPS = 5
BATCH_NORM = dict(generator_norm="batch", upsampling="transposed", batch_norm=True, r1_gamma=0.0, r2_gamma=0.0)


def assert_same(ours, theirs, tolerance):
    assert set(ours) == set(theirs)
    for name in ours:
        if name == "metrics":  # the lengths of gradients are a mean over devices
            keep = [not metric.startswith("gradient") for metric in METRICS]
            np.testing.assert_allclose(ours[name][:, keep], theirs[name][:, keep], rtol=0.02, atol=0.02)
        else:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0.02, atol=0.02, err_msg=name)


@pytest.fixture(scope="module")
def plain(small):
    return trained(Config(**small, augment=True), STEPS)


@pytest.mark.parametrize("values", [dict(accumulate=2), dict(accumulate=4), dict(remat=True),
                                    dict(remat=True, accumulate=2)])
def test_less_memory_gives_the_same_update(small, plain, values):
    assert_same(trained(Config(**small, augment=True, **values), STEPS), plain, 2e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_learns_nearly_the_same(small, plain, precision):
    config = Config(**small, augment=True, precision=precision)
    some = 2  # a lamp of few steps is chaotic: what rounding does grows with each
    ours, theirs = trained(config, some)["metrics"], plain["metrics"][:some]
    np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=0.02)
    trainer = Trainer(config)
    networks = trainer.generator, trainer.transition, trainer.discriminator, *trainer.average.values()
    assert {weight.dtype for network in networks for weight in network.weights} == {"float32"}
    computing = {layer.compute_dtype for layer in trainer.generator.layers}
    assert precision in computing
    assert {layer.compute_dtype for layer in trainer.average["generator"].layers} == {"float32"}


def test_float16_outlives_a_gradient_it_cannot_hold(small):
    trainer = Trainer(Config(**small, precision="float16"))
    trainer.judge_optimizer.dynamic_scale.assign(1e30)
    before = trainer.discriminator.get_weights()
    real = np.zeros((4, 3, 16, 16, 3), np.uint8)
    trainer.train_step(real, 1e-3)
    for old, new in zip(before, trainer.discriminator.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert float(trainer.judge_optimizer.dynamic_scale) == pytest.approx(5e29)


@pytest.mark.parametrize("values", [dict(augment=True), dict(augment=True, accumulate=2), BATCH_NORM])
def test_two_devices_learn_what_one_does(small, tmp_path, plain, values):
    values = small | values
    shared = json.dumps(values | dict(distribute="mirrored"))
    subprocess.run([sys.executable, str(Path(__file__).with_name("sharing.py")), "2", str(STEPS),
                    str(tmp_path / "two.npz"), shared], check=True, timeout=300)
    one = trained(Config(**values), STEPS) if "batch_norm" in values else plain
    assert_same(dict(np.load(tmp_path / "two.npz")), one, 2e-5)


def test_a_batch_has_to_divide_among_devices_and_parts(small):
    with pytest.raises(UserError, match="--batch_size 4 does not divide into 6 parts"):
        check_parts(Config(**small, accumulate=2), 3)


@pytest.mark.parametrize("values", [dict(img_size=32), dict(img_size=128, batch_size=2, chains=2, width=4),
                                    dict(seq_len=200, window=3), dict(rnn_units=512), dict(batch_size=16, chains=16,
                                                                                           accumulate=8)])
def test_larger_models_train(small, values):
    config = Config(**(small | values))
    trainer = Trainer(config)
    shape = (config.batch_size, config.clip_len, config.img_size, config.img_size, 3)
    before = trainer.generator.get_weights()
    metrics, _ = trainer.train_step(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), 1e-3)
    assert np.isfinite(metrics).all()
    assert any((old != new).any() for old, new in zip(before, trainer.generator.get_weights(), strict=True))


def test_a_lamp_of_128_pixels_trains_resumes_plays_and_is_exported(footage, small, monkeypatch):
    # Of fewer channels the norm of a pixel can be all but 0, and what it is divided by then makes much of rounding.
    large = small | dict(img_size=128, width=4, batch_size=2, chains=2)
    flags = [f"--{name}={value}" for name, value in large.items()]
    assert learn(footage, *flags, "--epochs=1").returncode == 0
    [run] = (footage / "logs").iterdir()
    assert learn(footage, f"--resume={run.relative_to(footage)}", "--epochs=2").returncode == 0
    done = learn(footage, "--mode=video", f"--weights={run / 'weights.2'}", "--duration=0.2", "--out=out.png")
    assert done.returncode == 0, done.stderr
    with Image.open(footage / "out.png") as film:
        assert (film.size, film.n_frames) == ((128, 128), 6)
    monkeypatch.setattr(export, "PAGE", footage / "page")
    (footage / "page").mkdir()
    (footage / "page" / "index.html").touch()
    assert export.export(run / "weights.2", footage / "lamp") < 1e-4


@contextlib.contextmanager
def workers(folder, flags):
    """Two machines of one run, on this one, each with its flags."""
    with socket.socket() as one, socket.socket() as two:
        for s in one, two:
            s.bind(("127.0.0.1", 0))
        hosts = [f"127.0.0.1:{s.getsockname()[1]}" for s in (one, two)]
    processes = []
    for index in range(2):
        cluster = json.dumps(dict(cluster=dict(worker=hosts), task=dict(type="worker", index=index)))
        processes.append(start(folder, "--distribute=multiworker", *flags[index],
                               env=os.environ | dict(TF_CONFIG=cluster)))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def run_of_two(folder, flags):
    with workers(folder, (flags, flags)) as processes:
        for process in processes:
            _, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors


def test_runs_of_one_and_of_two_machines_continue_each_other(footage, flags):
    """Two epochs and two more, by one machine or by two: the same weights."""
    logs = footage / "logs"
    assert learn(footage, *flags, "--epochs=2").returncode == 0
    [one_one] = logs.iterdir()
    one_two = logs / "one_two"
    shutil.copytree(one_one, one_two)
    run_of_two(footage, [*flags, "--epochs=2"])
    [two_one] = set(logs.iterdir()) - {one_one, one_two}  # of two machines only the first writes
    assert learn(footage, "--resume", one_one, "--epochs=4").returncode == 0
    assert learn(footage, "--resume", two_one, "--epochs=4", "--distribute=none").returncode == 0
    run_of_two(footage, ["--resume", one_two, "--epochs=4"])
    assert json.loads((one_two / "config.json").read_text())["distribute"] == "multiworker"
    reference = checkpoints.arrays(one_one / "weights.4.weights.h5")
    for run in one_two, two_one:
        assert_same(checkpoints.arrays(run / "weights.4.weights.h5"), reference, 2e-5)


def test_a_machine_that_dies_ends_the_run_which_goes_on_from_its_checkpoint(footage, flags):
    flags = [*flags, "--epochs=100000", "--save_every=2"]
    with workers(footage, (flags, flags)) as (chief, other):
        until(lambda: list(footage.glob("logs/*/state.*.index")), chief, seconds=200)
        other.send_signal(signal.SIGKILL)
        _, errors = chief.communicate(timeout=60)
    assert chief.returncode == 2
    assert "another machine of this run is gone" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    [run] = (footage / "logs").iterdir()
    epoch = int(checkpoints.newest(run, "state").name.removeprefix("state.")) // 2
    done = learn(footage, f"--resume={run.relative_to(footage)}", "--distribute=none", f"--epochs={epoch + 1}")
    assert done.returncode == 0, done.stderr


def test_machines_that_were_started_differently_say_so(footage, flags):
    with workers(footage, ([*flags, "--noise=0.1"], [*flags, "--noise=0.2"])) as processes:
        for process in processes:
            _, errors = process.communicate(timeout=200)
            assert process.returncode == 2
            assert "not started alike" in errors.splitlines()[-1]


@pytest.mark.parametrize("value", [
    "", "{}", "[]", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
    '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}'])
def test_says_what_tf_config_has_to_hold(value):
    with pytest.raises(UserError, match="TF_CONFIG"):
        check_cluster(value)


def test_the_benchmark_compares_the_same_work(small):
    """The plain way, unrolled in time, has the convolutions and matrix products of ours."""
    flags = [f"--{name}={value}" for name, value in small.items()]
    flags += ["--preset=original", "--steps=1"]
    ours, plain = (json.loads(subprocess.run([sys.executable, str(ROOT / "benchmarks" / "step.py"), *flags, *unrolled],
                                             check=True, capture_output=True, text=True).stdout)
                   for unrolled in ([], ["--unrolled"]))
    assert ours["gflop"] == pytest.approx(plain["gflop"], rel=0.02)
    assert len(ours["steps"]) == 1
    assert 0.1 < ours["memory"] < 4
