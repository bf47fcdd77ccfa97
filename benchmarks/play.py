"""How fast weights play: frames a second, and steps a second of the latent alone, in a process of its own.

    python benchmarks/play.py [--weights PATH] [--threads N]

Beside it the plain way: the same networks called one frame at a time, not compiled. Prints JSON.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import checkpoints
from learn import quiet_imports

SECONDS = 5  # that each figure is measured for


def rate(work, per_call):
    """Units a second, where each call of `work` makes `per_call` of them; the best of three."""
    work()
    best = 0
    for _ in range(3):
        calls, begun = 0, time.perf_counter()
        while (passed := time.perf_counter() - begun) < SECONDS / 3:
            work()
            calls += 1
        best = max(best, calls * per_call / passed)
    return best


def measure(prefix):
    """The figures, by name."""
    import numpy as np
    from keras import ops

    import sample
    from models import interpolate

    config, model = sample.load(prefix)
    one, twelve = sample.Sampler(prefix), sample.Sampler(prefix, 12)
    live, video, grid = one.frames(), one.frames(one.steps_at_once), twelve.frames()
    uncompiled = dict(state=one.initial_state())

    def plain():
        before = uncompiled["state"][0]
        uncompiled["state"] = model.transition(one.normals(), uncompiled["state"])[1]
        for latent in ops.unstack(interpolate(before, uncompiled["state"][0], config.every_nth), axis=1):
            ops.convert_to_numpy(sample.to_frames(model.generator, latent))

    def rolling(chains, steps=1000):
        normals = np.random.default_rng(0).standard_normal((chains, steps, config.latent_size), np.float32)
        state = one.initial(normals[:, 0])
        return rate(lambda: ops.convert_to_numpy(one.roll(normals, state)[0]), steps)

    ahead = 20 * config.every_nth
    return dict(live=rate(lambda: list(itertools.islice(live, ahead)), ahead),
                video=rate(lambda: list(itertools.islice(video, ahead)), ahead),
                grid=rate(lambda: list(itertools.islice(grid, config.every_nth)), 12 * config.every_nth),
                plain=rate(plain, config.every_nth), roll_one=rolling(1), roll_many=rolling(64))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights")
    parser.add_argument("--threads", type=int, default=0, help="of TensorFlow; 0: one for each core")
    flags = parser.parse_args()
    with quiet_imports():
        import keras

        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            tf.config.threading.set_intra_op_parallelism_threads(flags.threads)
            tf.config.threading.set_inter_op_parallelism_threads(flags.threads)
    print(json.dumps(measure(checkpoints.find_weights(flags.weights))))


if __name__ == "__main__":
    main()
