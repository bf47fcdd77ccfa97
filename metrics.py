"""Distances between samples of frames, and statistics of latents over time: NumPy and OpenCV, no pretrained network.

A sample is an array of clips, uint8 [groups, n, 3, H, W, 3]: three frames, a time step apart; the groups are
generated videos, or stretches of the footage. All use the first frame, or the difference of the first two; `jitter`
alone uses the third.
"""

import math

import cv2
import numpy as np
from scipy.spatial.distance import pdist

# Of the sliced Wasserstein distance, as Karras et al. 2018 have it, but for a sixteenth of their projections: more
# change neither the values nor their spread. With fewer patches distances grow, and multiples of the floor come nearer
# to 1.
PATCH_SIZE, PATCHES, PROJECTIONS = 7, 128, 32
COARSEST = 16  # pixels of the last level of a pyramid

FLOW_CLIPS = 512  # clips of a sample whose optical flow is computed
SMALLEST_FLOW = 16  # pixels to which smaller frames are enlarged, as the algorithm wants at least 12
SHIFTS = 8  # groups that each group is compared with for diversity
POOL = 4096  # frames of the footage among which the nearest neighbour is looked for


def distances(samples, reference, seed):
    """Distances of each of some samples to a reference sample: a list of dicts.

    swd_frame, swd_difference: sliced Wasserstein distances of frames and of differences of consecutive frames, at the
        level of the pyramid that <pixels> in swd_frame_<pixels> names.
    The others are Wasserstein distances of distributions of single numbers:
    flow: the speed of a pixel, in pixels a step.
    brightness: the mean luma of a frame, in grey levels.
    colour: the mean of a frame in each channel, in grey levels.
    foreground_share: the share of a frame brighter than Otsu's threshold of the reference.

    Of larger samples some clips are left out, evenly spaced, so that all have the same number.
    """
    *samples, reference = (flat(sample) for sample in (*samples, reference))
    n = min(map(len, (*samples, reference)))
    *samples, reference = (clips[np.linspace(0, len(clips) - 1, n).astype(int)] for clips in (*samples, reference))
    found = [{} for _ in samples]
    for name, view in {"swd_frame": lambda clips: clips[:, 0], "swd_difference": difference}.items():
        levels = sliced_wasserstein([view(sample) for sample in samples], view(reference), seed)
        for figures, of_levels in zip(found, levels, strict=True):
            figures |= {f"{name}_{reference.shape[3] >> i}": level for i, level in enumerate(of_levels)}
    threshold, _ = cv2.threshold(luma(reference[:, 0]).reshape(1, -1), 0, 255, cv2.THRESH_OTSU)
    expected = numbers(reference, threshold)
    for figures, sample in zip(found, samples, strict=True):
        figures |= {name: wasserstein(value, expected[name]) for name, value in numbers(sample, threshold).items()}
    return found


def numbers(clips, threshold):
    """What `distances` compares as distributions of single numbers, of clips [N, 3, H, W, 3]."""
    grey = luma(clips[:, 0])
    return {"flow": flow(clips), "brightness": grey.mean((1, 2)), "colour": clips[:, 0].mean((1, 2)).T,
            "foreground_share": (grey > threshold).mean((1, 2))}


def speed(sample):
    """Mean absolute difference of consecutive frames, in grey levels."""
    return float(np.abs(difference(flat(sample))).mean())


def jitter(sample):
    """How much the difference of frames varies from one step to the next: the deviation of the ratio's logarithm.

    Steady motion has little of it, be it fast or slow; what trembles or jumps has much.
    """
    clips = flat(sample)
    first, second = (np.abs(difference(clips, step)).mean((1, 2, 3)) + 0.01 for step in (0, 1))  # 0: nothing moves
    return float(np.std(np.log(second / first)))


def diversity(sample):
    """Mean absolute distance of frames of different groups, in grey levels.

    Each group is compared with some that are a quarter to three quarters of their number further on: of footage, with
    frames far away in time.
    """
    frames = np.ascontiguousarray(sample[:, :, 0])
    shifts = {math.ceil(shift) for shift in np.linspace(len(frames) / 4, len(frames) * 3 / 4, SHIFTS)}
    return float(np.mean([cv2.absdiff(frames.ravel(), np.roll(frames, shift, axis=0).ravel()).mean()
                          for shift in shifts]))


def nearest_neighbour(frames, footage, places=None, excluded=0):
    """Distance of each of the frames [N, H, W, 3] to the nearest of some of the footage: root mean square, grey levels.

    With `places` [N], the frames' own indices in the footage, only frames more than `excluded` away count.
    """
    stride = math.ceil(len(footage) / POOL)
    pool, points = thumbnails(footage[::stride]), thumbnails(frames)
    squares = (points**2).sum(1)[:, None] - 2 * points @ pool.T + (pool**2).sum(1)
    if places is not None:
        squares[np.abs(places[:, None] - stride * np.arange(len(pool))) <= excluded] = np.inf
    return np.sqrt(np.maximum(squares.min(1), 0) / pool.shape[1])


