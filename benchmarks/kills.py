"""Kill, at random moments, processes of every mode that writes files but eval, and see what is left.

    python benchmarks/kills.py [KILLS [SEED]]

Whatever stands under a final name has to be whole: states and weights load, videos hold all their frames, a folder that
frames.json calls complete holds as many as it says, and all of them are read. Hidden files of killed processes may stay
until the next run. Processes are forked from this one, TensorFlow imported and not yet begun. Prints JSON.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import av
import onnxruntime

import checkpoints
import data
import export  # noqa: F401
import learn
import prepare  # noqa: F401
import sample  # noqa: F401
import simulator  # noqa: F401
import train  # noqa: F401
import video  # noqa: F401

SMALL = ["--img_size=16", "--width=4", "--batch_size=4", "--seq_len=4", "--clip_len=3", "--every_nth=2"]
JOBS = dict(
    prepare=["--mode=prepare", "--video=lamp.mp4", "--data_dir=prepared", "--img_size=64", "--overwrite"],
    simulate=["--mode=simulate", "--data_dir=simulated", "--img_size=32", "--n_frames=200", "--overwrite"],
    train=["--data_dir=frames", *SMALL, "--steps=20", "--save_every=1"],
    resume=["--resume=run", "--steps=1000000", "--save_every=1"],
    video=["--mode=video", "--weights=run", "--duration=20", "--scale=4", "--out=out.mp4", "--overwrite"],
    export=["--mode=export", "--weights=run", "--out=page"],
)


def begin(flags):
    """The process id of a process of learn.py, its output thrown away."""
    if pid := os.fork():
        return pid
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nowhere, number)
    try:
        os._exit(learn.main(flags))
    finally:
        os._exit(1)


def ended(pid, seconds):
    """The exit status of a process that ends within so many seconds; else None."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (status := os.waitpid(pid, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(status[1])
        time.sleep(0.02)
    return None


FRAMES = 600  # of the videos


def check():
    """What is on the disk and not whole, as sentences."""
    wrong = []
    for file in Path(".").glob("**/[!.]*.h5"):
        try:
            checkpoints.arrays(file)
        except checkpoints.BROKEN as error:
            wrong.append(f"{file}: {error}")
    for file in Path(".").glob("**/config.json"):
        learn.Config.load(file)
    for file in Path(".").glob("[!.]*.mp4"):
        with av.open(file) as container:
            if sum(1 for _ in container.decode(video=0)) != FRAMES:
                wrong.append(f"{file} is short")
    page = Path("page")
    for file in page.glob("*.onnx"):
        onnxruntime.InferenceSession(file)
    if (page / "model.json").exists() and len(json.loads((page / "model.json").read_text())) != 7:
        wrong.append("model.json is short")
    for folder in "prepared", "simulated":
        noted, images = data.record(folder), data.images(folder)
        if images and not noted:
            wrong.append(f"{folder} has no record")
        if noted.get("complete") and len(images) != noted["n_frames"]:
            wrong.append(f"{folder} is marked complete and is not")
        for image in images:
            data.decode(image)
    return wrong


def main(kills, seed):
    """Kill so many processes, each job in turn, in the current folder; prints what was found."""
    rng, counts, wrong, usual = random.Random(seed), Counter(), [], {}
    assert ended(begin(["--mode=simulate", "--n_frames=60", "--img_size=16"]), 600) == 0
    assert ended(begin(["--data_dir=frames", *SMALL, "--steps=1"]), 600) == 0
    next(Path("logs").iterdir()).rename("run")
    for name in "lamp", "out":
        assert ended(begin([*JOBS["video"], f"--out={name}.mp4"]), 600) == 0
    print("begun", file=sys.stderr, flush=True)
    killed = 0
    for i in itertools.count():
        if killed == kills:
            break
        job = [*JOBS][i % len(JOBS)]
        begun = time.monotonic()
        pid = begin(JOBS[job])
        first = job not in usual and job != "resume"  # how long it takes here
        status = ended(pid, 600 if first else rng.uniform(0, 1.1) * usual["train" if job == "resume" else job])
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            killed += 1
        usual.setdefault(job, time.monotonic() - begun)
        counts[f"{job}: {'killed' if status is None else 'ended with ' + str(status)}"] += 1
        wrong += [f"{i}, {job}: {sentence}" for sentence in check()]
        print(i, dict(counts), wrong[-3:], file=sys.stderr, flush=True)
    print(json.dumps(dict(kills=kills, seed=seed, lost=wrong, outcomes=dict(sorted(counts.items()))), indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kills", type=int, nargs="?", default=200)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    given = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        main(**given)
