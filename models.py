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
OWN = 8  # features of a blob of its own
FULLER = 1.05  # how much more blobs cover than discs of their size, as they melt
SHARPNESS = 1.75  # of the union of blobs: lower, and they flow together from farther off; trained, it falls too low
FADED = 0.3  # of the way to what is behind that a thing's light may go
REACH, FURTHEST = 0.9, 0.76  # how far blobs go up and down: of half the glass; and, in halves of a frame, at most
LEAN = 0.7  # of the way back that a blob is pushed which leans on the glass
BREATH = 4  # what lies at rest learns to swell and shrink so many times faster than others learn their ways
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
    the same places together, and the last ones faster, as they lead the large blobs.
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


def make_generator(config):
    """The generator that `config` asks for: latents [B, Z] -> frames [B, img_size, img_size, 3] in 0..1."""
    return BlobGenerator(config) if config.blobs else DCGAN(config)


class BlobGenerator(keras.Model):
    """Latents [B, Z] -> frames [B, img_size, img_size, 3] in 0..1, by an arrangement of blobs.

    What moves in front of a camera that stands still are things that have a place. Convolutions have to learn for each
    place anew what a thing looks like there, and fade it out here and in there for it to move. Here the latent says
    where each of some blobs is, and a thing is moved by a number, without being drawn anew (Epstein et al., "BlobGAN:
    spatially disentangled scene representations", 2022; there blobs are laid over each other, here they melt into one).

    Two pictures, of things and of what is behind them, are drawn pixel by pixel, each from what is to be known there. A
    layer that saw a pixel's neighbours would see edges, and draw them too: what moves would then have outlines of two
    kinds. A thing looks as it is turned and where it is; what is behind is lit by how far away things are, and of what
    is before it there is nothing to be known.
    """

    def __init__(self, config):
        latents = layers.Input((config.latent_size,))
        blobs = Blobs(config.blobs, name="blobs", dtype="float32")(latents)
        cover, shape = Splat(config.img_size)(blobs)
        with computing(config):
            behind, front = shade(ops.minimum(shape[..., :1], 0), 32), shade(shape, 64)
        frame, _ = Scene(config.still, name="background", dtype="float32")([behind, front, cover])
        super().__init__(latents, frame, name="generator")

    def begin_with(self, lights):
        """Take from `lights`, as data.lights finds them, what is behind and in front, and the wax and its room."""
        self.get_layer("background").begin_with(lights)
        self.get_layer("blobs").begin_with(lights)


def shade(x, features):
    """Features [B, H, W, C] -> logits of light [B, H, W, 3], next to none at first, of each pixel by itself."""
    x = layers.LeakyReLU(0.2)(Coordinates(features)(layers.Dense(features)(x)))
    return layers.Dense(3, kernel_initializer=small(0.02), dtype="float32")(x)


