"""Mutated inputs in number: frames, configs, weights, states, caches, frames.json, and command lines.

    python benchmarks/fuzz.py [CASES [SEED]]

Each case changes one file of a small run and reads it, or runs a command line, in this process. It ends as "done", is
"told" in a sentence, or goes wrong: "traceback", "hang", or "silent", frames that are others than before. Prints JSON.
"""

import argparse
import contextlib
import io
import json
import os
import random
import re
import signal
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3", "DISPLAY": ""}
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import cv2
import numpy as np

import checkpoints
import data
import learn

LIMIT = 300  # s, on a busy machine
SMALL = dict(img_size=16, width=4, batch_size=4, chains=8, latent_size=8, rnn_units=8, seq_len=4, clip_len=3,
             every_nth=2)
ODD = ["", "0", "-1", "1e999", "nan", "inf", "99999999999999999999", "x", "a\nb", "é", "\udce9", "-", "--", "true",
       "/dev/null", "n" * 300, "1x1", "0x0", "99999x1", "1,2,3,4", "-1,0,1,1", "[1]", "%s", "$(x)", "1_0"]
VALUES = [None, True, 0, -1, 10**30, 1e308, float("nan"), float("inf"), "", "x", "\0", "\ud800", [], [[]], {}, {"a": 1}]
TEXTS = [b"[" * 100_000, b'{"a":' * 100_000, b"", b"null", b"[]", b"{}", b"1", b'"x"', b"NaN"]


class Hang(BaseException):
    """A case takes longer than LIMIT; no Exception, which what is tested may catch."""


def outcome(work, right):
    """(kind of end, result) of a function, whose result `right` judges."""
    def late(*_):
        raise Hang

    out = io.StringIO()
    signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            result = work()
    except Hang:
        return "hang", out.getvalue()
    except BaseException as error:
        sentence = learn.explained(error, "train")
        return ("told" if sentence else "traceback"), sentence or traceback.format_exc()
    finally:
        signal.alarm(0)
    if type(result) is int and result:  # an exit status
        one = re.search(r"^learn\.py: [^\n]+\n\Z", out.getvalue(), re.M)
        return "told" if one and result == 2 else "traceback", out.getvalue()
    return "done" if right(result) else "silent", result


def mutated(content, rng):
    """Some bytes with a bit, a byte, a stretch or the end changed."""
    content, kind = bytearray(content), rng.randrange(6)
    at = rng.randrange(len(content))
    if kind == 0:
        del content[at:]
    elif kind == 1:
        content += rng.randbytes(rng.randrange(1, 50))
    elif kind == 2:
        del content[at:at + rng.randrange(1, 50)]
    elif kind == 3:
        content[at:at + rng.randrange(1, 50)] = rng.randbytes(rng.randrange(50))
    else:
        content[at] = content[at] ^ 1 << rng.randrange(8) if kind == 4 else rng.randrange(256)
    return bytes(content)


def mutated_json(content, rng):
    """A JSON object with a value, a key or its text changed."""
    kind, value = rng.randrange(4), json.loads(content)
    key = rng.choice(list(value))
    if kind < 2:
        return mutated(content, rng) if kind else rng.choice(TEXTS)
    changed = {name: old for name, old in value.items() if name != key}
    return json.dumps(changed if kind == 2 else changed | {key: rng.choice(VALUES)}).encode()


def command_line(rng):
    """A mode with some of its flags, most of their values odd."""
    mode = rng.choice([*learn.MODES, "dance"])
    known = [*learn.flags(mode)] if mode in learn.MODES else ["seed"]
    given = {name: rng.choice(ODD) for name in rng.sample(known, min(len(known), rng.randrange(1, 4)))}
    small = {name: value for name, value in SMALL.items() if name in known}
    usual = dict(train=small | dict(data_dir="frames"), video=dict(duration=0.1, out="o.gif"), live=dict(grid="0x0"),
                 simulate=dict(n_frames=2), eval=dict(steps=3000), prepare=dict(video="lamp.mp4", img_size=16),
                 export=dict(out="frames")).get(mode, {})
    return [f"--mode={mode}", *(f"--{name}={value}" for name, value in (usual | given).items())]


def main(cases, seed):
    """Run so many cases in the current folder, an empty one; prints how they ended, by kind, and those gone wrong."""
    with learn.quiet_imports():
        import train
        import video
        from models import VideoModel
    train.train = lambda *_: (None, None)  # command lines only begin what they ask for
    video.write = lambda frames, *_: next(frames) is None
    os.environ["XDG_CACHE_HOME"] = os.path.abspath("cache")
    rng, counts, wrong = random.Random(seed), Counter(), 0
    for folder in "frames", "run":
        os.mkdir(folder)
    for i, frame in enumerate(np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3), np.uint8)):
        cv2.imwrite(f"frames/{i:02}.{('png', 'jpg', 'webp')[i % 3]}", frame)
    record, config, weights, state = map(Path, (
        "frames/frames.json", "run/config.json", "run/weights.1.weights.h5", "run/state.1.h5"))
    record.write_text(json.dumps(dict(origin=dict(kind="video"), source="a video", fps=30, n_frames=40, complete=True)))
    learn.Config(**SMALL).save(config)
    model, tensors = VideoModel(learn.Config(**SMALL)), dict(step=np.int64(1), past=np.zeros((8, 9), np.float32))
    checkpoints.save_weights(model, "run/weights.1")
    checkpoints.save_state(tensors, "run", 1)

    def load():
        return np.load(data.load("frames", 16))

    whole = load()
    kinds = dict(  # the files to change, how, and what reads them
        png=(sorted(Path("frames").glob("*.png")), mutated, load),
        lossy=(sorted(Path("frames").glob("*.[jw]*")), mutated, load),
        record=([record], mutated_json, load),
        cache=([], lambda content, rng: mutated(content[:128], rng) + content[128:], load),
        config=([config], mutated_json, lambda: learn.Config.load(config)),
        weights=([weights], mutated, lambda: checkpoints.load_weights(model, "run/weights.1")),
        state=([state], mutated, lambda: checkpoints.load_state(state, tensors)),
        command=([config], lambda content, _: content, lambda: learn.main(argv)))
    for case in range(cases):
        kind = [*kinds][case % len(kinds)]
        files, mutate, read = kinds[kind]
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
            file = rng.choice(files or [data.load("frames", 16)])
        before, argv = file.read_bytes(), command_line(rng)
        file.write_bytes(mutate(before, rng))
        # JPEG, WebP and HDF5 have no checksums.
        right = (lambda frames: np.array_equal(frames, whole)) if kind in ("png", "record", "cache") else lambda _: True
        end, result = outcome(read, right)
        counts[f"{kind}: {end}"] += 1
        if end not in ("done", "told"):
            wrong += 1
            print(f"case {case}, {kind} {argv if kind == 'command' else file}: {result}"[-1500:], file=sys.stderr)
        file.write_bytes(before)
        if kind in ("png", "lossy"):
            os.utime(file, (case, case))  # as never before, so that no cache is of it
    print(json.dumps(dict(cases=cases, seed=seed, wrong=wrong, outcomes=dict(sorted(counts.items()))), indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", type=int, nargs="?", default=1000)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    given = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        main(**given)
