"""The three networks, in plain Keras, so that they run on any of its backends.

    Transition     state -> state       one step in time
    Generator      latent -> frame
    Discriminator  clip -> logits       real or drawn, at each step

The state is a pair (z, m): the latent z [B, Z], which the generator draws, and the transition's memory m [B, H + Z].
Each z is standardised to mean 0 and standard deviation 1 over its own Z numbers, so it lies on a sphere of radius
sqrt(Z), near which nearly all of N(0, I) lies. No statistic of latents is taken across a batch, so a chain runs the
same alone and among others.
"""

import math
from contextlib import contextmanager
from itertools import pairwise

import keras
import numpy as np
from keras import layers, ops

keras.config.set_image_data_format("channels_last")  # whatever ~/.keras/keras.json says, here and below
keras.config.set_floatx("float32")

DIFFERENCE_GAIN = 4.0  # scales the difference of two frames, a few grey levels, to about the scale of a frame
MAP_SIZE = 16  # pixels of the feature maps that the modern generator makes of a latent, by a linear map
NOISE_DECAY = 0.9  # of the moving average that the noise is, a step
UNROLL = 8  # steps up to which a recurrence is unrolled; building a loop costs as much as unrolling a dozen steps


def standardise(z):
    """z [..., Z] with mean 0 and standard deviation 1 over its last axis."""
    z = z - ops.mean(z, axis=-1, keepdims=True)
    return z * ops.rsqrt(ops.mean(ops.square(z), axis=-1, keepdims=True) + 1e-8)


def slerp(start, end, share):
    """Spherical linear interpolation of latents [..., Z] from `start` (`share` 0) to `end` (`share` 1).

    Shoemake, "Animating rotation with quaternion curves", 1985, https://doi.org/10.1145/325334.325242
    """
    cosine = ops.mean(start * end, axis=-1, keepdims=True)  # both have length sqrt(Z)
    angle = ops.arccos(ops.clip(cosine, -0.999, 0.999999))  # at -1 and 1 the sine below is 0
    return standardise((ops.sin((1 - share) * angle) * start + ops.sin(share * angle) * end) / ops.sin(angle))


def interpolate(start, end, n):
    """n latents [..., n, Z] at even steps along the sphere from `start` [..., Z] to `end` [..., Z], not included."""
    share = ops.arange(n, dtype=start.dtype)[:, None] / n
    return slerp(start[..., None, :], end[..., None, :], share)


class Transition(keras.Model):
    """One step of the state: a GRU cell, a dense layer from its hidden state to a change of the latent, and noise.

        h' = GRU(z, h),  e' = r e + (1 - r) n,  n ~ N(0, I)
        o  = sqrt(1 - s^2) (z + change(h')) + s e'
        z' = standardise(o)

    s = noise, r = NOISE_DECAY. The memory m is h and e side by side. The noise e, correlated over 1 / (1 - r) steps, is
    a discrete Ornstein-Uhlenbeck process; over many steps it moves the latent as far as n would. A cell in the sense of
    keras.layers.RNN, whose input is n.
    """

    def __init__(self, config):
        super().__init__(name="transition")
        self.noise, self.state_size = config.noise, (config.latent_size, config.rnn_units + config.latent_size)
        self.cell = layers.GRUCell(config.rnn_units, name="cell")
        small = keras.initializers.RandomNormal(stddev=0.01)  # slow at first
        self.change = layers.Dense(config.latent_size, kernel_initializer=small, name="change")
        self.cell.build((None, config.latent_size))
        self.change.build((None, config.rnn_units))
        self.built = True

    def initial(self, normal):
        """The state (z, m) of new chains, from normal numbers [B, Z]."""
        return standardise(normal), ops.zeros((normal.shape[0], self.state_size[1]), normal.dtype)

    def call(self, normal, state):
        """One step from state (z [B, Z], m [B, H + Z]) with the normal numbers `normal` [B, Z].

        Returns (output, state): the output [B, Z], which the normality penalty is on, and the next state, whose z is
        the output standardised.
        """
        z, memory = state
        h, e = memory[:, :self.cell.units], memory[:, self.cell.units:]
        h, _ = self.cell(z, h)
        e = NOISE_DECAY * e + (1 - NOISE_DECAY) * normal
        output = math.sqrt(1 - self.noise**2) * (z + self.change(h)) + self.noise * e
        return output, [standardise(output), ops.concatenate([h, e], axis=1)]  # a list, as layers.RNN has it on JAX

    def roll(self, normals, state):
        """T steps from `state` with the normal numbers `normals` [B, T, Z].

        Returns (latents, outputs, state): latents [B, T, Z] are those before each step, the given one first; outputs
        [B, T, Z] are those of the T steps; the state is the one after the last.
        """
        first = state[0]
        rnn = layers.RNN(self, return_sequences=True, return_state=True, unroll=normals.shape[1] <= UNROLL)
        outputs, *state = rnn(normals, tuple(state))
        latents = ops.concatenate([first[:, None], standardise(outputs[:, :-1])], axis=1)
        return latents, outputs, tuple(state)


