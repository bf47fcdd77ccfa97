"""What several tests share: a screen nobody looks at."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

# A shell lets its background jobs ignore Ctrl-C, and what they start inherits that: here it is to be heard.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent


def command(*flags):
    """The command line of learn.py with `flags`."""
    return [sys.executable, str(ROOT / "learn.py"), *map(str, flags)]


def learn(folder, *flags, timeout=120, **options):
    """Run learn.py with `flags` in `folder` to its end."""
    return subprocess.run(command(*flags), cwd=folder, capture_output=True, text=True, timeout=timeout, **options)


def start(folder, *flags, **options):
    """Start learn.py with `flags` in `folder`."""
    return subprocess.Popen(command(*flags), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            **options)


def until(found, process, seconds=90):
    """Wait until `found()` is true while `process` runs."""
    deadline = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def weights(prefix):
    """All numbers saved under `prefix`, by name."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "VARIABLE" in name}


@pytest.fixture(scope="session")
def small():
    """Hyper-parameters of networks so small that they take no time."""
    return dict(img_size=16, width=8, latent_size=8, rnn_units=8, features=8, chains=8, batch_size=4, seq_len=4,
                window=3, every_nth=2)


@pytest.fixture
def flags(small):
    return [f"--{name}={value}" for name, value in small.items()]


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
    """The folder logs/20220104-213105 of a run, with small weights, untrained but vivid, of epochs 9.5 and 10."""
    from config import Config
    from trainer import Trainer

    run = tmp_path_factory.mktemp("played") / "logs" / "20220104-213105"
    run.mkdir(parents=True)
    trainer = Trainer(Config(**small, noise=0.1))
    for transition in trainer.transition, trainer.average["transition"]:
        transition.begin_with(0.05)
    [*_, kernel] = [v for v in trainer.average["generator"].trainable_variables if v.path.endswith("kernel")]
    kernel.assign(10 * kernel)
    trainer.config.save(run / "config.json")
    trainer.save_weights(run, "9.5")
    trainer.save_weights(run, "10")
    trainer.save_state(run)
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
