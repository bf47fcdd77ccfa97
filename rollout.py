"""Trained weights -> an endless iterator of frames."""

import numpy as np
import tensorflow as tf

import checkpoints
from config import Config
from models import Generator, Transition, interpolate

BURN_IN = 50  # steps of the latent alone before the first frame, to get from fresh noise into the film


def load(prefix):
    """The networks saved under `prefix`, built as the config.json beside them says: (config, generator, transition).

    Raises:
        UserError: a file is missing or broken, or the weights belong to another config.
    """
    config = Config.load(prefix.with_name("config.json"))
    generator, transition = Generator(config), Transition(config)
    checkpoints.read(tf.train.Checkpoint(generator=generator, transition=transition), prefix)
    return config, generator, transition


def frames(prefix, lamps=1, seed=0):
    """Frames of independent lamps for ever, `every_nth` of them to a step of the model.

    Yields uint8 RGB arrays [lamps, img_size, img_size, 3]. A lamp is known by `seed` and its number: lamp 0 is the
    same alone and among others. Memory stays what it is, however long the film.
    """
    config, generator, transition = load(prefix)
    streams = [np.random.default_rng([seed, lamp]) for lamp in range(lamps)]

    def normals(*shape):
        """Normal numbers [lamps, *shape, Z], each lamp's from a stream of its own."""
        return tf.stack([stream.standard_normal((*shape, config.latent_size), np.float32) for stream in streams])

    @tf.function
    def start(first, normals):
        """The state after the burn-in."""
        return transition.roll(normals, transition.initial(first))[2]

    @tf.function
    def advance(normal, state):
        """The frames [lamps, every_nth, H, W, 3] from `state` up to the next one, drawn as one batch; the next one."""
        _, following = transition(normal, state)
        latents = interpolate(state[0], following[0], config.every_nth)
        drawn = generator(tf.reshape(latents, (-1, config.latent_size)), training=False)
        drawn = tf.reshape(drawn, (lamps, config.every_nth, *drawn.shape[1:]))
        return tf.cast(tf.round(drawn * 255), tf.uint8), following

    state = start(normals(), normals(BURN_IN))
    while True:
        drawn, state = advance(normals(), state)
        yield from np.moveaxis(drawn.numpy(), 1, 0)
