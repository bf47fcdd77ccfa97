"""How real a lamp is, and how long it stays so: a table, two pictures and eval.json.

Frames are compared with the footage, and every distance is divided by its floor, the same distance between two
disjoint halves of the footage: 1 means as close as real is to real. States are compared with normal vectors, over a
rollout of a million steps. What is measured stands in metrics.py.
"""

import json
import math
from collections import deque
from itertools import islice, pairwise

import matplotlib
import numpy as np
import tensorflow as tf
from tqdm import tqdm

import metrics
import sample
from files import UserError, replacing
from models import interpolate

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CLIPS = 2048  # in a sample; fewer where the footage is short
SEEDS = 3  # samples taken of everything, for the spread
CHAINS = 64  # lamps rolled side by side
STRETCH = 1000  # steps rolled at once
SAMPLED = 4  # stretches in a sample of new lamps, each of lamps of its own, and of old ones, of the last stretches
WINDOWS = 100  # parts of the long rollout whose states are described one by one
THIN = 10  # steps: their moments are taken of every tenth state, as neighbours tell little new
FAR = 50  # steps after which footage counts as of another time
CYCLES = dict(chains=4, steps=200_000, longest=20_000)  # what the autocorrelation is taken of, and its longest lag
MOMENTS = ("mean", "deviation", "skewness", "kurtosis", "correlation")

# Where a figure counts as good: footage that was not trained on passes, planted faults do not (tests/test_evaluate).
LIMITS = {
    "looks": (0, 2), "motion": (0, 3), "speed": (0.85, 1.15), "tremor": (0, 2), "flow": (0, 3),
    "diversity": (0.95, 1.05),
    "brightness": (0, 3), "colour": (0, 3), "bright area": (0, 3), "late colour": (0, 3),
    "novelty": (0.75, math.inf),
    "late / early looks": (0.97, 1.03), "late / early motion": (0.97, 1.03), "late / early diversity": (0.97, 1.03),
    "state mean": (0, 0.2), "state deviation": (0.8, 1.2), "state skewness": (0, 0.5), "state kurtosis": (2, 4),
    "state correlation": (0, 0.3), "autocorrelation from lag 1000": (0, 0.1),
    "chains apart": (0.95, 1.05), "closest chains": (0.5, math.inf),
}  # none from lag 100: wax that has crossed the glass may well come back, once; a loop comes back after 1,000 steps too


def evaluate(prefix, cache, seed, steps, overwrite=False):
    """Measure the lamp of the weights `prefix` against the footage in `cache`, and write what is found beside them.

    Args:
        prefix: path of the weights. eval.json in their folder gets an entry under their name; the pictures are
            <prefix>.clips.png and <prefix>.endurance.png.
        cache: path of the frames, as `data.load` returns it.
        seed: picks lamps, frames, patches and projections.
        steps: of the long rollout, rounded to whole thousands, at least SEEDS of them.
        overwrite: replace an entry of more steps.

    Returns the entry: what was compared, and "figures", a list of dicts as `frame_figures` makes them.

    Raises:
        UserError: the footage is too short, the weights cannot be read, or there is an entry of more steps.
    """
    known = entries(prefix.with_name("eval.json"))  # first, so that a broken one is told before the long work
    before = known.get(prefix.name, {}).get("steps", 0)
    if before > steps and not overwrite:
        raise UserError(f"{prefix.with_name('eval.json')} holds the figures of {before:,} steps; give --steps as many, "
                        "or --overwrite to replace them")
    config, model = sample.load(prefix)
    generator, transition = model.generator, model.transition
    film = np.load(cache, mmap_mode="r", allow_pickle=False)
    reals = [Footage(film, config.every_nth, np.random.default_rng([seed, i])) for i in range(SEEDS)]
    rolled = Rollout(transition, seed, max(SEEDS, round(steps / STRETCH)))
    draw = drawer(generator)
    figures = frame_figures(reals, rolled, draw, seed) + state_figures(rolled)
    entry = dict(frames=len(film), every_nth=config.every_nth, clips=reals[0].clips, chains=CHAINS,
                 steps=rolled.stretches * STRETCH, seeds=SEEDS, seed=seed, figures=figures)
    with replacing(prefix.with_name("eval.json")) as part:
        part.write_text(json.dumps(known | {prefix.name: entry}, indent=2) + "\n")
    plot_clips(prefix.with_name(f"{prefix.name}.clips.png"), film, config.every_nth, rolled, draw)
    plot_endurance(prefix.with_name(f"{prefix.name}.endurance.png"), rolled)
    return entry


