"""How close generated frames come to the footage, and for how long: a table, two pictures and eval.json.

Every distance to the footage is divided by its floor, the same distance between two disjoint halves of the footage: 1
means as close as real is to real. Latents are compared with normal vectors, over a long rollout. metrics.py computes
the distances.
"""

import json
import math
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise

import matplotlib
import numpy as np
from keras import ops
from tqdm import tqdm

import data
import metrics
from backend import compiled
from files import UserError, check_folder, handling, replacing
from models import slerp
from sample import BATCH_PIXELS, BURN_IN_STEPS, load, to_frames

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CLIPS = 2048  # in a sample; fewer where the footage is short
SAMPLES = 3  # samples taken of everything, for the spread
VIDEOS = 64  # rolled side by side
STRETCH = 1000  # steps rolled at once
PER_SAMPLE = 4  # stretches in a sample
PARTS = 100  # parts of the long rollout whose latents are described one by one
THIN = 10  # moments are taken of every tenth latent, as neighbours are nearly equal, or of fewer of a longer rollout
FAR = 50  # steps after which frames of the footage count as of another time
CYCLES = dict(videos=4, steps=200_000, longest=20_000)  # what the autocorrelation is taken of, and its longest lag
MOMENTS = ("mean", "deviation", "skewness", "kurtosis", "correlation")

# name: (low, high, meaning), good between low and high. Footage that was not trained on is good in all figures, and
# planted faults are not (tests/test_evaluate.py).
FIGURES = {
    "swd_frame": (0, 1.5, "sliced Wasserstein distance of frames, in floors: of the worst level of an image pyramid; "
                          "_64: of the level of 64 pixels"),
    "swd_difference": (0, 2.5, "the same of differences of frames a time step apart"),
    "flow": (0, 3, "distance of the distributions of pixel speeds by optical flow, in floors"),
    "brightness": (0, 3, "distance of the distributions of a frame's mean brightness, in floors"),
    "colour": (0, 3, "the same of a frame's mean colour"),
    "foreground_share": (0, 3, "the same of the share of a frame that is brighter than Otsu's threshold"),
    "speed": (0.85, 1.15, "mean absolute difference of frames a time step apart, as a share of the footage's"),
    "jitter": (0, 2, "how much that difference varies from one time step to the next, as a share of the footage's"),
    "diversity": (0.95, 1.05, "mean distance of frames of different videos, as a share of the footage's; 'real' is "
                              "that of the footage's own frames in random order; the lower limit is 0.95 of it, "
                              "and at most 0.95"),
    "nearest_neighbour_ratio": (0.75, math.inf, "distance of generated frames to the nearest of the footage, over that "
                                                "of its own frames to others; less than 1: copies"),
    "late_to_early_swd_frame": (0.97, 1.03, "swd_frame at the end of the long rollout, over that of new videos"),
    "late_to_early_swd_difference": (0.97, 1.03, "the same of swd_difference"),
    "late_to_early_diversity": (0.97, 1.03, "the same of diversity"),
    "late_colour": (0, 3, "colour at the end of the long rollout"),
    "latent_mean": (0, 0.2, "mean of the worst coordinate of the latent in the worst part of the rollout, a hundredth "
                            "or at least 1,000 time steps"),
    "latent_deviation": (0.8, 1.2, "the same of the standard deviation"),
    "latent_skewness": (0, 0.5, "the same of the skewness"),
    "latent_kurtosis": (2, 4, "the same of the kurtosis"),
    "latent_correlation": (0, 0.3, "the same of the largest correlation with another coordinate"),
    # No limit from lag 100: what crossed the frame may well come back once. A cycle comes back after 1,000 steps too.
    "autocorrelation_100": (None, None, "largest autocorrelation of a video's latents from a lag of 100 time steps on"),
    "autocorrelation_1000": (0, 0.1, "the same from 1,000 time steps on; a cycle has 1"),
    "latent_distance_mean": (0.95, 1.05, "mean distance of the latents of two videos, over that of normal vectors"),
    "latent_distance_least": (0.5, math.inf, "the least such distance; 0: two videos are the same"),
}


