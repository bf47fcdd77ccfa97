"""The hyper-parameters of a run: what they are called, what they mean, what they may be.

Each field is a key of the config.json beside a run's weights and, unless it says flag=False, a flag of learn.py.
The defaults are the recipe for two CPU cores; PRESETS["original"] holds the values of the original model.
"""

import dataclasses
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from files import UserError, replacing


def param(default, help, *, group, low=-math.inf, high=math.inf, choices=None, flag=True, measured=False):
    """A hyper-parameter: its meaning with its unit, the group it is listed under, its inclusive range, whether it is a
    flag, and whether a new run measures it on its footage where no flag gives it (data.suited).
    """
    return field(default=default, metadata=dict(help=help, group=group, low=low, high=high, choices=choices, flag=flag,
                                                measured=measured))


@dataclass(frozen=True)
class Config:
    """The hyper-parameters of one training run; immutable, checked on creation.

    Raises:
        UserError: a value is outside its range, or two values contradict each other.
    """

    # What is trained on.
    data_dir: str = param("frames", "folder of the frames: PNG, JPEG or WebP, in the order of the numbers in their "
                                    "names; with --resume and --mode eval by default the folder trained on",
                          group="clips")
    img_size: int = param(64, "height and width of a frame, in pixels: a power of two", group="clips",
                          low=8, high=1024)
    every_nth: int = param(6, "frames of footage to a time step, one step of the transition", group="clips",
                           low=1, high=10_000, measured=True)
    seq_len: int = param(20, "time steps of which the latents are rolled out in one training step",
                         group="clips", low=2, high=10_000)
    clip_len: int = param(3, "consecutive time steps that are drawn and judged as one clip; at most seq_len",
                          group="clips", low=2, high=10_000)
    batch_size: int = param(40, "clips drawn and judged in one training step", group="clips", low=1, high=100_000)
    chains: int = param(256, "latent chains rolled out in one training step; at least batch_size", group="clips",
                        low=2, high=1_000_000, flag=False)
    reset_probability: float = param(0.003, "probability that a chain starts anew after a training step",
                                     group="clips", low=0, high=1, flag=False)
    footage: str = param("", "digest of the frames trained on", group="clips", flag=False)
    fps: float = param(30.0, "frames a second of the footage", group="clips", low=0.01, high=1000, flag=False)

    # What the networks are.
    arch: str = param("modern", "architecture: 'modern' (bilinear upsampling, RMS normalisation; a discriminator of "
                                "frames and their differences; Adam), or the 'original' DCGAN with batch norm and SGD",
                      group="networks", choices=("modern", "original"), flag=False)
    latent_size: int = param(64, "size of the latent", group="networks", low=2, high=8192, flag=False)
    rnn_units: int = param(128, "hidden size of the transition's and of the discriminator's GRU",
                           group="networks", low=1, high=8192, flag=False)
    width: int = param(32, "channels of convolutions at half a frame's size; doubled at each halving, up to 8x; the "
                           "discriminator makes 4x as many features of a frame", group="networks", low=1, high=1024)
    background: bool = param(True, "draw on top of the mean frame, and only where the footage ever changes: for a "
                                   "fixed camera", group="networks")
    noise: float = param(0.06, "scale of the noise on the latent, correlated over ten time steps: over many it moves "
                               "the latent as far as white noise of this standard deviation a step; 0: none",
                         group="networks", low=0, high=1, flag=False)
    augment: bool = param(False, "shift each clip, real or drawn, by a random offset before it is judged: for short "
                                 "footage", group="networks", measured=True)

    # The losses.
    loss: str = param("relativistic", "adversarial loss: 'relativistic' pairs each drawn clip with a real one, "
                                      "'standard' is that of the first GAN", group="losses",
                      choices=("relativistic", "standard"), flag=False)
    normality: str = param("chains", "statistics of the normality penalty: 'chains' of each coordinate across "
                                     "chains, 'pooled' of all numbers of a step", group="losses",
                           choices=("chains", "pooled"), flag=False)
    normality_weight: float = param(15.0, "weight of the normality penalty", group="losses", low=0, high=1e6)
    distance_weight: float = param(1.0, "weight of the penalty on distances between frames, in time and across clips, "
                                        "that differ from the footage's", group="losses", low=0, high=1e6, flag=False)
    gamma: float = param(0.005, "weight of the gradient penalties on real clips (R1) and on drawn ones (R2) at 64x64 "
                                 "pixels, in proportion to the number of pixels at other sizes", group="losses",
                         low=0, high=1e6)

    # The optimisation.
    learning_rate: float = param(5e-4, "learning rate; rises over 100 steps, and falls to 0 over the last fifth of the "
                                       "run, or with --preset original along a cosine", group="optimisation", low=0,
                                 high=1)
    ema: float = param(0.998, "largest decay a step of the weight average that is saved for playing; 0: no average",
                       group="optimisation", low=0, high=0.999999, flag=False)
    steps: int = param(4000, "training steps, counted from the beginning of a run that is resumed; those measured are "
                             "4000 at most. With --mode eval: time steps of the rollout, at least 3000, rounded to "
                             "thousands, by default 1000000",
                       group="optimisation", low=1, high=10**9, measured=True)
    max_minutes: float = param(0.0, "minutes to train, in place of --steps, counted from the beginning of a run that "
                                    "is resumed; 0: --steps ends the run",
                               group="optimisation", low=0, high=1e6)
    save_every: int = param(400, "training steps between two sets of weights for playing; the state to resume from is "
                                "saved with them, and every five minutes", group="optimisation", low=1, high=10**9)
    seed: int = param(0, "seed of the weights, the noise and the data's order; of the lamp with --mode simulate, of "
                         "what is sampled with --mode eval", group="optimisation", low=0, high=2**31 - 1)

    # How the machine computes it.
    precision: str = param("float32", "numbers that convolutions compute with in training", group="machine",
                           choices=("float32", "bfloat16"))
    accumulate: int = param(1, "parts of a batch whose gradients are computed one after another and averaged, for less "
                               "memory", group="machine", low=1, high=100_000)
    distribute: str = param("none", "train on several devices: 'mirrored' on all GPUs of this machine, 'multiworker' "
                                    "on the machines that TF_CONFIG names (TensorFlow only)", group="machine",
                            choices=("none", "mirrored", "multiworker"))

    def __post_init__(self):
        for f in dataclasses.fields(self):
            check(f, getattr(self, f.name))
        if self.img_size & (self.img_size - 1):
            raise UserError(f"--img_size {self.img_size} is not a power of two; take 32, 64, 128 ...")
        if self.clip_len > self.seq_len:
            raise UserError(f"--clip_len {self.clip_len} is more than --seq_len {self.seq_len}")
        if self.arch == "original" and self.gamma:
            raise UserError(f"--gamma {self.gamma:g} does not go with the original architecture: second derivatives "
                            "through its batch norm are wrong on TensorFlow; take --gamma 0")
        if self.batch_size % self.accumulate:
            raise UserError(f"--batch_size {self.batch_size} does not divide into --accumulate {self.accumulate} parts")

    @property
    def n_chains(self):
        """Latent chains rolled out in one training step: enough for each clip to have its own."""
        return max(self.chains, self.batch_size)

    def at_play(self):
        """The same networks, as they play on any one machine, in full precision."""
        return dataclasses.replace(self, precision="float32", distribute="none")

    def save(self, path):
        """Write the hyper-parameters to `path` as JSON."""
        with replacing(path) as part:
            part.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path):
        """Read what `save` wrote; a hyper-parameter that was added since has its default.

        Raises:
            UserError: the file is missing, is not JSON, or holds other keys or values than this class's.
        """
        path = Path(path)
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(f"{path} is missing, which says how to build the networks; restore it from the run that "
                            "wrote the weights") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}; make it readable") from None
        except (ValueError, RecursionError):  # of bytes that are no text, no JSON, or nested too deeply
            raise UserError(f"{path} is not valid JSON; restore it from the run that wrote the weights") from None
        names = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(values, dict) or not values or not set(values) <= names:
            unknown = sorted(set(values) - names) if isinstance(values, dict) else []
            holds = f"hyper-parameters that this version does not know, {', '.join(unknown)}" if unknown else \
                "no hyper-parameters"
            raise UserError(f"{path} holds {holds}; restore it from the run that wrote the weights")
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def check(f, value):
    """Raise UserError unless `value` has the type and lies in the range of the dataclass field `f`."""
    number = (int, float) if f.type is float else f.type
    if not isinstance(value, number) or (isinstance(value, bool) and f.type is not bool):
        kind = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}[f.type]
        raise UserError(f"--{f.name} takes {kind}, not {value!r}")
    low, high, choices = (f.metadata[key] for key in ("low", "high", "choices"))
    if choices and value not in choices:
        raise UserError(f"--{f.name} is one of {', '.join(choices)}, not {value!r}")
    if f.type is str and not is_name(value):
        raise UserError(f"--{f.name} holds characters that no file's name has")
    if f.type in (int, float) and not low <= value <= high:  # also false for NaN
        shown = "" if f.type is int else "g"
        raise UserError(f"--{f.name} must be from {low:{shown}} to {high:{shown}}, not {value}")


def is_name(text):
    """Whether a file may have the name `text`."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


PRESETS = {
    "original": dict(
        img_size=64, every_nth=6, seq_len=20, clip_len=20, batch_size=32, chains=32, reset_probability=0.5,
        arch="original", latent_size=64, rnn_units=128, width=32, background=False, noise=0.0,
        augment=False, loss="standard", normality="pooled", normality_weight=0.1, distance_weight=0.0,
        gamma=0.0, learning_rate=1e-3, ema=0.0,
        steps=33_600, save_every=1_680,  # 200 and 10 epochs of an hour's footage, of 168 batches each
    ),
}