class Footage:
    """A sample of the footage to compare with, and the floor of each distance.

    The footage [N, H, W, 3] is cut into stretches; its halves are every other stretch.

    Raises:
        UserError: it is too short.
    """

    def __init__(self, film, every_nth, rng):
        stretches = max(4, min(64, len(film) // (20 * every_nth)) // 2 * 2)
        length = len(film) // stretches
        n = min(2 * CLIPS // stretches, length - 2 * every_nth) // 2 * 2
        if n < 2:
            raise UserError(f"{len(film)} frames are too few to compare with; give --data_dir a folder of "
                            f"{stretches * (2 * every_nth + 2)} or more")
        places = np.stack([i * length + rng.permutation(length - 2 * every_nth)[:n] for i in range(stretches)])
        both = film[places[..., None] + every_nth * np.arange(3)]  # [stretches, n, 3, H, W, 3]
        self.film, self.every_nth = film, every_nth
        self.sample, self.places, self.halves = both[:, ::2], places[:, ::2], (both[::2], both[1::2])
        self.clips = math.prod(self.places.shape)

    def compare(self, sample, seed):
        """The figures of a sample of frames, by name: as multiples of the floor, or of what the footage has."""
        if not hasattr(self, "floor"):
            self.floor = metrics.distances(*self.halves, seed)
        apart = min(FAR * self.every_nth, len(self.film) // 4)
        held_out = metrics.nearest(self.sample[:, :, 0].reshape(-1, *self.film.shape[1:]), self.film,
                                    self.places.ravel(), apart)
        drawn = metrics.nearest(sample[:, :, 0].reshape(-1, *self.film.shape[1:]), self.film)
        return {
            **{name: value / self.floor[name]
               for name, value in metrics.distances(sample, self.sample, seed).items()},
            "speed": metrics.speed(sample) / metrics.speed(self.sample),
            "tremor": metrics.tremor(sample) / (metrics.tremor(self.sample) + 1e-6),
            "diversity": metrics.diversity(sample) / metrics.diversity(self.sample),
            "novelty": drawn.mean() / held_out.mean(),
        }

    def mixed(self):
        """The diversity of a lamp that draws the footage's own frames, at any time any of them.

        It is 1 of long footage. Of short footage any two frames are less far apart than two that are far apart in time,
        and a lamp that draws as many of each kind as the footage shows cannot have more.
        """
        frames = self.sample.reshape(-1, 1, *self.sample.shape[2:])
        return metrics.diversity(np.random.default_rng(0).permutation(frames)) / metrics.diversity(self.sample)


class Rollout:
    """A long rollout of many lamps, in the latent alone, and what is kept of it.

    early, late: lists of SEEDS arrays [SAMPLED * CHAINS, STRETCH, Z]: the first latents of so many lamps, and the last
        of CHAINS lamps; fewer of a short rollout.
    batch, one: moments [windows, 5, Z] of all chains and of the first, in the order of MOMENTS.
    separation: mean and smallest distance between chains [windows, 2].
    autocorrelation: [chains, lags], of the last steps.
    """

    def __init__(self, transition, seed, stretches):
        self.transition, self.stretches = transition, stretches
        ends = set(np.linspace(0, stretches, min(WINDOWS, stretches) + 1).astype(int)[1:])
        late, last = deque(maxlen=SEEDS * SAMPLED), deque(maxlen=CYCLES["steps"] // STRETCH)
        batch, one, separation, window = [], [], [], []
        for i, latents in enumerate(tqdm(self.film(seed, stretches), desc="rolling", total=stretches,
                                         unit_scale=STRETCH, unit=" steps"), start=1):
            late.append(latents)
            last.append(latents[:CYCLES["chains"]].copy())  # a view would keep the whole
            window.append(latents[:, ::THIN])
            if i in ends:
                states = np.concatenate(window, axis=1)
                batch.append(metrics.describe(states.reshape(-1, states.shape[-1])))
                one.append(metrics.describe(states[0]))
                separation.append(metrics.separation(latents[:, -1]))
                window = []
        new = (next(self.film(seed + i, 1)) for i in range(SEEDS * SAMPLED))
        self.early = [np.concatenate(list(islice(new, SAMPLED))) for _ in range(SEEDS)]
        self.late = [np.concatenate(list(late)[i::SEEDS]) for i in range(SEEDS)]
        self.batch, self.one, self.separation = np.stack(batch), np.stack(one), np.stack(separation)
        longest = min(CYCLES["longest"], len(last) * STRETCH // 2)
        self.autocorrelation = np.stack([metrics.autocorrelation(chain, longest)
                                         for chain in np.concatenate(last, axis=1)])

    def film(self, seed, stretches):
        """The latents [CHAINS, STRETCH, Z] of lamps as they are played, a stretch at a time."""
        size = self.transition.state_size[0]
        state = self.transition.initial(tf.random.stateless_normal((CHAINS, size), [seed, -2]))
        burn_in = tf.random.stateless_normal((CHAINS, sample.BURN_IN_STEPS, size), [seed, -1])
        state = self.transition.roll(burn_in, state)[2]
        for i in range(stretches):
            latents, state = self.roll(state, tf.constant([seed, i]))  # a list would be traced anew each time
            yield latents.numpy()

    @tf.function
    def roll(self, state, seed):
        """A STRETCH on from `state`: (latents, state)."""
        normals = tf.random.stateless_normal((CHAINS, STRETCH, state[0].shape[-1]), seed)
        latents, _, state = self.transition.roll(normals, state)
        return latents, state


def drawer(generator):
    """A function latents [N, Z] -> frames uint8 [N, H, W, 3]."""

    compiled = tf.function(lambda latents: sample.to_frames(generator, latents), reduce_retracing=True)
    return lambda latents: np.concatenate([compiled(some).numpy() for some in
                                           np.split(latents, range(256, len(latents), 256))])


def sample_lamp(latents, least, every_nth, draw, rng):
    """At least so many clips, n of each chain of latents [chains, T, Z], spread over all the time.

    Returns uint8 [chains, n, 3, H, W, 3].

    They are frames as they are played: as likely on a step of the model as at each of the places between two.
    """
    chains, steps, size = latents.shape
    n = math.ceil(least / chains)
    moments = ((np.arange(n) + rng.random((chains, n))) * (steps - 3) / n).astype(int)
    path = [latents[np.arange(chains)[:, None], moments + i].reshape(-1, size) for i in range(4)]
    between = np.arange(chains * n), rng.integers(every_nth, size=chains * n)
    clips = [np.array(interpolate(one, two, every_nth))[between] for one, two in pairwise(path)]
    frames = draw(np.stack(clips, axis=1).reshape(-1, size))
    return frames.reshape(chains, n, 3, *frames.shape[1:])


def frame_figures(reals, rolled, draw, seed):
    """The figures of the lamp's first frames, and of its last as a multiple of those.

    Returns a list of dicts: "name", "value", its standard deviation over samples, "spread", "real", which is the value
    of perfection, for diversity that of the footage's own frames (`Footage.mixed`), and "low" and "high", the limits
    where it counts as good; None where there are none.
    """
    rows = []
    for i, real in enumerate(tqdm(reals, desc="comparing", unit=" samples")):
        rng = np.random.default_rng([seed, i, 1])
        early, late = (real.compare(sample_lamp(latents[i], real.clips, real.every_nth, draw, rng), [seed, i])
                       for latents in (rolled.early, rolled.late))
        ratios = {f"late / early {name}": late[name] / early[name] for name in ("looks", "motion", "diversity")}
        rows.append(early | ratios | {"late colour": late["colour"]})
    perfect = {"diversity": round(float(np.mean([real.mixed() for real in reals])), 3)}
    return [figure(name, [row[name] for row in rows], perfect.get(name, 1)) for name in rows[0]]


def state_figures(rolled):
    """The figures of the states: in each moment the worst coordinate in the worst window. As `frame_figures`."""
    normal = dict(zip(MOMENTS, (0, 1, 0, 3, 0), strict=True))
    found = []
    for moment, windows in zip(MOMENTS, np.moveaxis(rolled.batch, 1, 0), strict=True):
        off = windows - normal[moment]
        worst = off.flat[np.abs(off).argmax()]
        found.append(figure(f"state {moment}", [normal[moment] + (worst if normal[moment] else abs(worst))],
                            normal[moment]))
    for lag in (100, 1000):
        if lag < rolled.autocorrelation.shape[1]:
            found.append(figure(f"autocorrelation from lag {lag}",
                                [np.abs(rolled.autocorrelation[:, lag:]).max()], 0))
    normal = np.random.default_rng(0).standard_normal((len(rolled.separation), CHAINS, rolled.early[0].shape[-1]))
    normal_apart, normal_closest = np.stack([metrics.separation(states) for states in normal]).T
    apart, closest = rolled.separation.T
    apart = apart / normal_apart.mean()
    return [*found, figure("chains apart", [apart[np.abs(apart - 1).argmax()]], 1),
            figure("closest chains", [closest.min() / normal_closest.min()], 1)]


def figure(name, values, real):
    """One line of the table."""
    low, high = LIMITS.get(name, (None, None))
    return dict(name=name, value=float(np.mean(values)), spread=float(np.std(values)) if len(values) > 1 else None,
                real=real, low=low, high=None if high == math.inf else high)


def is_good(figure):
    """Whether a figure lies within its limits."""
    above = figure["low"] is None or figure["value"] >= figure["low"]
    return above and (figure["high"] is None or figure["value"] <= figure["high"])


def table(entry):
    """The figures as lines of text."""
    def number(value):
        return "" if value is None else f"{value:.3f}"

    def limits(figure):
        if figure["low"] is None:
            return ""
        return f"at least {figure['low']:g}" if figure["high"] is None else f"{figure['low']:g} to {figure['high']:g}"

    lines = [f"{'':32}{'lamp':>9}{'spread':>9}{'real':>7}   good"]
    for figure in entry["figures"]:
        lines.append(f"{figure['name']:32}{number(figure['value']):>9}{number(figure['spread']):>9}"
                     f"{'' if figure['real'] is None else figure['real']:>7}   {limits(figure):12}"
                     f"{'' if is_good(figure) else '  <- off'}".rstrip())
    return "\n".join(lines)


def entries(path):
    """What eval.json at `path` holds by now, by the name of the weights.

    Raises:
        UserError: it is there, but no JSON object.
    """
    try:
        known = json.loads(path.read_text())
        if isinstance(known, dict):
            return known
    except FileNotFoundError:
        return {}
    except ValueError:
        pass
    raise UserError(f"{path} is not what --mode eval writes; move it away")


def plot_clips(path, film, every_nth, rolled, draw):
    """A contact sheet: clips of the footage, of new lamps and of old ones, a row each, their frames two steps apart."""
    columns, rows, stride = 12, 3, 2
    starts = np.linspace(0, max(0, len(film) - columns * stride * every_nth), rows).astype(int)
    real = [film[np.minimum(start + every_nth * stride * np.arange(columns), len(film) - 1)] for start in starts]
    lamps = [[draw(chain) for chain in latents[:rows, :stride * columns:stride]]
             for latents in (rolled.early[0], rolled.late[-1])]
    titles = ("real", "new lamps", f"after {rolled.stretches * STRETCH:,} steps")
    sheet, axes = plt.subplots(3, 1, figsize=(columns, 3 * rows + 1), layout="constrained")
    for axis, title, clips in zip(axes, titles, (real, *lamps), strict=True):
        axis.imshow(np.concatenate([np.concatenate(list(clip), axis=1) for clip in clips]))
        axis.set_title(title)
        axis.axis("off")
    write(sheet, path)


def plot_endurance(path, rolled):
    """The state over the long rollout: moments, distances between chains, autocorrelation."""
    steps = np.linspace(0, rolled.stretches * STRETCH, len(rolled.batch) + 1)[1:]
    sheet, axes = plt.subplots(7, 1, figsize=(10, 16), layout="constrained")
    for axis, moment, *windows in zip(axes, MOMENTS, *(np.moveaxis(x, 1, 0) for x in (rolled.one, rolled.batch)),
                                      strict=False):
        for label, color, values in zip(("one lamp", f"{CHAINS} lamps"), ("tab:orange", "tab:blue"), windows,
                                        strict=True):
            axis.fill_between(steps, values.min(1), values.max(1), color=color, alpha=0.25, linewidth=0)
            axis.plot(steps, np.median(values, axis=1), color=color, label=label)
        axis.set_ylabel(moment)
    axes[0].set_title("each coordinate of the state: median, and smallest to largest")
    axes[0].legend(loc="upper right")
    for label, values in zip(("mean", "smallest"), rolled.separation.T, strict=True):
        axes[5].plot(steps, values, label=label)
    axes[5].set_ylabel("distance between lamps")
    axes[5].set_xlabel("steps")
    axes[5].legend(loc="upper right")
    for chain in rolled.autocorrelation:
        axes[6].semilogx(np.arange(1, len(chain)), chain[1:], linewidth=0.5)
    axes[6].set_ylabel("autocorrelation")
    axes[6].set_xlabel("lag in steps")
    write(sheet, path)


def write(sheet, path):
    """Write a picture as PNG, whole or not at all."""
    with replacing(path) as part:
        sheet.savefig(part, format="png", dpi=80)
    plt.close(sheet)