def evaluate(prefix, cache, seed, steps, overwrite=False):
    """Compare videos of the weights `prefix` with the footage in `cache`, and write the figures beside the weights.

    Args:
        prefix: of the weights. eval.json in their folder gets an entry under their name; the pictures are
            <prefix>.clips.png and <prefix>.endurance.png.
        cache: path of the frames, as `data.load` returns it.
        seed: of videos, frames, patches and projections.
        steps: of the long rollout, rounded to whole thousands, at least SAMPLES of them.
        overwrite: replace an entry of more steps or of other footage.

    Prints the table, and returns the entry: what was compared, and "figures", a list of dicts as `figure` makes them.

    Raises:
        UserError: the footage is too short or shows too little, the weights cannot be read, their folder cannot be
            written to, or there is an entry of more steps or of other footage.
    """
    path = prefix.with_name("eval.json")
    known = entries(path)  # first, so that an error there comes before the long work
    check_folder(prefix.parent)
    stretches = max(SAMPLES, round(steps / STRETCH))
    before, digest = known.get(prefix.name), data.digest(cache)
    if before and before["steps"] > stretches * STRETCH and not overwrite:
        raise UserError(f"{path} holds the figures of {before['steps']:,} steps; give --steps as many, "
                        "or --overwrite to replace them")
    if before and before.get("footage") != digest and not overwrite:
        raise UserError(f"{path} holds the figures of other footage; keep a copy, and give --overwrite to replace them")
    config, model = load(prefix)
    footage = np.load(cache, mmap_mode="r", allow_pickle=False)
    lag = data.suited(cache)[1] or data.LAGS[-1]
    with stopping_at_once(), ThreadPoolExecutor(2) as threads:
        references = list(tqdm(threads.map(lambda i: Reference(footage, config.every_nth, lag // 2, [seed, i]),
                                           range(SAMPLES)), desc="comparing halves", total=SAMPLES, unit=" samples"))
    rollout = Rollout(model.transition, seed, stretches)
    decode = decoder(model.generator, config.img_size)
    figures = frame_figures(references, rollout, decode, seed) + latent_figures(rollout)
    entry = dict(footage=digest, frames=len(footage), every_nth=config.every_nth, clips=references[0].clips,
                 videos=VIDEOS, steps=rollout.stretches * STRETCH, samples=SAMPLES, seed=seed, figures=figures)
    print(table(entry), flush=True)  # first, as the disk may be full
    known = entries(path)  # again, as another evaluation may have ended meanwhile
    with replacing(path) as part:
        part.write_text(json.dumps(known | {prefix.name: entry}, indent=2) + "\n")
    plot_clips(prefix.with_name(f"{prefix.name}.clips.png"), footage, config.every_nth, rollout, decode)
    plot_endurance(prefix.with_name(f"{prefix.name}.endurance.png"), rollout)
    return entry


def stopping_at_once():
    """A scope in which a signal ends the process at once: threads would finish what they compute first."""
    return handling(lambda number, _: os._exit(128 + number))


class Reference:
    """A sample of the footage [N, H, W, 3] to compare with, and two halves for the floor of each distance.

    The footage is cut into at most 64 stretches of at least 20 time steps and at least `shortest` frames, or into four
    where it is shorter; its halves are every other stretch. `seed` picks clips, patches and projections.

    Raises:
        UserError: it is too short, or its halves do not differ in a figure.
    """

    def __init__(self, footage, every_nth, shortest, seed):
        stretches = max(4, min(64, len(footage) // max(20 * every_nth, shortest)) // 2 * 2)
        length = len(footage) // stretches
        n = min(2 * CLIPS // stretches, length - 2 * every_nth) // 2 * 2
        if n < 2:
            raise UserError(f"{len(footage)} frames are too few to compare with; give --data_dir a folder of "
                            f"{stretches * (2 * every_nth + 2)} or more")
        rng = np.random.default_rng(seed)
        places = np.stack([i * length + rng.permutation(length - 2 * every_nth)[:n] for i in range(stretches)])
        both = footage[places[..., None] + every_nth * np.arange(3)]  # [stretches, n, 3, H, W, 3]
        self.footage, self.every_nth, self.seed = footage, every_nth, seed
        self.sample, self.halves = both[:, ::2], (both[::2], both[1::2])
        self.clips = math.prod(self.sample.shape[:2])
        [self.floor] = metrics.distances([self.halves[0]], self.halves[1], seed)
        if same := [name for name, distance in self.floor.items() if not distance > 0]:
            raise UserError(f"the two halves of the footage have the same {same[0]}: of {len(footage)} frames too "
                            "few differ; give --data_dir a folder of more")
        excluded = min(FAR * every_nth, len(footage) // 4)
        self.own_neighbour = self.nearest_neighbour(self.sample, places[:, ::2].ravel(), excluded)

    def compare(self, samples):
        """The frame figures of each of some samples, by name: a list of dicts."""
        return [{
            **with_worst({name: distance / self.floor[name] for name, distance in distances.items()}),
            "speed": metrics.speed(sample) / metrics.speed(self.sample),
            "jitter": metrics.jitter(sample) / (metrics.jitter(self.sample) + 1e-6),
            "diversity": metrics.diversity(sample) / metrics.diversity(self.sample),
            "nearest_neighbour_ratio": self.nearest_neighbour(sample) / (self.own_neighbour + 1e-6),
        } for sample, distances in zip(samples, metrics.distances(samples, self.sample, self.seed), strict=True)]

    def nearest_neighbour(self, sample, *where):
        """Mean distance of the frames of a sample to the nearest of the footage; `where` as metrics has it."""
        frames = sample[:, :, 0].reshape(-1, *self.footage.shape[1:])
        return metrics.nearest_neighbour(frames, self.footage, *where).mean()

    def best_diversity(self):
        """The diversity of a model that draws the footage's own frames, at any time any of them.

        It is 1 of long footage. Two frames of short footage are less far apart than two that are far apart in time, and
        a model that draws as many of each kind as the footage shows cannot have more.
        """
        frames = self.sample.reshape(-1, 1, *self.sample.shape[2:])
        return metrics.diversity(np.random.default_rng(0).permutation(frames)) / metrics.diversity(self.sample)


def with_worst(figures):
    """The figures, and swd_frame and swd_difference: the largest of all levels of the pyramid."""
    return figures | {view: max(value for name, value in figures.items() if name.startswith(view))
                      for view in ("swd_frame", "swd_difference")}


class Rollout:
    """A long rollout of the latents of many videos, and what is kept of it.

    early, late: lists of SAMPLES arrays [PER_SAMPLE * VIDEOS, STRETCH, Z]: the first latents of so many videos, and the
        last of VIDEOS videos; of a short rollout fewer, and of its second half alone.
    end: the last latents of these videos [VIDEOS, STRETCH, Z].
    all, first: moments [parts, 5, Z] of the latents of all videos and of the first, in the order of MOMENTS.
    distances: mean and least distance of the latents of two videos [parts, 2].
    autocorrelation: [videos, lags], of the last steps.
    """

    def __init__(self, transition, seed, stretches):
        self.roll = compiled(lambda *args: transition.roll(*args)[::2], transition)  # latents, the state after the last
        self.initial = transition.initial
        self.size, self.stretches = transition.state_size[0], stretches
        ends = set(np.linspace(0, stretches, min(PARTS, stretches) + 1).astype(int)[1:])
        late = deque(maxlen=max(1, min(SAMPLES * PER_SAMPLE, stretches // 2)))  # of the second half
        last = deque(maxlen=CYCLES["steps"] // STRETCH)
        thin = THIN * math.ceil(stretches / 1000)  # a part of a longer rollout takes no more memory
        all_moments, first_moments, distances, part = [], [], [], []
        for i, latents in enumerate(tqdm(self.latents([seed, 0, 3], stretches), desc="rolling", total=stretches,
                                         unit_scale=STRETCH, unit=" steps"), start=1):
            late.append(latents)
            last.append(latents[:CYCLES["videos"]].copy())  # a view would keep the whole, here and below
            part.append(latents[:, ::thin].copy())
            if i in ends:
                thinned = np.concatenate(part, axis=1)
                all_moments.append(metrics.moments(thinned.reshape(-1, thinned.shape[-1])))
                first_moments.append(metrics.moments(thinned[0]))
                distances.append(metrics.pairwise_distances(latents[:, -1]))
                part = []
        new = (next(self.latents([seed, i, 2], 1)) for i in range(SAMPLES * PER_SAMPLE))
        self.early = [np.concatenate(list(islice(new, PER_SAMPLE))) for _ in range(SAMPLES)]
        late, self.end = list(late), late[-1]
        self.late = [np.stack(late[i::SAMPLES] or late[-1:], axis=1).reshape(-1, STRETCH, self.size)
                     for i in range(SAMPLES)]  # a video's own stretches side by side, as diversity wants
        self.all, self.first, self.distances = np.stack(all_moments), np.stack(first_moments), np.stack(distances)
        longest = min(CYCLES["longest"], len(last) * STRETCH // 2)
        self.autocorrelation = np.stack([metrics.autocorrelation(video, longest)
                                         for video in np.concatenate(last, axis=1)])

    def latents(self, seed, stretches):
        """The latents [VIDEOS, STRETCH, Z] of videos after the burn-in, a stretch at a time."""
        rng = np.random.default_rng(seed)

        def normals(*steps):
            return rng.standard_normal((VIDEOS, *steps, self.size), np.float32)

        _, state = self.roll(normals(BURN_IN_STEPS), self.initial(normals()))
        for _ in range(stretches):
            latents, state = self.roll(normals(STRETCH), state)
            yield ops.convert_to_numpy(latents)


def decoder(generator, img_size):
    """A function from latents [N, Z] to frames uint8 [N, H, W, 3]."""
    frames = compiled(lambda latents: to_frames(generator, latents), generator)
    batch = max(1, BATCH_PIXELS // img_size**2)

    def decode(latents):
        padded = np.pad(latents, ((0, -len(latents) % batch), (0, 0)))  # one shape, compiled once
        parts = np.split(padded, len(padded) // batch)
        return np.concatenate([ops.convert_to_numpy(frames(part)) for part in parts])[:len(latents)]

    return decode


def sample_clips(latents, least, every_nth, decode, rng):
    """At least so many clips, n of each of the videos of latents [videos, T, Z], spread over all the time.

    Returns uint8 [videos, n, 3, H, W, 3]. They are frames as they are played: as likely at a time step as at
    each of the places between two.
    """
    videos, steps, size = latents.shape
    n = math.ceil(least / videos)
    starts = ((np.arange(n) + rng.random((videos, n))) * (steps - 3) / n).astype(int)
    path = [latents[np.arange(videos)[:, None], starts + i].reshape(-1, size) for i in range(4)]
    share = (rng.integers(every_nth, size=(videos * n, 1)) / every_nth).astype(np.float32)
    clips = [ops.convert_to_numpy(slerp(start, end, share)) for start, end in pairwise(path)]
    frames = decode(np.stack(clips, axis=1).reshape(-1, size))
    return frames.reshape(videos, n, 3, *frames.shape[1:])


def frame_figures(references, rollout, decode, seed):
    """The figures of the frames of new videos, and of those at the end of the rollout as a multiple of these."""
    compared, rows = [], []
    with stopping_at_once(), ThreadPoolExecutor(2) as threads:
        for i, reference in enumerate(references):
            rng = np.random.default_rng([seed, i, 1])
            samples = [sample_clips(latents[i], reference.clips, reference.every_nth, decode, rng)
                       for latents in (rollout.early, rollout.late)]
            compared.append(threads.submit(reference.compare, samples))
        for future in tqdm(compared, desc="comparing", unit=" samples"):
            early, late = future.result()
            ratios = {f"late_to_early_{name}": late[name] / (early[name] + 1e-6)
                      for name in ("swd_frame", "swd_difference", "diversity")}
            rows.append(early | ratios | {"late_colour": late["colour"]})
    own = round(float(np.mean([reference.best_diversity() for reference in references])), 3)
    return [figure(name, [row[name] for row in rows], own if name == "diversity" else 1) for name in rows[0]]


def latent_figures(rollout):
    """The figures of the latents: of each moment that of the worst coordinate in the worst part."""
    normal = dict(zip(MOMENTS, (0, 1, 0, 3, 0), strict=True))
    found = []
    for moment, parts in zip(MOMENTS, np.moveaxis(rollout.all, 1, 0), strict=True):
        errors = parts - normal[moment]
        worst = errors.flat[np.abs(errors).argmax()]
        found.append(figure(f"latent_{moment}", [normal[moment] + (worst if normal[moment] else abs(worst))],
                            normal[moment]))
    for lag in (100, 1000):
        if lag < rollout.autocorrelation.shape[1]:
            found.append(figure(f"autocorrelation_{lag}", [np.abs(rollout.autocorrelation[:, lag:]).max()], 0))
    vectors = np.random.default_rng(0).standard_normal((len(rollout.distances), VIDEOS, rollout.size))
    normal_mean, normal_least = np.stack([metrics.pairwise_distances(sample) for sample in vectors]).T
    mean, least = rollout.distances.T
    mean = mean / normal_mean.mean()
    return [*found, figure("latent_distance_mean", [mean[np.abs(mean - 1).argmax()]], 1),
            figure("latent_distance_least", [least.min() / normal_least.min()], 1)]


def figure(name, values, real):
    """A line of the table as a dict.

    "name"; "value", the mean of `values`; "spread", their standard deviation, None of one; "real", what real frames or
    normal vectors have; "low" and "high", the limits between which it is good, None where there are none.
    """
    low, high, _ = FIGURES.get(name, (None, None, ""))
    if name == "diversity":
        low *= min(real, 1)
    return dict(name=name, value=float(np.mean(values)), spread=float(np.std(values)) if len(values) > 1 else None,
                real=real, low=low, high=None if high == math.inf else high)


def is_good(figure):
    """Whether a figure lies within its limits."""
    above = figure["low"] is None or figure["value"] >= figure["low"]
    return above and (figure["high"] is None or figure["value"] <= figure["high"])


def table(entry):
    """The figures as lines of text, and the meaning of each."""
    def number(value):
        return "" if value is None else f"{value:.3f}"

    def limits(figure):
        if figure["low"] is None:
            return ""
        return f"at least {figure['low']:g}" if figure["high"] is None else f"{figure['low']:g} to {figure['high']:g}"

    lines = [f"{'':32}{'value':>9}{'spread':>9}{'real':>7}   good"]
    for figure in entry["figures"]:
        lines.append(f"{figure['name']:32}{number(figure['value']):>9}{number(figure['spread']):>9}"
                     f"{figure['real']:>7}   {limits(figure):12}"
                     f"{'' if is_good(figure) else '  <- not good'}".rstrip())
    names = {figure["name"] for figure in entry["figures"]}
    lines += ["", f"spread: standard deviation over {entry['samples']} samples; floor: the distance between two halves "
                  "of the footage"]
    lines += [f"{name}: {meaning}" for name, (*_, meaning) in FIGURES.items() if name in names]
    return "\n".join(lines)


def entries(path):
    """What eval.json at `path` holds by now, by the name of the weights.

    Raises:
        UserError: it is there, but is something else than `evaluate` writes.
    """
    try:
        known = json.loads(path.read_text())
        if isinstance(known, dict) and all(type(entry["steps"]) is int for entry in known.values()):
            return known
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise UserError(f"{path} is not what --mode eval writes; move it away")


def plot_clips(path, footage, every_nth, rollout, decode):
    """Clips of the footage, of new videos and of the end of the rollout, a row each; every other time step."""
    columns, rows, stride = 12, 3, 2
    starts = np.linspace(0, max(0, len(footage) - columns * stride * every_nth), rows).astype(int)
    real = [footage[np.minimum(start + every_nth * stride * np.arange(columns), len(footage) - 1)] for start in starts]
    videos = [[decode(video) for video in latents[:rows]]
              for latents in (rollout.early[0][:, :columns * stride:stride], rollout.end[:, -columns * stride::stride])]
    titles = ("real", "new videos", f"after {rollout.stretches * STRETCH:,} time steps")
    sheet, axes = plt.subplots(3, 1, figsize=(columns, 3 * rows + 1), layout="constrained")
    for axis, title, clips in zip(axes, titles, (real, *videos), strict=True):
        axis.imshow(np.concatenate([np.concatenate(list(clip), axis=1) for clip in clips]))
        axis.set_title(title)
        axis.axis("off")
    save(sheet, path)


def plot_endurance(path, rollout):
    """The latents over the long rollout: moments, distances between videos, autocorrelation."""
    steps = np.linspace(0, rollout.stretches * STRETCH, len(rollout.all) + 1)[1:]
    sheet, axes = plt.subplots(7, 1, figsize=(10, 16), layout="constrained")
    for axis, moment, *parts in zip(axes, MOMENTS, *(np.moveaxis(x, 1, 0) for x in (rollout.first, rollout.all)),
                                    strict=False):
        for label, color, values in zip(("one video", f"{VIDEOS} videos"), ("tab:orange", "tab:blue"), parts,
                                        strict=True):
            axis.fill_between(steps, values.min(1), values.max(1), color=color, alpha=0.25, linewidth=0)
            axis.plot(steps, np.median(values, axis=1), color=color, label=label)
        axis.set_ylabel(moment)
    axes[0].set_title("each coordinate of the latent: median, and least to largest")
    axes[0].legend(loc="upper right")
    for label, values in zip(("mean", "least"), rollout.distances.T, strict=True):
        axes[5].plot(steps, values, label=label)
    axes[5].set_ylabel("distance of latents")
    axes[5].set_xlabel("time steps")
    axes[5].legend(loc="upper right")
    for video in rollout.autocorrelation:
        axes[6].semilogx(np.arange(1, len(video)), video[1:], linewidth=0.5)
    axes[6].set_ylabel("autocorrelation")
    axes[6].set_xlabel("lag in time steps")
    save(sheet, path)


def save(sheet, path):
    """Write a picture as PNG, whole or not at all."""
    with replacing(path) as part:
        sheet.savefig(part, format="png", dpi=80)
    plt.close(sheet)
