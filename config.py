"""The hyper-parameters of a run: what they are called, what they mean, what they may be.

Each field is a flag of learn.py and a key of the config.json beside a run's weights. The defaults are the
recipe that trains well on two CPU cores; PRESETS["original"] holds the values of the model duralava began as.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from files import UserError, replacing


def param(default, help, *, group, low=-math.inf, high=math.inf, choices=None):
    """A hyper-parameter: its meaning with its unit, the group it is listed under, and its inclusive range."""
    return field(default=default, metadata=dict(help=help, group=group, low=low, high=high, choices=choices))


@dataclass(frozen=True)
class Config:
    """The hyper-parameters of one training run; immutable, checked on creation.

    Raises:
        UserError: a value is outside its range, or two values contradict each other.
    """

    # What a training sequence is.
    data_dir: str = param("frames", "folder of the frames: PNG or JPEG, in the order of their names",
                          group="sequences")
    img_size: int = param(64, "height and width of a frame, in pixels: a power of two", group="sequences",
                          low=8, high=1024)
    fps: float = param(30.0, "frames a second of the footage, and of what is played", group="sequences",
                       low=0.1, high=1000)
    every_nth: int = param(6, "frames of footage to one step of the model", group="sequences", low=1)
    seq_len: int = param(20, "steps the latent is rolled in one training step", group="sequences", low=2)
    window: int = param(3, "consecutive steps of those that are decoded and judged; 0: all", group="sequences",
                        low=0)
    batch_size: int = param(40, "clips decoded and judged in one training step", group="sequences", low=1)
    chains: int = param(256, "latent chains rolled in one training step, at least batch_size", group="sequences",
                        low=2)
    reset_probability: float = param(0.003, "chance that a chain starts anew after a training step",
                                     group="sequences", low=0, high=1)

    # What the networks are.
    latent_size: int = param(64, "numbers in the state of the lamp", group="networks", low=2)
    rnn_units: int = param(128, "hidden size of the transition's and of the discriminator's GRU",
                           group="networks", low=1)
    width: int = param(32, "channels of convolutions at half a frame's size; twice as many at each halving, up to 8x",
                       group="networks", low=1)
    features: int = param(128, "numbers the discriminator makes of a frame", group="networks", low=1)
    noise: float = param(0.003, "share of fresh noise in each step of the state, as a standard deviation; 0: none",
                         group="networks", low=0, high=1)
    pace: float = param(0.25, "how fast states move, as a share of how fast frames change: a frame is another when "
                              "things have left their places, a state when they are elsewhere; 0: as fast as they will",
                        group="networks", low=0, high=1)
    batch_norm: bool = param(False, "batch norm in the discriminator", group="networks")
    generator_norm: str = param("rms", "how activations are normalised: 'rms' each pixel by itself, "
                                       "'batch' over the batch", group="networks", choices=("rms", "batch"))
    upsampling: str = param("bilinear", "how pixels are doubled: by 'bilinear' interpolation, or by a "
                                        "'transposed' convolution", group="networks",
                            choices=("bilinear", "transposed"))
    coordinates: bool = param(True, "tell convolutions where in the frame they are",
                              group="networks")
    background: bool = param(True, "let the generator draw on top of the mean frame", group="networks")
    still: bool = param(True, "let it draw nothing where the footage never changes, with --background",
                        group="networks")
    differences: bool = param(True, "show the discriminator each frame's difference to the one before",
                              group="networks")
    frame_logits: bool = param(True, "let the discriminator judge single frames beside motion", group="networks")
    minibatch_std: bool = param(True, "show the discriminator how much the clips of a batch differ",
                                group="networks")
    augment: bool = param(False, "shift each clip, real or drawn, before it is judged: for short footage",
                          group="networks")

    # What the networks are asked for.
    relativistic: bool = param(True, "judge each drawn clip against a real one, not against all that are real",
                               group="losses")
    penalty: str = param("chains", "normality of the states: 'chains' asks it of each coordinate across chains, "
                                   "'moments' of all numbers together", group="losses",
                         choices=("chains", "moments"))
    penalty_weight: float = param(15.0, "weight of the normality penalty", group="losses", low=0)
    distance_weight: float = param(1.0, "weight of the penalty on frames that are further apart than those of the "
                                        "footage, or less, in time and from clip to clip; 0: none", group="losses",
                                   low=0)
    pace_weight: float = param(8.0, "weight of the penalty on states that move faster or slower than --pace says; 0: "
                                    "none", group="losses", low=0)
    r1_gamma: float = param(0.01, "weight of the gradient penalty on real clips; 0: none", group="losses", low=0)
    r2_gamma: float = param(0.01, "weight of the gradient penalty on drawn clips; 0: none", group="losses", low=0)

    # How they get there.
    optimizer: str = param("adam", "optimiser of all networks", group="optimisation", choices=("adam", "sgd"))
    learning_rate: float = param(5e-4, "learning rate at the start; falls to 0 along a cosine",
                                 group="optimisation", low=0)
    ema: float = param(0.998, "decay a step of the weight average that is saved for playing; 0: no average",
                       group="optimisation", low=0, high=0.999999)
    epochs: int = param(20, "epochs to train; one epoch shows about every frame once, or takes 200 steps if those are "
                            "fewer", group="optimisation", low=1)
    max_minutes: float = param(0.0, "minutes to train, in place of --epochs; 0: no limit", group="optimisation",
                               low=0)
    save_every: int = param(2, "epochs between two checkpoints", group="optimisation", low=1)
    seed: int = param(0, "seed of the weights, the noise and the data's order", group="optimisation", low=0,
                      high=2**31 - 1)

    # How the machine computes it: that changes the results by no more than rounding, and may differ on --resume.
    precision: str = param("float32", "numbers that convolutions compute with, in training", group="machine",
                           choices=("float32", "bfloat16", "float16"))
    accumulate: int = param(1, "parts of a batch that are drawn and seen one after another, for less memory",
                            group="machine", low=1)
    remat: bool = param(False, "compute activations again instead of keeping them, for less memory", group="machine")
    distribute: str = param("none", "train on several devices: 'mirrored' on all GPUs of this machine, 'multiworker' "
                                    "on the machines that TF_CONFIG names", group="machine",
                            choices=("none", "mirrored", "multiworker"))

    def __post_init__(self):
        for f in dataclasses.fields(self):
            check(f, getattr(self, f.name))
        if self.img_size & (self.img_size - 1):
            raise UserError(f"--img_size {self.img_size} is not a power of two; take 32, 64, 128 ...")
        if self.window > self.seq_len:
            raise UserError(f"--window {self.window} is longer than --seq_len {self.seq_len}")
        if self.latent_size % 2:
            raise UserError(f"--latent_size {self.latent_size} is odd; a state is made of pairs of numbers")
        if self.chains < self.batch_size:
            raise UserError(f"--chains {self.chains} is less than --batch_size {self.batch_size}")
        if self.batch_size % self.accumulate:
            raise UserError(f"--batch_size {self.batch_size} does not divide into --accumulate {self.accumulate} parts")

    @property
    def clip_len(self):
        """Steps of a clip, generated or real, that the discriminator judges."""
        return self.window or self.seq_len

    def at_play(self):
        """The same networks, as they play on any one machine, in full precision."""
        return dataclasses.replace(self, precision="float32", remat=False, distribute="none")

    def save(self, path):
        """Write the hyper-parameters to `path` as JSON."""
        with replacing(path) as part:
            part.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path):
        """Read what `save` wrote; a hyper-parameter that was added since has its default, or what it was `BEFORE`.

        Raises:
            UserError: the file is missing, is not JSON, or holds other keys or values than this class's.
        """
        path = Path(path)
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(f"{path} is missing: it is written beside the weights and says how to build the "
                            "networks") from None
        except (ValueError, UnicodeDecodeError):
            raise UserError(f"{path} is not valid JSON; restore it from the run that wrote the weights") from None
        names = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(values, dict) or not values or not set(values) <= names:
            odd = (isinstance(values, dict) and sorted(set(values) - names)) or ["no hyper-parameters"]
            raise UserError(f"{path} does not describe a run of this version (see {', '.join(odd)})")
        try:
            return cls(**BEFORE | values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def check(f, value):
    """Raise UserError unless `value` has the type and lies in the range of the dataclass field `f`."""
    number = (int, float) if f.type is float else f.type
    if not isinstance(value, number) or (isinstance(value, bool) and f.type is not bool):
        raise UserError(f"--{f.name} takes {article(f.type)}, not {value!r}")
    low, high, choices = (f.metadata[key] for key in ("low", "high", "choices"))
    if choices and value not in choices:
        raise UserError(f"--{f.name} is one of {', '.join(choices)}, not {value!r}")
    if f.type in (int, float) and not low <= value <= high:  # also false for NaN
        bounds = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise UserError(f"--{f.name} must be {bounds}, not {value}")


def article(kind):
    """The type `kind` in words."""
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}[kind]


BEFORE = dict(still=False, pace=0.0)  # what runs were like before there were these: their weights still fit

PRESETS = {
    "original": dict(
        img_size=64, every_nth=6, seq_len=20, window=0, batch_size=32, chains=32, reset_probability=0.5,
        latent_size=64, rnn_units=128, width=32, features=128, noise=0.0, pace=0.0,
        batch_norm=True, generator_norm="batch", upsampling="transposed", coordinates=False,
        background=False, still=False, differences=False, frame_logits=False, minibatch_std=False,
        relativistic=False, penalty="moments", penalty_weight=0.1, distance_weight=0.0, pace_weight=0.0,
        r1_gamma=0.0, r2_gamma=0.0,
        optimizer="sgd", learning_rate=1e-3, ema=0.0, epochs=200, save_every=10,
    ),
}