def sliced_wasserstein(samples, reference, seed):
    """Sliced Wasserstein distance of sets of images [N, H, W, 3] to a reference set, by level: [samples][levels].

    Of patches at each level of Laplacian pyramids (Karras et al., "Progressive growing of GANs", 2018,
    https://arxiv.org/abs/1710.10196). Each channel of each level is scaled to mean 0 and deviation 1 first, so that it
    measures shapes, whatever the brightness and colour, which `distances` compares by themselves.
    """
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((PROJECTIONS, PATCH_SIZE**2 * 3), np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    found = [[] for _ in samples]
    for *levels, expected in zip(*map(pyramid, (*samples, reference)), strict=True):
        expected = directions @ patches(expected, rng).T
        for of_levels, level in zip(found, levels, strict=True):
            of_levels.append(wasserstein(directions @ patches(level, rng).T, expected))
    return found


def pyramid(images):
    """Laplacian pyramid of images [N, H, W, 3]: float32 arrays, finest first, down to COARSEST pixels."""
    images = images.astype(np.float32)
    while images.shape[1] > COARSEST:
        smaller = np.stack([cv2.pyrDown(image) for image in images])
        yield images - np.stack([cv2.pyrUp(image) for image in smaller])
        images = smaller
    yield images


def patches(images, rng):
    """PATCHES random patches of each of the images [N, H, W, 3], as vectors [N * PATCHES, PATCH_SIZE**2 * 3].

    Each channel is scaled by its mean and deviation in all of the images.
    """
    mean, deviation = (part.ravel().astype(np.float32) for part in cv2.meanStdDev(images.reshape(-1, 1, 3)))
    n, height, width, _ = images.shape
    which = np.repeat(np.arange(n), PATCHES)
    top, left = (rng.integers(0, side - PATCH_SIZE + 1, len(which)) for side in (height, width))
    places = np.lib.stride_tricks.sliding_window_view(images, (PATCH_SIZE, PATCH_SIZE), axis=(1, 2))
    chosen = places[which, top, left]  # [N * PATCHES, 3, PATCH_SIZE, PATCH_SIZE]
    chosen -= mean[:, None, None]
    chosen /= deviation[:, None, None] + 1e-6
    return chosen.reshape(len(which), -1)


def wasserstein(one, two):
    """Wasserstein distance of two sets of as many numbers, [N] or [rows, N], averaged over rows."""
    return float(np.abs(np.sort(one) - np.sort(two)).mean())


def flow(clips):
    """Speed of each pixel in FLOW_CLIPS of the clips [N, 3, H, W, 3], in pixels a step.

    By dense inverse search (Kroeger et al. 2016, https://arxiv.org/abs/1603.03590).
    """
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)  # frames are small
    scale = max(1, SMALLEST_FLOW // clips.shape[3])
    chosen = clips[np.linspace(0, len(clips) - 1, min(FLOW_CLIPS, len(clips))).astype(int), :2]
    found = []
    for pair in chosen:
        before, after = (cv2.resize(grey, None, fx=scale, fy=scale) for grey in luma(pair))
        found.append(np.linalg.norm(search.calc(before, after, None), axis=-1).ravel() / scale)
    return np.concatenate(found)


def flat(sample):
    """The clips [N, 3, H, W, 3] of a sample."""
    return sample.reshape(-1, *sample.shape[2:])


def difference(clips, step=0):
    """The difference over a step, the first by default, of clips [N, 3, H, W, 3]: int16 [N, H, W, 3]."""
    return clips[:, step + 1].astype(np.int16) - clips[:, step]


def luma(frames):
    """Luma of RGB frames [N, H, W, 3]: uint8 [N, H, W]."""
    tall = np.ascontiguousarray(frames).reshape(-1, *frames.shape[2:])
    return cv2.cvtColor(tall, cv2.COLOR_RGB2GRAY).reshape(frames.shape[:3])


def thumbnails(frames):
    """Frames [N, H, W, 3] as vectors of at most 32x32 pixels: float32 [N, 3 x 32 x 32 or fewer]."""
    size = min(32, frames.shape[1])
    small = [cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA) for frame in frames]
    return np.stack(small).reshape(len(small), -1).astype(np.float32)


def moments(latents):
    """Of each coordinate of latents [N, Z]: mean, deviation, skewness, kurtosis, largest absolute correlation with
    another: [5, Z].
    """
    mean, std = latents.mean(0), latents.std(0) + 1e-6
    scaled = (latents - mean) / std
    correlations = np.abs(scaled.T @ scaled / len(scaled) - np.eye(scaled.shape[1]))
    return np.stack([mean, std, (scaled**3).mean(0), (scaled**4).mean(0), correlations.max(0)])


def pairwise_distances(latents):
    """Mean and smallest distance of two of the latents [videos, Z], as a share of sqrt(2 Z), that of normal vectors."""
    found = pdist(latents)
    return np.array([found.mean(), found.min()]) / math.sqrt(2 * latents.shape[1])


def autocorrelation(latents, longest):
    """Mean product of latents [T, Z] a lag apart, as a share of their mean square, for lags from 0 to `longest`.

    No mean is subtracted: latents that stand still are perfectly correlated. By the Wiener-Khinchin theorem.
    """
    length = 2 ** math.ceil(math.log2(len(latents) + longest))
    power = sum(np.abs(np.fft.rfft(coordinate, length)) ** 2 for coordinate in latents.T)
    products = np.fft.irfft(power)[:longest + 1] / (len(latents) - np.arange(longest + 1))
    return products / products[0]
