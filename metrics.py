"""Distances between samples of frames, and what states look like over time: NumPy and OpenCV, no pretrained network.

A sample is an array of clips, uint8 [groups, n, 3, H, W, 3]: the frames of a clip are one model step apart, and the
groups are chains of the lamp, or stretches of the footage. The last frame matters to `tremor` alone; to the others a
clip is the pair of its first two.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

# Sliced Wasserstein distance, by the numbers of Karras et al., "Progressive growing of GANs", 2018.
PATCH, PATCHES, PROJECTIONS, COARSEST = 7, 128, 512, 16

FLOWS = 512  # clips of a sample whose optical flow is measured
SHIFTS = 8  # groups that each group is compared with for diversity
POOL = 4096  # frames of the footage among which the nearest is looked for


def distances(sample, reference, seed):
    """Distances of a sample to a reference sample, by name.

    looks and motion: sliced Wasserstein distances of frames, and of the changes in a step, at each level of
    the pyramid and their mean. The others: Wasserstein distances of single numbers. flow: the speed of a pixel, in
    pixels a step. brightness: the mean luma of a frame, in grey levels. colour: the mean of a frame in each channel,
    in grey levels. bright area: the share of a frame that is brighter than Otsu's threshold of the reference. Of the
    larger sample some clips are left out.
    """
    sample, reference = flat(sample), flat(reference)
    n = min(len(sample), len(reference))
    sample, reference = (clips[np.linspace(0, len(clips) - 1, n).astype(int)] for clips in (sample, reference))
    found = {}
    for name, view in {"looks": lambda clips: clips[:, 0], "motion": change}.items():
        levels = sliced_wasserstein(view(sample), view(reference), seed)
        found |= {f"{name}, {sample.shape[3] >> i} px": level for i, level in enumerate(levels)}
        found[name] = float(np.mean(levels))
    ours, theirs = luma(sample[:, 0]), luma(reference[:, 0])
    threshold, _ = cv2.threshold(theirs.reshape(1, -1), 0, 255, cv2.THRESH_OTSU)
    return found | {
        "flow": wasserstein(flow(sample), flow(reference)),
        "brightness": wasserstein(ours.mean((1, 2)), theirs.mean((1, 2))),
        "colour": wasserstein(sample[:, 0].mean((1, 2)).T, reference[:, 0].mean((1, 2)).T),
        "bright area": wasserstein((ours > threshold).mean((1, 2)), (theirs > threshold).mean((1, 2))),
    }


def speed(sample):
    """Mean absolute change of a frame in one step, in grey levels."""
    return float(np.abs(change(flat(sample))).mean())


def tremor(sample):
    """How much the change of a frame varies from one step to the next: the deviation of their ratio's logarithm.

    What swims steadily has little of it, even where it is now quick and now slow; what trembles or jumps has much.
    """
    clips = flat(sample)
    first, second = (np.abs(change(clips, step)).mean((1, 2, 3)) + 0.01 for step in (0, 1))  # 0: it stands still
    return float(np.std(np.log(second / first)))


def diversity(sample):
    """Mean absolute distance of frames of different groups, in grey levels.

    Each group is compared with some that are a quarter to three quarters of their number further on: of footage, with
    frames far apart in time.
    """
    frames = np.ascontiguousarray(sample[:, :, 0])
    shifts = {math.ceil(shift) for shift in np.linspace(len(frames) / 4, len(frames) * 3 / 4, SHIFTS)}
    return float(np.mean([cv2.absdiff(frames.ravel(), np.roll(frames, shift, axis=0).ravel()).mean()
                          for shift in shifts]))


def nearest(frames, film, places=None, apart=0):
    """Distance of each of the frames [N, H, W, 3] to the nearest of some of the film, root mean square, in grey levels.

    With `places` [N], where these frames stand in the film themselves, only frames more than `apart` away count.
    """
    stride = math.ceil(len(film) / POOL)
    pool, points = thumbnails(film[::stride]), thumbnails(frames)
    squares = (points**2).sum(1)[:, None] - 2 * points @ pool.T + (pool**2).sum(1)
    if places is not None:
        squares[np.abs(places[:, None] - stride * np.arange(len(pool))) <= apart] = np.inf
    return np.sqrt(np.maximum(squares.min(1), 0) / pool.shape[1])


def sliced_wasserstein(images, reference, seed):
    """Sliced Wasserstein distance of two sets of images [N, H, W, 3], at each level of their Laplacian pyramids.

    Each channel of each set is brought to mean 0 and deviation 1 first, so what is told is the shape of things; of a
    frame's brightness and colour `distances` tells in other ways.
    """
    rng = np.random.default_rng(seed)
    found = []
    for levels in zip(pyramid(images), pyramid(reference), strict=True):
        ours, theirs = (patches(normalise(level), rng) for level in levels)
        directions = rng.standard_normal((PROJECTIONS, ours.shape[1]), np.float32)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        found.append(float(np.mean([wasserstein(some @ ours.T, some @ theirs.T)
                                    for some in np.split(directions, PROJECTIONS // 128)])))
    return found


def pyramid(images):
    """Laplacian pyramid of images [N, H, W, 3]: float32 arrays, finest first, down to COARSEST pixels."""
    levels, images = [], images.astype(np.float32)
    while images.shape[1] > COARSEST:
        smaller = np.stack([cv2.pyrDown(image) for image in images])
        levels.append(images - np.stack([cv2.pyrUp(image) for image in smaller]))
        images = smaller
    return [*levels, images]


def normalise(images):
    """Images [N, H, W, 3] with mean 0 and deviation 1 in each channel."""
    mean, deviation = cv2.meanStdDev(images.reshape(-1, 1, 3))
    return (images - mean.ravel().astype(np.float32)) / (deviation.ravel().astype(np.float32) + 1e-6)


def patches(images, rng):
    """PATCHES random patches of each of the images [N, H, W, 3], as vectors [N * PATCHES, PATCH * PATCH * 3]."""
    n, height, width, _ = images.shape
    which = np.repeat(np.arange(n), PATCHES)
    top, left = (rng.integers(0, side - PATCH + 1, len(which)) for side in (height, width))
    windows = np.lib.stride_tricks.sliding_window_view(images, (PATCH, PATCH), axis=(1, 2))
    return windows[which, top, left].reshape(len(which), -1)


def wasserstein(one, two):
    """Wasserstein distance of two sets of as many numbers, float [N] or [rows, N], averaged over rows.

    It sorts them where they are.
    """
    with ThreadPoolExecutor() as threads:  # sorting is what costs, and NumPy sorts on one core
        list(threads.map(np.ndarray.sort, [*np.atleast_2d(one), *np.atleast_2d(two)]))
    return float(np.abs(np.subtract(one, two, out=one), out=one).mean())


def flow(clips):
    """Speed of each pixel in FLOWS of the clips [N, 3, H, W, 3], in pixels a step, by DIS (Kroeger et al. 2016)."""
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)  # frames are small
    chosen = clips[np.linspace(0, len(clips) - 1, min(FLOWS, len(clips))).astype(int), :2]
    return np.concatenate([np.linalg.norm(dis.calc(*luma(pair), None), axis=-1).ravel() for pair in chosen])


def flat(sample):
    """The clips [N, 3, H, W, 3] of a sample."""
    return sample.reshape(-1, *sample.shape[2:])


def change(clips, step=0):
    """What changes in a step, the first by default, of clips [N, 3, H, W, 3]: int16 [N, H, W, 3]."""
    return clips[:, step + 1].astype(np.int16) - clips[:, step]


def luma(frames):
    """Luma of RGB frames [N, H, W, 3]: uint8 [N, H, W]."""
    tall = np.ascontiguousarray(frames).reshape(-1, *frames.shape[2:])
    return cv2.cvtColor(tall, cv2.COLOR_RGB2GRAY).reshape(frames.shape[:3])


def thumbnails(frames):
    """Frames [N, H, W, 3] as vectors of at most 32x32 pixels: float32 [N, 3072]."""
    size = min(32, frames.shape[1])
    small = [cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA) for frame in frames]
    return np.stack(small).reshape(len(small), -1).astype(np.float32)


def describe(states):
    """Each coordinate of states [N, Z]: mean, deviation, skewness, kurtosis, largest correlation to another: [5, Z]."""
    mean, std = states.mean(0), states.std(0) + 1e-6
    scaled = (states - mean) / std
    correlations = np.abs(scaled.T @ scaled / len(scaled) - np.eye(scaled.shape[1]))
    return np.stack([mean, std, (scaled**3).mean(0), (scaled**4).mean(0), correlations.max(0)])


def separation(states):
    """Mean and smallest distance of any two of the states [chains, Z]; a mean of about 1 is that of normal vectors."""
    apart = np.linalg.norm(states[:, None] - states, axis=-1)[np.triu_indices(len(states), 1)]
    return np.array([apart.mean(), apart.min()]) / math.sqrt(2 * states.shape[1])


def autocorrelation(states, longest):
    """Mean product of states [T, Z] a lag apart, as a share of their mean square, for lags from 0 to `longest`.

    Nothing is subtracted first: a lamp that stands still is perfectly correlated.
    """
    length = 2 ** math.ceil(math.log2(len(states) + longest))
    power = sum(np.abs(np.fft.rfft(coordinate, length)) ** 2 for coordinate in states.T)
    products = np.fft.irfft(power)[:longest + 1] / (len(states) - np.arange(longest + 1))
    return products / products[0]