@contextmanager
def precision_of(config):
    """Build layers that compute in --precision; their weights are float32 all the same."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if config.precision == "float32" else f"mixed_{config.precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def channels(config):
    """Channels of the convolutions at img_size / 2, / 4 ... down to 4 pixels: width, doubled up to eightfold."""
    return [min(config.width * 2**i, config.width * 8) for i in range(int(math.log2(config.img_size)) - 2)]


class Generator(keras.Sequential):
    """Latents [B, Z] -> frames [B, img_size, img_size, 3] in 0..1, by convolutions.

    `original`: a DCGAN, transposed convolutions and batch norm (Radford et al. 2016, https://arxiv.org/abs/1511.06434).
    `modern`: a linear map from the latent to feature maps of MAP_SIZE pixels, or of half a frame's where these are
    fewer, then bilinear upsampling between convolutions, and RMS normalisation of each pixel's channels, so that a
    frame is drawn the same alone and in a batch.
    """

    def __init__(self, config):
        outputs = 3 + config.background  # colours, and the gate that Background takes
        with precision_of(config):
            if config.arch == "original":
                stack = [*transposed(*reversed(channels(config)), outputs=outputs)]
            else:
                size = min(MAP_SIZE, config.img_size // 2)
                kept = channels(config)[:int(math.log2(config.img_size // size))]  # down to that size
                stack = [*bilinear(size, *reversed(kept), max(config.width // 2, 4), outputs=outputs)]
        if config.background:
            stack.append(Background(name="background", dtype="float32"))
        super().__init__([layers.Input((config.latent_size,)), layers.Reshape((1, 1, config.latent_size)), *stack,
                          layers.Activation("sigmoid", dtype="float32")], name="generator")


def transposed(first, *others, outputs):
    """The layers of the original, up to `outputs` logits a pixel."""
    for channels, stride, padding in [(first, 1, "valid"), *((channels, 2, "same") for channels in others)]:
        yield layers.Conv2DTranspose(channels, 4, strides=stride, padding=padding, use_bias=False)
        yield layers.BatchNormalization(momentum=0.9)  # statistics are gathered anew before weights are saved
        yield layers.LeakyReLU(0.2)
    yield layers.Conv2DTranspose(outputs, 4, strides=2, padding="same", dtype="float32")


def bilinear(size, first, *others, outputs):
    """The layers of the modern architecture, from maps of `size` pixels to `outputs` logits a pixel."""
    yield layers.Conv2DTranspose(first, size)  # of one pixel: each number of the latent adds its own map
    for channels in others:
        yield layers.RMSNormalization()
        yield layers.LeakyReLU(0.2)
        yield layers.Conv2D(channels, 3, padding="same")  # before the upsampling, while there are few pixels
        yield layers.UpSampling2D(interpolation="bilinear")
    yield layers.RMSNormalization()
    yield layers.LeakyReLU(0.2)
    yield layers.Conv2D(outputs, 3, padding="same", dtype="float32")


class Background(layers.Layer):
    """Logits y and gates g, [B, H, W, 3 + 1] -> b + mask sigmoid(g) y, where b are the logits of the mean frame.

    The mask is 0 at pixels that never change; the gate says where a frame differs from the mean one. A form, on logits,
    of the two streams of Vondrick et al. 2016, https://arxiv.org/abs/1609.02612. Mean frame and mask are not trained:
    the optimiser would leave grain in them.
    """

    def build(self, shape):
        _, height, width, _ = shape
        self.mean = self.add_weight(shape=(height, width, 3), initializer="zeros", trainable=False, name="mean")
        self.mask = self.add_weight(shape=(height, width, 1), initializer="ones", trainable=False, name="mask")

    def call(self, logits_and_gate):
        logits, gate = ops.split(logits_and_gate, [3], axis=-1)  # the gradient of slices would cost more
        return self.mean + self.mask * ops.sigmoid(gate) * logits

    def init_from_stats(self, mean, mask):
        """Take the mean frame [H, W, 3] in 0..1 and the mask [H, W, 1] in 0..1.

        The mean is kept from 0 and 1, whose logits are infinite: by 0.001, which rounds to the same grey level, and by
        0.01 where pixels change, as a sigmoid further out has next to no gradient.
        """
        least = 0.001 + 0.009 * mask
        mean = np.clip(mean, least, 1 - least)
        self.mean.assign(np.log(mean / (1 - mean)))
        self.mask.assign(mask)


class VideoModel(keras.Model):
    """What plays: a generator and a transition, built as `config` says, to be saved and loaded as one."""

    def __init__(self, config):
        super().__init__(name="video")
        self.generator, self.transition = Generator(config), Transition(config)
        self.built = True


class Discriminator(keras.Model):
    """Clips [B, T, img_size, img_size, 3] in 0..1 -> logits [B, L], high for real.

    Convolutions encode each frame, a GRU reads the features in time. `original`: one logit a step, L = T. `modern`:
    each frame is concatenated with its difference to the one before, 0 for the first. There is a logit of each step's
    features, and from the second step on one of the GRU, which has read all steps so far: L = 2 T - 1.
    """

    def __init__(self, config):
        super().__init__(name="discriminator")
        self.modern, features = config.arch == "modern", 4 * config.width
        frame = layers.Input((config.img_size, config.img_size, 6 if self.modern else 3))
        with precision_of(config):
            convolutions = [layer for i, n in enumerate(channels(config))
                            for layer in downsample(n, batch_norm=i > 0 and not self.modern)]
            convolutions += [layers.Conv2D(features, 4, kernel_initializer="he_normal"), layers.LeakyReLU(0.2)]
        self.backbone = keras.Sequential([frame, *convolutions, layers.Flatten()], name="backbone")
        # Not by cuDNN, whose GRU has no second derivative for the gradient penalty.
        self.gru = layers.GRU(config.rnn_units, return_sequences=True, unroll=config.clip_len <= UNROLL,
                              use_cudnn=False, name="gru")
        use_bias = config.loss != "relativistic"  # in a difference of two logits it cancels
        self.clip_head = layers.Dense(1, use_bias=use_bias, name="clip_head")
        self.gru.build((None, None, features))
        self.clip_head.build((None, None, config.rnn_units))
        if self.modern:
            self.frame_head = layers.Dense(1, use_bias=use_bias, name="frame_head")
            self.frame_head.build((None, None, features))
        self.built = True

    def call(self, clips):
        frames = clips * 2 - 1
        if self.modern:
            steps = ops.unstack(frames, axis=1)  # the gradient of slices would cost more
            change = ops.stack([after - before for before, after in pairwise([steps[0], *steps])], axis=1)
            frames = ops.concatenate([frames, DIFFERENCE_GAIN * change], axis=-1)
        batch, time, *shape = frames.shape
        features = self.backbone(ops.reshape(frames, (-1, *shape)), training=True)
        features = ops.cast(ops.reshape(features, (batch, time, -1)), "float32")
        clip_logits = self.clip_head(self.gru(features))[..., 0]
        if not self.modern:
            return clip_logits
        return ops.concatenate([self.frame_head(features)[..., 0], clip_logits[:, 1:]], axis=1)


def downsample(channels, batch_norm):
    """Layers that make `channels` of half the height and width."""
    yield layers.Conv2D(channels, 4, strides=2, padding="same", use_bias=not batch_norm,
                        kernel_initializer="he_normal")
    if batch_norm:
        yield layers.BatchNormalization()
    yield layers.LeakyReLU(0.2)
