"""The three networks, in plain Keras, so that they run on any of its backends.

    Transition     state -> state       the lamp moves on
    Generator      state -> frame       the lamp is drawn
    Discriminator  clip -> logits       does it look and move like a real one?

The state of a lamp is a pair (z, h): z [B, Z] is the latent, what the lamp looks like, and h [B, H] is the
transition's memory of where it was going. Each z has mean 0 and standard deviation 1 over its own Z numbers: it
lies on a sphere, on which a normal vector of that length all but lies by itself. Because nothing is measured
across a batch, a lamp alone runs exactly as it does among others.
"""

import math
from contextlib import contextmanager
from itertools import pairwise

import keras
import numpy as np
from keras import layers, ops

DIFFERENCE_GAIN = 4.0  # brings a step's change of a frame, a few grey levels, near the frame's own scale
WAVER = 0.2  # deviation of a hand's speed, as a share of it
UNROLL = 8  # steps up to which time is unrolled; a loop in the graph takes as long to build as some dozen steps


def standardise(z):
    """z [..., Z] with mean 0 and standard deviation 1 over its last axis."""
    z = z - ops.mean(z, axis=-1, keepdims=True)
    return z * ops.rsqrt(ops.mean(ops.square(z), axis=-1, keepdims=True) + 1e-8)


def turn(start, end, share):
    """Latents [..., Z] on the way from `start` to `end`, along the sphere; `share` 0..1 of it is behind them.

    Spherical linear interpolation, Shoemake, "Animating rotation with quaternion curves", 1985.
    """
    cosine = ops.mean(start * end, axis=-1, keepdims=True)  # both have length sqrt(Z)
    angle = ops.arccos(ops.clip(cosine, -0.999, 0.999999))  # neither end of the range has a sine to divide by
    return standardise((ops.sin((1 - share) * angle) * start + ops.sin(share * angle) * end) / ops.sin(angle))


def interpolate(start, end, n):
    """n latents [..., n, Z] from `start` [..., Z] towards `end` [..., Z], at even steps along the sphere.

    The first is `start`; `end`, which begins the next stretch, is left out.
    """
    share = ops.arange(n, dtype=start.dtype)[:, None] / n
    return turn(start[..., None, :], end[..., None, :], share)


def small(deviation):
    """An initialiser of weights around 0."""
    return keras.initializers.RandomNormal(stddev=deviation)


def own_speeds(hands):
    """The speed of each of some hands, as a multiple of that of all: all different, so that they do not come back to
    the same places together.
    """
    return np.geomspace(0.87, 1.15, hands)


def speeds(shape, dtype=None):
    """Initial logarithms of speeds, a little slow: the GRU's changes come on top."""
    return ops.convert_to_tensor(np.log(0.87 * own_speeds(*shape)), dtype)


