"""Functions that several test files share: learn.py in processes of its own, waiting, and footage."""

import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from files import STOPS

ROOT = Path(__file__).parent.parent
STARTED = []  # processes, which end with the test at the latest
PATIENCE = 300  # s that a busy machine may take for what an idle one does at once


def command(*flags):
    """The command line of learn.py with `flags`."""
    return [sys.executable, str(ROOT / "learn.py"), *map(str, flags)]


def learn(folder, *flags, timeout=PATIENCE, **options):
    """Run learn.py with `flags` in `folder` to its end."""
    return subprocess.run(command(*flags), cwd=folder, capture_output=True, text=True, timeout=timeout, **options)


def run_of(folder):
    """The one run in the logs of `folder`."""
    [run] = (folder / "logs").iterdir()
    return run


def hear_signals():
    """Let signals act that a process is started with ignored, as under nohup or in the background of a script."""
    for number in STOPS:
        signal.signal(number, signal.SIG_DFL)


def start(folder, *flags, preexec_fn=hear_signals, **options):
    """Start learn.py with `flags` in `folder`."""
    STARTED.append(subprocess.Popen(command(*flags), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                    text=True, preexec_fn=preexec_fn, **options))
    return STARTED[-1]


def until(found, process=None, seconds=PATIENCE):
    """What `found()` returns once it is true, while `process`, if given, runs."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert process is None or process.poll() is None, process.communicate()
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.01)
    return result


def discs(n, size, seed=0):
    """n frames uint8 [n, size, size, 3] of six bright discs that wander about: footage that takes no time to make."""
    rng = np.random.default_rng(seed)
    path = cv2.GaussianBlur(rng.standard_normal((n, 12)), (1, 181), sigmaX=1, sigmaY=30)
    place = (0.5 + 0.2 * path / path.std(0)).reshape(n, 6, 2)
    grid = (np.arange(size) + 0.5) / size
    frames = []
    for part in np.array_split(place.astype(np.float32), math.ceil(n / 500)):
        squares = (part[..., None] - grid.astype(np.float32)) ** 2  # [n, 6, 2, size]: of distances across and down
        distance = np.sqrt(squares[:, :, 1, :, None] + squares[:, :, 0, None]) - [[[0.06]], [[0.08]], [[0.1]]] * 2
        bright = 1 / (1 + np.exp(np.minimum(distance.min(1) * size / 0.35, 50)))
        frames.append((bright[..., None] * [220, 120, 60] + [20, 15, 40]).astype(np.uint8))
    return np.concatenate(frames)


def write_frames(folder, frames):
    """Write frames as the images that learn.py reads."""
    folder.mkdir()
    for i, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"image{i:05}.png"), frame[..., ::-1])
