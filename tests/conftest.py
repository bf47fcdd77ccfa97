"""Fixtures that several test files share."""

import os
import shutil
import signal
import subprocess

import cv2
import numpy as np
import pytest
from PIL import Image

from helpers import STARTED

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as learn.py sets it: both then compute the same, to the bit
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # as `make test` runs a test on each of two cores
# A shell lets its background jobs ignore Ctrl-C, and what they start inherits that: here it is to be heard.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def nothing_started_goes_on():
    """End what a test that failed has started."""
    yield
    while STARTED:
        with STARTED.pop() as process:
            process.kill()


@pytest.fixture(scope="session")
def small():
    """Hyper-parameters of networks so small that they take no time."""
    return dict(img_size=16, width=8, latent_size=8, rnn_units=8, chains=8, batch_size=4, seq_len=4,
                clip_len=3, every_nth=2)


@pytest.fixture
def flags(small):
    """The same as flags, but for what is no flag; without a gradient penalty there is a third less graph to build."""
    names = "img_size", "width", "batch_size", "seq_len", "clip_len", "every_nth"
    return [f"--{name}={small[name]}" for name in names] + ["--gamma=0"]


@pytest.fixture
def eagerly():
    """Run what is compiled op by op: for a few steps this takes less time than to build the graph."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def at_once(monkeypatch):
    """Let the simulated lamp begin cold, where it does not matter what it shows: warming it up takes seconds."""
    monkeypatch.setattr("simulator.WARM_UP", 0)


@pytest.fixture
def footage(tmp_path):
    """A folder with 40 frames of a blob on its way up: 2 batches an epoch."""
    (tmp_path / "frames").mkdir()
    y, x = np.mgrid[:16, :16]
    for i in range(40):
        blob = np.exp(-((x - 8) ** 2 + (y - 16 + i % 20) ** 2) / 8)[..., None] * [255, 120, 40]
        Image.fromarray(blob.astype("uint8")).save(tmp_path / "frames" / f"image{i + 1:07}.png")
    return tmp_path


@pytest.fixture(scope="session")
def run(tmp_path_factory, small):
    """The folder logs/20220104-213105 of a run: small untrained weights, with contrast, of steps 9 and 10."""
    import keras

    import checkpoints
    from config import Config
    from models import VideoModel

    keras.utils.set_random_seed(0)
    config = Config(**small, noise=0.1)
    model = VideoModel(config)
    for variable in model.generator.trainable_variables[-3:]:  # of the colours, with the contrast of trained ones
        variable.assign(10 * variable)
    run = tmp_path_factory.mktemp("played") / "logs" / "20220104-213105"
    run.mkdir(parents=True)
    config.save(run / "config.json")
    for step in 9, 10:
        checkpoints.save_weights(model, run / f"weights.{step}")
    checkpoints.save_state(dict(step=1), run, 1)
    return run


@pytest.fixture(scope="session")
def display():
    """The name of an X display of its own, 1280x1024 pixels in 24 bits, without a window manager."""
    if not cv2.currentUIFramework():
        pytest.skip("this OpenCV was built without windows")
    for program in "Xvfb", "xdotool":
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    read, write = os.pipe()
    # -noreset: else the server starts over, deaf for a moment, whenever its last client goes.
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x1024x24", "-nolisten", "tcp", "-noreset"]
    server = subprocess.Popen(command, pass_fds=[write], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        with open(read) as pipe:
            number = pipe.readline().strip()  # Xvfb takes a free number and tells it once it is ready
        if not number:
            pytest.skip("Xvfb does not start")
        yield f":{number}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def copy(run, tmp_path):
    """The prefix of a copy of the run's weights, beside its config."""
    for name in "weights.10.weights.h5", "config.json":
        (tmp_path / name).write_bytes((run / name).read_bytes())
    return tmp_path / "weights.10"