class Transition(keras.Model):
    """One step of the state: a GRU cell, and a dense layer that turns its memory into a change of the latent.

    With --pace the first half of z and the second are pairs, one hand of a clock each: by itself a hand turns at a
    speed of its own, and the GRU changes that by about as much. A thing led by such a hand goes its way, as wax that
    rises goes on to rise; led by numbers that wander, it loiters. Speeds waver, each as an Ornstein-Uhlenbeck process
    that forgets in about the time of a radian: else what was once would come again. The GRU knows how they do.

    A cell in the sense of keras.layers.RNN, whose input is the noise that stirs the lamp.
    """

    def __init__(self, config):
        super().__init__(name="transition")
        self.noise, self.turns = config.noise, config.pace > 0
        self.hands = config.latent_size // 2 if self.turns else 0
        self.state_size = (config.latent_size, config.rnn_units + self.hands)  # the memory ends with how hands waver
        self.cell = layers.GRUCell(config.rnn_units, name="cell")
        # A new lamp moves slowly: what turns fast at first is what the generator then learns not to draw.
        self.change = layers.Dense(config.latent_size, kernel_initializer=small(0.03 if self.turns else 0.01),
                                   name="change")
        self.cell.build((None, config.latent_size + self.hands))
        self.change.build((None, config.rnn_units))
        if self.turns:  # the unit of speed, in radians a step, and the logarithms of speeds: so all learn at one rate
            self.pace = self.add_weight(shape=(), initializer="ones", trainable=False, name="pace")
            self.speed = self.add_weight(shape=(self.hands,), initializer=speeds, name="speed")
        self.built = True

    def begin_with(self, share):
        """Let hands turn so that in a step a state gets `share` of the way to independent ones: 1 - cos of the angle is
        its square.
        """
        if self.turns:
            self.pace.assign(math.acos(1 - share**2))

    def initial(self, normal):
        """The state (z, h) of new lamps, from normal numbers [B, Z]."""
        return standardise(normal), ops.zeros((ops.shape(normal)[0], self.state_size[1]), normal.dtype)

    def call(self, normal, state):
        """One step on from state (z [B, Z], h [B, H]), stirred by normal numbers [B, Z].

        Returns (output, state): the output [B, Z], which training asks to be normally distributed, and the next
        state, whose z is the output standardised. The weights of change and noise keep N(0, I) what it is.
        """
        z, h = state
        if self.turns:
            h, waver = ops.split(h, [self.state_size[1] - self.hands], axis=-1)
            if self.noise:
                keep = ops.exp(-self.pace)
                waver = keep * waver + ops.sqrt(1 - keep**2) * normal[:, :self.hands]
            h, _ = self.cell(ops.concatenate([z, waver], axis=-1), h)
            z = self.turned(z, waver) + self.pace * self.change(h)
            h = ops.concatenate([h, waver], axis=-1)
        else:
            h, _ = self.cell(z, h)
            z = z + self.change(h)
        output = math.sqrt(1 - self.noise**2) * z + self.noise * normal
        return output, (standardise(output), h)

    def turned(self, z, waver):
        """z [B, Z] with each hand a step on, at a speed that wavers by normal numbers [B, Z / 2]."""
        angle = self.pace * ops.exp(self.speed) * (1 + WAVER * waver)
        cosine, sine = ops.cos(angle), ops.sin(angle)
        first, second = ops.split(z, 2, axis=-1)
        return ops.concatenate([cosine * first - sine * second, sine * first + cosine * second], axis=-1)

    def roll(self, normals, state):
        """T steps on from `state`, stirred by normals [B, T, Z].

        Returns (latents, outputs, state): latents [B, T, Z] are the states passed through, the given one first;
        outputs [B, T, Z] are those of the T steps; the state is the one after the last.
        """
        first = state[0]
        rnn = layers.RNN(self, return_sequences=True, return_state=True, unroll=normals.shape[1] <= UNROLL)
        outputs, *state = rnn(normals, tuple(state))
        latents = ops.concatenate([first[:, None], standardise(outputs[:, :-1])], axis=1)
        return latents, outputs, tuple(state)


