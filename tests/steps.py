"""Training steps in a process of its own, on the backend that KERAS_BACKEND names, for the tests of gan.py.

    steps.py train CONFIG OUT STEPS [DEVICES]   what `trained` returns
    steps.py step CONFIG OUT START              what `step` returns, from the state and random numbers in START

CONFIG is JSON, OUT an .npz file to write.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from backend import compiled
from checkpoints import flatten, load_state
from config import Config
from gan import GAN, to_numpy


def clips(config, steps=1):
    """Random clips, uint8 [steps, B, T, H, W, 3]."""
    shape = steps, config.batch_size, config.clip_len, config.img_size, config.img_size, 3
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def trained(config, steps):
    """All that a run resumes from after some steps, by name, and the metrics [steps, M] of these."""
    gan = GAN(config)
    metrics, _ = gan.train(clips(config, steps)[:, gan.rows()], np.full(steps, 1e-3))
    return flatten(gan.resumable()) | dict(metrics=metrics)


def start(config, steps=2):
    """What `step` starts from: a state after some steps, in which no weight is 0, and the numbers of the next one."""
    gan = GAN(config)
    if steps:
        gan.train(clips(config, steps), np.full(steps, 1e-3))
    return gan.resumable() | dict(numbers=to_numpy(gan.random_numbers(gan.state["step"])))


def step(config, begun):
    """A step from the state and with the random numbers in `begun`: its gradients by all weights, g and d, the next
    states of chains, and its metrics, by name, each as one vector.
    """
    gan = GAN(config)
    gan.restore(begun)
    gan.optimise = lambda weights, gradients, *_: (weights, gradients)  # which are then in the place of the moments

    def updated(state):
        state, metrics = gan.update(state, clips(config)[0], 0.0, np.zeros(2, np.float32), begun["numbers"])
        return state["g_moments"], state["d_moments"], state["chains"], metrics

    found = to_numpy(compiled(updated, gan.video)(gan.state))
    return dict(zip(("g", "d", "chains", "metrics"), map(flat, found), strict=True))


def flat(arrays):
    """All numbers of some arrays as one vector."""
    return np.concatenate([np.ravel(array) for array in arrays])


if __name__ == "__main__":
    task, config, out, what, *devices = sys.argv[1:]
    config = Config(**json.loads(config))
    if devices and os.environ["KERAS_BACKEND"] == "tensorflow":
        import tensorflow as tf

        [cpu] = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(devices[0]))
    found = trained(config, int(what)) if task == "train" else step(config, load_state(what, start(config, 0)))
    np.savez(out, **found, tensorflow="tensorflow" in sys.modules)
