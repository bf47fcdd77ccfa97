"""How fast a lamp plays: frames a second, and steps a second of the latent alone, in a process of its own.

    python benchmarks/play.py [--weights PATH] [--threads N]

Beside it the plain way: the same networks called one frame at a time, without tf.function. Prints JSON.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import checkpoints
from learn import hushed

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
    import tensorflow as tf

    import sample
    from models import interpolate

    lamps = sample.Sampler(prefix)
    config, live, film = lamps.config, lamps.frames(), lamps.frames(lamps.steps_at_once)
    wall = sample.Sampler(prefix, 12)
    many = wall.frames()
    eager = dict(state=lamps.initial_state())

    def plain():
        before = eager["state"][0]
        eager["state"] = lamps.transition(tf.random.normal((1, config.latent_size)), eager["state"])[1]
        for latent in tf.unstack(interpolate(before, eager["state"][0], config.every_nth), axis=1):
            sample.draw(lamps.generator, latent).numpy()

    def rolling(chains, steps=1000):
        normals = tf.random.normal((chains, steps, config.latent_size))
        state = lamps.transition.initial(normals[:, 0])
        return rate(lambda: lamps.roll(normals, state)[0].numpy(), steps)

    ahead = 20 * config.every_nth
    return dict(live=rate(lambda: list(itertools.islice(live, ahead)), ahead),
                film=rate(lambda: list(itertools.islice(film, ahead)), ahead),
                wall=rate(lambda: list(itertools.islice(many, config.every_nth)), 12 * config.every_nth),
                plain=rate(plain, config.every_nth), roll_one=rolling(1), roll_many=rolling(64))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights")
    parser.add_argument("--threads", type=int, default=0, help="of TensorFlow; 0: one for each core")
    flags = parser.parse_args()
    with hushed():
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(flags.threads)
        tf.config.threading.set_inter_op_parallelism_threads(flags.threads)
    print(json.dumps(measure(checkpoints.find_weights(flags.weights))))


if __name__ == "__main__":
    main()