class Blobs(layers.Layer):
    """Latents [B, Z] -> an arrangement of K + 2 blobs [B, 4, K + 2]: centres x, y, and radii across and down.

    Lengths are in halves of a frame, and its middle is (0, 0). Blobs keep their sizes, in training too: how much wax
    there is, the footage tells; what is trained finds that more wax makes more change. Each has a home, and rides two
    of the latent's pairs, the hands of `Transition`, all made nearly of one length: one from side to side, and one up
    and down. How far, is not trained either: it would fall short, and wax keep to the middle. Led by all hands, as by a
    network, it would loiter and dash, as sums do. The last two lie at rest, on the floor and under the lid: what others
    come from, and melt into. They swell and shrink as they learn to, led by the first hands, the slowest.
    """

    def __init__(self, blobs, **options):
        super().__init__(**options)
        self.blobs = blobs

    def build(self, shape):
        size = shape[-1]
        self.sideways = np.arange(self.blobs) * (size // 2) // self.blobs
        self.upright = (self.sideways + 1) % (size // 2)  # of many blobs, some share one hand, but not both
        self.home = self.add_weight(shape=(2, self.blobs), initializer=homes, name="home")
        self.log_radius = self.add_weight(shape=(2, self.blobs), initializer=sizes, trainable=False, name="log_radius")
        self.room = self.add_weight(shape=(6,), initializer=frame, trainable=False, name="room")
        self.ride = self.add_weight(shape=(2, 1, self.blobs), initializer=ways, name="ride")
        self.rest = self.add_weight(shape=(4, 2), initializer=flat, name="rest")
        self.breath = self.add_weight(shape=(2, 4, 2), initializer="zeros", name="breath")

    def call(self, latents):
        first, second = ops.split(latents, 2, axis=-1)
        length = ops.sqrt((1 + ops.square(first) + ops.square(second)) / 2)
        hands = first / length, second / length
        x = led(hands, self.sideways, self.ride)
        reach = ops.minimum(REACH * (self.room[1] - self.room[0]) / 2, FURTHEST)
        y = reach * ops.take(hands[0], self.upright, axis=-1)
        place = self.within(self.home + ops.concatenate([x, y[:, None]], axis=1))
        moving = ops.concatenate([place, ops.broadcast_to(self.log_radius, ops.shape(place))], axis=1)
        rest = self.rest + BREATH * led(hands, [0, 1], self.breath)
        centre, log_radius = ops.split(ops.concatenate([moving, rest], axis=2), 2, axis=1)
        return ops.concatenate([centre, ops.exp(log_radius)], axis=1)

    def within(self, place):
        """Places [B, 2, K] after the glass has pushed back what would be beyond it."""
        (x, y), (across, down) = ops.unstack(place, axis=1), ops.unstack(ops.exp(self.log_radius) / 2)
        top, bottom, *sides = (self.room[i] for i in range(6))
        y = pushed(y, top + down, bottom - down)
        share = (y - top) / (bottom - top)
        left, right = (above + share * (below - above) for above, below in (sides[:2], sides[2:]))
        return ops.stack([pushed(x, left + across, right - across), y], axis=1)

    def begin_with(self, lights):
        """Take from `lights`, as data.lights finds them, how much wax moves, where, and what lies at rest."""
        self.room.assign(lights.room)
        self.rest.assign(np.concatenate([lights.rest[:2], np.log(lights.rest[2:])]))
        own = FULLER * math.pi * ops.sum(ops.exp(ops.sum(self.log_radius, axis=0)))
        self.swell(lights.area / own)

    def swell(self, share):
        """Let blobs that move together have `share` times their area."""
        self.log_radius.assign(self.log_radius + ops.log(share) / 2)


def led(hands, which, ways):
    """Ways of things [B, N, K], each led by `which` [K] of the hands [B, Z / 2], as far as `ways` [2, N, K] say."""
    return sum(ops.take(part, which, axis=-1)[:, None] * ways[i] for i, part in enumerate(hands))


def pushed(place, low, high):
    """Places that lie beyond low or high, most of the way back: wax flattens where it leans on glass."""
    return place + LEAN * (ops.minimum(ops.maximum(place, low), high) - place)


def frame(shape, dtype=None):
    """The room for blobs [6] that all of a frame is; see data.Lights."""
    return ops.convert_to_tensor([-1, 1, -1, -1, 1, 1], dtype)


def homes(shape, dtype=None):
    """Initial homes [2, K]: side by side, halfway up."""
    beside = keras.initializers.RandomUniform(-0.3, 0.3)((1, shape[1]), dtype)
    return ops.concatenate([beside, 0 * beside], axis=0)


def sizes(shape, dtype=None):
    """Initial logarithms of radii [2, K]: round, of many sizes, the large ones on the faster hands."""
    radius = ops.convert_to_tensor(np.log(np.geomspace(0.06, 0.2, shape[1])), dtype)
    return ops.stack([radius, radius])


def ways(shape, dtype=None):
    """Initial ways from side to side [2, 1, K], by both numbers of a hand: by the first."""
    return ops.convert_to_tensor(np.broadcast_to(np.float32([[[0.25]], [[0]]]), shape), dtype)


def flat(shape, dtype=None):
    """Initial x, y, and logarithms of radii across and down of the blobs at rest [4, 2]."""
    return ops.convert_to_tensor([[0, 0], [1, -1], [math.log(0.5)] * 2, [math.log(0.05)] * 2], dtype)


class Splat(layers.Layer):
    """Blobs [B, 4, K] -> what they are to each pixel: cover [B, size, size, 1], shape [B, size, size, 4 + OWN].

    A blob weighs exp(s (1 - d^2)) where d is the distance from its centre in radii, and s is SHARPNESS (Blinn, "A
    generalization of algebraic surface drawing", 1982). The logarithm of the sum of all weights, divided by s, is a
    height: 0 at the edge of a blob that is alone, 1 in its middle, -2 far from all. By its slope it is the distance
    from the edge (Taubin, "Distance approximations for rasterizing implicit curves", 1994). So cover says how much of a
    pixel is covered, from 0 to 1: an edge is as sharp as pixels allow.

    The first feature of shape is the height. The next three say where a round thing faces there, as a vector of length
    1: right and down, how far from the blobs' centres the pixel lies, in radii, the mean by their weights; and what is
    left of that length, towards the camera. The others are the mean of trained vectors, one of each blob.

    A weight being a product of a function of x and one of y, the sums over blobs are products of small matrices. Blobs
    are seen through pixels, as blurred by a Gaussian of the width of one: too small a blob fades instead of flickering.
    """

    def __init__(self, size):
        super().__init__(dtype="float32")  # in halves of that, a blob would move by jumps
        self.size = size

    def build(self, shape):
        self.own = self.add_weight(shape=(shape[-1], OWN), initializer=small(1), name="own")
        self.pixels = ((2 * np.arange(self.size) + 1) / self.size - 1).astype("float32")

    def call(self, blobs):
        x, y, across, down = (ops.expand_dims(part, -1) for part in ops.unstack(blobs, axis=1))
        (u, column, across), (v, row, down) = (self.profile(place, radius) for place, radius in
                                               ((x, across), (y, down)))
        column = math.exp(SHARPNESS) * column
        own = ops.reshape(column[..., None] * self.own[:, None], (-1, blobs.shape[-1], self.size * OWN))

        def total(over_y, over_x):
            return ops.matmul(ops.swapaxes(over_y, 1, 2), over_x)

        weight = total(row, column)
        beyond = weight + math.exp(-2 * SHARPNESS)  # never 0
        height = ops.log(beyond) / SHARPNESS
        steep = [total(row, column * u / across), total(row * v / down, column)]
        slope = ops.sqrt(4 * sum(ops.square(part / beyond) for part in steep) + 1)  # 1: of one blob beyond all
        cover = 0.5 * (1 + ops.clip(height / slope * self.size, -1, 1))
        right, down = total(row, column * u) / beyond, total(row * v, column) / beyond
        toward = ops.sqrt(ops.relu(1 - ops.square(right) - ops.square(down)) + 0.01)  # of which the slope is finite
        own = ops.reshape(total(row, own), (-1, self.size, self.size, OWN)) / (weight[..., None] + 1)
        return cover[..., None], ops.concatenate([ops.stack([height, right, down, toward], axis=-1), own], axis=-1)

    def profile(self, place, radius):
        """How far each row or column of pixels is from blobs [B, K, 1], in radii as seen, and how much it has of them.

        Returns (distances [B, K, size], shares [B, K, size], at most 1, and the radii as seen [B, K, 1]).
        """
        seen = ops.sqrt(ops.square(radius) + (1 / self.size) ** 2)
        distance = (self.pixels - place) / seen
        return distance, radius / seen * ops.exp(-SHARPNESS * ops.square(distance)), seen


class DCGAN(keras.Sequential):
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

    def begin_with(self, lights):
        """Draw on top of the mean frame that `lights`, as data.lights finds them, hold."""
        self.get_layer("background").begin_with(lights)

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
            self.moving = self.add_weight(shape=(height, width, 1), initializer="ones", trainable=False, name="moving")

    def call(self, x):
        return self.on(self.picture, x)

    def on(self, picture, x):
        """The logits of what is drawn, x, on top of a picture."""
        return picture + (self.moving * x if self.still else x)

    def begin_with(self, lights):
        """Take from `lights`, as data.lights finds them, the mean frame for the picture, and what moves."""
        self.picture.assign(logits(lights.mean))
        if self.still:
            self.moving.assign(lights.moving)


def logits(picture):
    """The logits of a picture in 0..1."""
    picture = ops.clip(picture, 0.01, 0.99)
    return ops.log(picture / (1 - picture))


class Scene(Background):
    """Two pictures of logits [B, H, W, 3] and a cover [B, H, W, 1] -> frames [B, H, W, 3] in 0..1, and what is hidden.

    The first picture is what is behind, the second what is seen where that is covered. A pixel at an edge has the light
    of both, by how much of it is covered, as in a camera (Porter and Duff, "Compositing digital images", 1984): an edge
    that moves is the same edge. Each is drawn on top of a picture of its own.

    Comes with it how far what nobody sees of the second picture, as it covers nothing there, is from what is seen there
    at other times [B]: the squared difference, averaged over a frame. Else there is liquid in front of liquid, and it
    shows at the edges. Nor is what is seen of it more than FADED of the way to what is behind: things would turn to
    liquid where the discriminator wants fewer of them.
    """

    def build(self, shapes):
        super().build(shapes[0])
        self.front = self.add_weight(shape=self.picture.shape, initializer=keras.initializers.Constant(2),
                                     trainable=False, name="front")

    def call(self, inputs):
        *pictures, cover = inputs
        behind, front = self.light(pictures)
        hidden = (1 - ops.stop_gradient(cover)) * ops.square(front - ops.sigmoid(self.front))
        return behind + cover * (front - behind), ops.mean(hidden, axis=(1, 2, 3))

    def light(self, pictures):
        """What is behind and what is in front, [B, H, W, 3] in 0..1."""
        behind, front = (ops.sigmoid(self.on(picture, x)) for picture, x in
                         zip((self.picture, self.front), pictures, strict=True))
        usual = ops.sigmoid(self.front)
        way = ops.sigmoid(self.picture) - usual
        unit = way / (ops.sum(ops.square(way), axis=-1, keepdims=True) + 1e-6)
        along = ops.matmul((front - usual) * unit, ops.ones((3, 3)))  # the sum of each pixel's channels, and faster
        return behind, front - ops.relu(along - FADED) * way

    def begin_with(self, lights):
        """Take from `lights`, as data.lights finds them, what is behind and in front, and what moves."""
        super().begin_with(lights._replace(mean=lights.behind))
        self.front.assign(logits(lights.front))


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
