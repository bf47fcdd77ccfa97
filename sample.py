"""Trained weights -> an endless iterator of frames, or a film that is its own sequel."""

import itertools
import math

import numpy as np
import tensorflow as tf

import checkpoints
from config import Config
from models import Generator, Transition, interpolate, turn

MELT = 25  # steps over which a lamp turns into another, or the end of a looping film into its beginning
BATCH = 2**18  # pixels that are drawn at once in a film
BURN_IN = 50  # steps of the latent alone before the first frame, to get from fresh noise into the film


def load(prefix):
    """The networks saved under `prefix`, built as the config.json beside them says: (config, generator, transition).

    Raises:
        UserError: a file is missing or broken, or the weights belong to another config.
    """
    config = Config.load(prefix.with_name("config.json")).at_play()
    generator, transition = Generator(config), Transition(config)
    checkpoints.read(tf.train.Checkpoint(generator=generator, transition=transition), prefix)
    return config, generator, transition


class Lamps:
    """Independent lamps on their way through the states, drawn as they are played.

    A lamp is known by `seed` and its number: lamp 0 is the same alone and among others.

    Raises:
        UserError: see `load`.
    """

    def __init__(self, prefix, lamps=1, seed=0):
        self.config, self.generator, self.transition = load(prefix)
        self.lamps = lamps
        self.newcomers = None  # the state of the lamps that those of `frames` are turning into
        self.streams = [np.random.Philox(key=[seed, lamp]) for lamp in range(lamps)]

    def frames(self, steps=1):
        """Frames for ever, uint8 RGB [lamps, img_size, img_size, 3], `every_nth` of them to a step of the model.

        Those of `steps` steps are drawn at once: more is faster, and `renew` is heeded later. Memory stays what it is,
        however long the film.
        """
        path = self.path()
        end = next(path)
        while True:
            latents = [end, *itertools.islice(path, steps)]
            end = latents[-1]
            yield from self.draw(tf.stack(latents, axis=1)).numpy()

    def path(self):
        """The latents [lamps, Z] that the lamps of `frames` pass through, for ever."""
        state = self.begin()
        latents = state[0]
        while True:
            yield latents
            state = self.move(self.normals(), state)
            latents = state[0]
            if self.newcomers:
                self.newcomers = self.move(self.normals(), self.newcomers)
                self.melted += 1
                latents = turn(latents, self.newcomers[0], eased(self.melted / MELT))
                if self.melted == MELT:
                    state, self.newcomers = self.newcomers, None

    @property
    def at_once(self):
        """Steps to draw at once where nobody waits for a frame."""
        return max(1, BATCH // (self.lamps * self.config.every_nth * self.config.img_size**2))

    def renew(self):
        """Let the lamps of `frames` turn into new ones, over MELT steps."""
        if not self.newcomers:
            self.newcomers, self.melted = self.begin(), 0

    def loop(self, steps):
        """The frames of a film of `steps` steps of the model that flows into its own beginning.

        Over the last MELT steps the states turn, along the sphere, from those after the film's last ones to those
        from before its first one: both are trajectories of the lamp, and so, nearly, is what lies between them.
        """
        melt = min(MELT, steps)
        latents, _ = self.roll(self.normals(melt + steps), self.begin())
        before, film = latents[:, :melt], latents[:, melt:]
        share = eased(tf.range(1.0, melt + 1)[:, None] / melt)
        film = tf.concat([film[:, :steps - melt], turn(film[:, steps - melt:], before, share), film[:, :1]], axis=1)
        for start in range(0, steps, self.at_once):
            yield from self.draw(film[:, start:start + self.at_once + 1]).numpy()

    def normals(self, *shape):
        """Normal numbers [lamps, *shape, Z], each lamp's from a stream of its own."""
        shape = *shape, self.config.latent_size
        return tf.stack([normals(stream, math.prod(shape)).reshape(shape) for stream in self.streams])

    def begin(self):
        """The state of new lamps after the burn-in."""
        first = self.transition.initial(self.normals())
        return self.roll(self.normals(BURN_IN), first)[1]

    @tf.function
    def roll(self, normals, state):
        """Steps on by normals [lamps, T, Z]: (latents [lamps, T, Z] passed through, the state after the last)."""
        latents, _, state = self.transition.roll(normals, state)
        return latents, state

    @tf.function
    def move(self, normal, state):
        """The state one step on."""
        return self.transition(normal, state)[1]

    @tf.function
    def draw(self, path):
        """The frames uint8 [T * every_nth, lamps, H, W, 3] along latents [lamps, T + 1, Z], as one batch."""
        latents = interpolate(path[:, :-1], path[:, 1:], self.config.every_nth)
        frames = draw(self.generator, tf.reshape(latents, (-1, self.config.latent_size)))
        return tf.experimental.numpy.moveaxis(tf.reshape(frames, (path.shape[0], -1, *frames.shape[1:])), 1, 0)


def draw(generator, latents):
    """The frames uint8 [N, H, W, 3] of latents [N, Z]."""
    return tf.cast(tf.round(generator(latents, training=False) * 255), tf.uint8)


def normals(stream, n):
    """The next n normal numbers of a stream of random bits, float32; by Box and Muller, 1958.

    Plain enough for the page that plays a lamp in a browser to make the same ones (web/src/normals.js).
    """
    uniform = (stream.random_raw(n + n % 2).reshape(-1, 2) >> np.uint64(11)) / 2**53
    radius, angle = np.sqrt(-2 * np.log1p(-uniform[:, 0])), 2 * np.pi * uniform[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()[:n].astype(np.float32)


def eased(share):
    """A way from 0 to 1 that starts and ends gently."""
    return (1 - tf.cos(math.pi * share)) / 2


def tiled(frames, rows):
    """Frames [N, H, W, 3] side by side in `rows` rows: [rows * H, N / rows * W, 3]."""
    n, height, width, _ = frames.shape
    grid = frames.reshape(rows, n // rows, height, width, 3)
    return grid.swapaxes(1, 2).reshape(rows * height, -1, 3)