@contextmanager
def computing(config):
    """Build layers that compute in --precision; their weights are float32 all the same."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if config.precision == "float32" else f"mixed_{config.precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def batch_norm(config, **options):
    """A batch norm over all devices of a run, however many."""
    return layers.BatchNormalization(synchronized=config.distribute != "none", **options)


def stages(config):
    """Channels of the convolutions at img_size / 2, / 4 ... down to 4 pixels: width, doubled up to eightfold."""
    return [min(config.width * 2**i, config.width * 8) for i in range(int(math.log2(config.img_size)) - 2)]


class Generator(keras.Sequential):
    """Latents [B, Z] -> frames [B, img_size, img_size, 3] in 0..1, by convolutions alone (Radford et al. 2016).

    With `bilinear` upsampling, pixels are doubled along straight lines between convolutions: what is drawn is then an
    edge in a smooth field, without a checkerboard. With `coordinates`, each convolution is told where it is (Liu et
    al., "An intriguing failing of convolutional neural networks and the CoordConv solution", 2018). With
    `generator_norm` "rms", each pixel's channels are normalised by themselves (Karras et al. 2018), so that a frame is
    drawn the same alone and among others, in training and in play.
    """

    def __init__(self, config):
        super().__init__([layers.Reshape((1, 1, config.latent_size))], name="generator")
        first, *others = reversed(stages(config))
        if config.upsampling == "bilinear":  # an outline finer than two pixels needs channels at full size
            others += [max(config.width // 2, 4)]
        with computing(config):
            self.add(layers.Conv2DTranspose(first, 4, use_bias=config.generator_norm != "batch"))
            self.activate(config)
            for channels in others:
                self.double(channels, config)
                self.activate(config)
        if config.upsampling == "bilinear":
            self.add(layers.Conv2D(3, 3, padding="same", dtype="float32"))
        else:
            self.add(layers.Conv2DTranspose(3, 4, strides=2, padding="same", dtype="float32"))
        self.locate(3, config, dtype="float32")
        if config.background:
            self.add(Background(config.still, name="background", dtype="float32"))
        self.add(layers.Activation("sigmoid", dtype="float32"))
        self.build((None, config.latent_size))

    def begin_with(self, mean, mask):
        """Draw on top of the mean frame, where the mask says that pixels change; see data.background."""
        self.get_layer("background").begin_with(mean, mask)

    def double(self, channels, config):
        """Add a convolution to `channels` of twice the height and width."""
        use_bias = config.generator_norm != "batch"  # which has one of its own
        if config.upsampling == "bilinear":  # convolved first, while there are few pixels
            self.add(layers.Conv2D(channels, 3, padding="same", use_bias=use_bias))
            self.locate(channels, config)
            self.add(layers.UpSampling2D(interpolation="bilinear"))
        else:
            self.add(layers.Conv2DTranspose(channels, 4, strides=2, padding="same", use_bias=use_bias))
            self.locate(channels, config)

    def locate(self, channels, config, **options):
        """Let the convolution to `channels` before this have seen where it is."""
        if config.coordinates:
            self.add(Coordinates(channels, **options))

    def activate(self, config):
        """Add a normalisation and a non-linearity."""
        # Batch norm with a short memory: before weights are saved the statistics are gathered anew.
        self.add(batch_norm(config, momentum=0.9) if config.generator_norm == "batch"
                 else layers.RMSNormalization())
        self.add(layers.LeakyReLU(0.2))


class Coordinates(layers.Layer):
    """Adds to features [B, H, W, C] a convolution of each pixel's place, -1..1 to the right and down.

    After a convolution this is the same as two channels more before it, but computed once and not for each frame.
    """

    def __init__(self, channels, **options):
        super().__init__(**options)
        self.convolve = layers.Conv2D(channels, 3, padding="same", use_bias=False, dtype=self.dtype_policy)

    def build(self, shape):
        _, height, width, _ = shape
        self.places = np.stack(np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height)), axis=-1)[None]
        self.convolve.build(self.places.shape)

    def call(self, x):
        return x + self.convolve(ops.convert_to_tensor(self.places, dtype=x.dtype))


class Background(layers.Layer):
    """Adds a picture to logits [B, H, W, 3]: where the camera stands still, the rest need only draw what moves.

    With `still` the rest draws nothing where nothing ever moves. The picture and what moves are not trained: the
    optimiser would leave grain in them.
    """

    def __init__(self, still, **options):
        super().__init__(**options)
        self.still = still

    def build(self, shape):
        _, height, width, channels = shape
        self.picture = self.add_weight(shape=(height, width, channels), initializer="zeros", trainable=False,
                                       name="picture")
        if self.still:
            self.mask = self.add_weight(shape=(height, width, 1), initializer="ones", trainable=False, name="mask")

    def call(self, x):
        return self.picture + (self.mask * x if self.still else x)

    def begin_with(self, mean, mask):
        """Take the mean frame [H, W, 3] in 0..1 and the mask of what moves [H, W, 1]."""
        self.picture.assign(logits(mean))
        if self.still:
            self.mask.assign(mask)


def logits(picture):
    """The logits of a picture in 0..1."""
    picture = ops.clip(picture, 0.01, 0.99)
    return ops.log(picture / (1 - picture))


class Discriminator(keras.Model):
    """Clips [B, T, img_size, img_size, 3] in 0..1 -> logits [B, L], high for real.

    Convolutions make features of each frame, a GRU reads the features in time. L is T with the logits of motion
    alone; with `frame_logits` each frame has a logit of its own too, and the GRU speaks from the second step on,
    when it has seen motion.
    """

    def __init__(self, config):
        super().__init__(name="discriminator")
        self.config = config
        with computing(config):
            look = [layer for i, channels in enumerate(stages(config)) for layer in self.halve(channels, config, i > 0)]
            look += [layers.Conv2D(config.features, 4, kernel_initializer="he_normal"), layers.LeakyReLU(0.2)]
        frame = layers.Input((config.img_size, config.img_size, 6 if config.differences else 3))
        self.look = keras.Sequential([frame, *look, layers.Flatten()], name="look")
        self.read = layers.GRU(config.rnn_units, return_sequences=True, unroll=config.clip_len <= UNROLL, name="read")
        use_bias = not config.relativistic  # in a difference of two logits it cancels
        self.judge_motion = layers.Dense(1, use_bias=use_bias, name="judge_motion")
        features = config.features + config.minibatch_std
        self.read.build((None, None, features))
        self.judge_motion.build((None, None, config.rnn_units))
        if config.frame_logits:
            self.judge_frame = layers.Dense(1, use_bias=use_bias, name="judge_frame")
            self.judge_frame.build((None, None, features))
        self.built = True

    def halve(self, channels, config, norm):
        """Layers that make `channels` of half the height and width."""
        norm &= config.batch_norm
        yield layers.Conv2D(channels, 4, strides=2, padding="same", use_bias=not norm, kernel_initializer="he_normal")
        if norm:
            yield batch_norm(config)
        yield layers.LeakyReLU(0.2)

    def call(self, clips, training=False):
        return self.judge(self.see(clips, training))

    def see(self, clips, training=False):
        """The features [B, T, F], float32, of each frame of clips [B, T, img_size, img_size, 3] in 0..1.

        This is where the work is, and each clip is seen by itself: a batch may be seen part by part.
        """
        frames = clips * 2 - 1
        if self.config.differences:
            steps = ops.unstack(frames, axis=1)  # the gradient of a slice would be a slow one
            change = ops.stack([after - before for before, after in pairwise([steps[0], *steps])], axis=1)
            frames = ops.concatenate([frames, DIFFERENCE_GAIN * change], axis=-1)
        batch, time, *shape = ops.shape(frames)
        features = self.look(ops.reshape(frames, (-1, *shape)), training=training)
        return ops.cast(ops.reshape(features, (batch, time, -1)), "float32")

    def judge(self, features):
        """The logits [B, L] of a batch of clips by their features [B, T, F]."""
        if self.config.minibatch_std:
            features = ops.concatenate([features, spread(features)], axis=-1)
        motion = self.judge_motion(self.read(features))[..., 0]
        if not self.config.frame_logits:
            return motion
        return ops.concatenate([self.judge_frame(features)[..., 0], motion[:, 1:]], axis=1)


def spread(features):
    """How much a batch's features [B, T, F] differ, one number a step, as a feature [B, T, 1] of every clip.

    The minibatch standard deviation of Karras et al. 2018, taken of the features of a frame.
    """
    deviation = ops.mean(ops.sqrt(ops.var(features, axis=0) + 1e-8), axis=-1)
    return ops.broadcast_to(deviation[None, :, None], (*ops.shape(features)[:2], 1))
