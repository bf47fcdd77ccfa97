"""Generate frames from trained weights: endless videos, or loops."""

import itertools
import math

import numpy as np
from keras import ops

import checkpoints
from backend import compiled
from config import Config
from models import VideoModel, interpolate, slerp

CROSSFADE_STEPS = 25  # time steps over which one video turns into another, or a loop's end into its beginning
BATCH_PIXELS = 2**18  # drawn at once, at most
BURN_IN_STEPS = 50  # before the first frame: few of the latents in training are of chains that have just begun


def load(prefix):
    """(config, model): the VideoModel with the weights of `prefix`, built as the config.json beside them says.

    Raises:
        UserError: a file is missing or damaged, or the weights belong to another config.
    """
    config = Config.load(prefix.with_name("config.json")).at_play()
    model = VideoModel(config)
    checkpoints.load_weights(model, prefix)
    return config, model


class Sampler:
    """`n` independent videos of one model, generated while they are played.

    Each has a random stream of its own: video i of a seed is the same whatever `n` is.

    Args:
        prefix: of the weights.
        n: number of videos.
        seed: of the random streams.

    Raises:
        UserError: see `load`.
    """

    def __init__(self, prefix, n=1, seed=0):
        self.config, model = load(prefix)
        self.n = n
        self.streams = [np.random.Philox(key=[seed, i]) for i in range(n)]
        self.wanted = False  # whether new videos were asked for
        self.next_state = None  # the state of the videos that are being faded in
        self.faded = 0  # steps since that began
        transition, generator = model.transition, model.generator

        self.initial = transition.initial
        # [n, T, Z] normal numbers, state -> the latents [n, T, Z] of T steps, state after the last.
        self.roll = compiled(lambda *args: transition.roll(*args)[::2], transition)
        # [n, Z] normal numbers, state -> state one step later.
        self.step = compiled(lambda normal, state: tuple(transition(normal, state)[1]), transition)
        # Latents [n, T + 1, Z] -> latents [n, T, every_nth, Z].
        self.between = compiled(lambda z: interpolate(z[:, :-1], z[:, 1:], self.config.every_nth), transition)
        # Latents [N, Z] -> frames uint8 [N, H, W, 3].
        self.draw = compiled(lambda latents: to_frames(generator, latents), generator)

    def frames(self, steps=1):
        """Frames for ever, uint8 RGB [n, H, W, 3], `every_nth` of them to a time step.

        The frames of `steps` steps are decoded at once: more is faster, and `restart` takes effect later.
        """
        path = self.latents()
        last = next(path)
        while True:
            latents = [last, *itertools.islice(path, steps)]
            last = latents[-1]
            yield from self.decode(np.stack(latents, axis=1))

    def latents(self):
        """The latents [n, Z] of `frames`, a time step apart, for ever."""
        state = self.initial_state()
        latents = state[0]
        while True:
            yield ops.convert_to_numpy(latents)
            if self.wanted and not self.next_state:
                self.next_state, self.faded, self.wanted = self.initial_state(), 0, False
            state = self.step(self.normals(), state)
            latents = state[0]
            if self.next_state:
                self.next_state = self.step(self.normals(), self.next_state)
                self.faded += 1
                latents = slerp(latents, self.next_state[0], ease(self.faded / CROSSFADE_STEPS))
                if self.faded == CROSSFADE_STEPS:
                    state, self.next_state = self.next_state, None

    @property
    def steps_at_once(self):
        """Steps to decode at once where nobody waits for a frame."""
        return max(1, BATCH_PIXELS // (self.n * self.config.every_nth * self.config.img_size**2))

    def restart(self):
        """Fade the videos of `frames` into new ones, over CROSSFADE_STEPS steps, once a fade under way is over."""
        self.wanted = True

    def loop(self, steps):
        """The frames, as `frames` yields them, of a loop of `steps` time steps.

        Its last CROSSFADE_STEPS latents are interpolated, along the sphere, towards those that precede its first one:
        its end leads into its beginning.
        """
        fade = min(CROSSFADE_STEPS, steps)
        latents, _ = self.roll(self.normals(fade + steps), self.initial_state())
        latents = ops.convert_to_numpy(latents)
        before, path = latents[:, :fade], latents[:, fade:]
        share = ease(np.arange(1, fade + 1)[:, None] / fade)
        faded = ops.convert_to_numpy(slerp(path[:, steps - fade:], before, share))
        path = np.concatenate([path[:, :steps - fade], faded], axis=1)
        path = np.concatenate([path, path[:, :1]], axis=1)
        for start in range(0, steps, self.steps_at_once):
            yield from self.decode(path[:, start:start + self.steps_at_once + 1])

    def decode(self, path):
        """The frames uint8 [n, H, W, 3] along latents [n, T + 1, Z], T * every_nth of them."""
        latents = ops.convert_to_numpy(self.between(path)).reshape(self.n, -1, self.config.latent_size)
        latents = latents.swapaxes(0, 1)  # [T * every_nth, n, Z]
        size = self.n * self.config.img_size**2
        for part in np.array_split(latents, math.ceil(len(latents) / max(1, BATCH_PIXELS // size))):
            frames = ops.convert_to_numpy(self.draw(part.reshape(-1, self.config.latent_size)))
            yield from frames.reshape(len(part), self.n, *frames.shape[1:])

    def normals(self, *shape):
        """Normal numbers [n, *shape, Z], each video's from its own stream."""
        shape = *shape, self.config.latent_size
        return np.stack([normals(stream, math.prod(shape)).reshape(shape) for stream in self.streams])

    def initial_state(self):
        """The state (z [n, Z], m [n, H + Z]) of new videos, after the burn-in."""
        first = self.initial(self.normals())
        return self.roll(self.normals(BURN_IN_STEPS), first)[1]


def to_frames(generator, latents):
    """The frames uint8 [N, H, W, 3] of latents [N, Z]."""
    return ops.cast(ops.round(generator(latents, training=False) * 255), "uint8")


def normals(stream, n):
    """The next n normal numbers, float32, of a NumPy bit generator.

    By the transform of Box and Muller (https://doi.org/10.1214/aoms/1177706645), which web/src/normals.js repeats: a
    page shows the same video for the same seed, where latents have an even size.
    """
    uniform = (stream.random_raw(n + n % 2).reshape(-1, 2) >> np.uint64(11)) / 2**53
    radius, angle = np.sqrt(-2 * np.log1p(-uniform[:, 0])), 2 * np.pi * uniform[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()[:n].astype(np.float32)


def ease(share):
    """Map 0..1 to 0..1 with a slope of 0 at both ends."""
    return np.float32((1 - np.cos(np.pi * share)) / 2)


def tile(frames, rows):
    """Frames [N, H, W, 3] side by side in `rows` rows: [rows * H, N / rows * W, 3]."""
    n, height, width, _ = frames.shape
    grid = frames.reshape(rows, n // rows, height, width, 3)
    return grid.swapaxes(1, 2).reshape(rows * height, -1, 3)
