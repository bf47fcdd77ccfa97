"""Frames on disk -> one uint8 array in a file -> batches of sequences.

A folder of images is read once, by all cores, into a cache beside it: a plain .npy file [N, H, W, 3]. Training
takes its sequences from there, and holds no more of it in memory than one batch.
"""

import hashlib
import json
import math
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from files import UserError, replacing

RECORD = "frames.json"  # beside the images: where they came from, and whether they are all there
CHUNK = 2**20  # bytes of frames a thread reads before it writes them to the cache: 85 of 64x64
MOVES = 4 / 255  # deviation of a pixel from which on it moves freely; below, by the square, as cameras make noise
NOTHING = 0.01  # radius of a blob that is not there
PARTINGS = 4  # of the lights of pixels, each by what the one before knows of those around
ALWAYS = 0.9  # share of the time that counts as always
FRAME = (-1, 1, -1, -1, 1, 1)  # the room that all of a frame is
THREADS = min(8, os.cpu_count() or 1)  # more would only wait for each other: a part of the work is Python's


def images(data_dir):
    """The images in the folder `data_dir`, in the order of their names.

    Returns a list of Path: PNG and JPEG files by their suffix, of any case, but hidden ones; empty where the folder is
    missing.
    """
    try:
        with os.scandir(data_dir) as entries:
            names = sorted(entry.name for entry in entries)
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise UserError(f"{data_dir} is a file; name the folder that holds the frames") from None
    return [Path(data_dir, name) for name in names
            if name.lower().endswith((".png", ".jpg", ".jpeg")) and not name.startswith(".")]


def record(data_dir):
    """What footage.py noted in `data_dir`/frames.json about the images there; {} where it noted nothing.

    Keys: "origin" (what the frames are made of, enough to tell two sources apart), "source" (in words), "fps",
    "n_frames" and "complete" (false while frames are still being written).
    """
    try:
        noted = json.loads(Path(data_dir, RECORD).read_text())
        known = isinstance(noted, dict) and isinstance(noted.get("origin"), dict) and "complete" in noted
        return noted if known else {}
    except (OSError, ValueError):
        return {}


def load(data_dir, img_size):
    """Read the images in `data_dir` into a cache beside that folder, unless it is there already.

    The images, in the order of their names, are consecutive frames. They have one size; the largest square in the
    middle of each is resized to `img_size` pixels. What is not 8-bit RGB is converted where that loses nothing.

    The cache's name holds a fingerprint of the images' names, sizes and times of change, so it is never stale; caches
    of the same folder and `img_size` from before a change are removed once the new one is whole.

    Returns:
        The path of the cache, a uint8 .npy file [N, img_size, img_size, 3], RGB.

    Raises:
        UserError: there are no images, or not all of them yet; an image is damaged, cannot be converted, or has
            another size than the first; the cache cannot be written.
    """
    folder = Path(os.path.abspath(data_dir))
    paths = images(folder)
    if not paths:
        raise UserError(f"{data_dir} holds no PNG or JPEG images; name the folder that does, or put some there with "
                        "--mode prepare or --mode simulate")
    if not record(folder).get("complete", True):
        raise UserError(f"{data_dir} holds only part of its frames, as writing them was interrupted; do that again, "
                        f"or delete {RECORD} there to use the part")
    stem = f"{folder.name}.{img_size}."
    cache = folder.with_name(f"{stem}{fingerprint(paths)}.npy")
    if not whole(cache, (len(paths), img_size, img_size, 3)):
        try:
            with replacing(cache) as part:
                read_all(paths, img_size, part)
        except OSError as error:
            raise UserError(f"{error.filename or cache} cannot be read or written: {error.strerror}") from None
    sweep(cache, stem)
    return cache


def count(cache):
    """The number of frames in the cache that `load` made."""
    return len(np.load(cache, mmap_mode="r", allow_pickle=False))


class Lights(NamedTuple):
    """What the pixels of footage look like, [H, W, 3] in 0..1.

    mean: the mean frame. behind, front: what a pixel shows when nothing is before it, and when something is. moving:
    how freely each pixel changes [H, W, 1], from 0, never, to 1. area: of what is in front and moves, in squares of
    half a frame, as it would be if nothing overlapped. room: the trapezoid in which pixels change, in halves of a frame
    from its middle: its top and bottom, where its left side begins and ends, and its right side. rest: what is in front
    for nearly all of the time, on the floor and under the lid, as half an ellipse each [4, 2]: its centre x, y, and
    radii across and down, in the same unit.
    """

    mean: np.ndarray
    behind: np.ndarray
    front: np.ndarray
    moving: np.ndarray
    area: float
    room: tuple = FRAME
    rest: np.ndarray = np.float32([[0, 0], [1, -1], [0.5, 0.5], [0.05, 0.05]])


def lights(cache):
    """Look at up to a thousand frames, spread over the cache that `load` made.

    The lights of each pixel over time are parted in two, each close to the mean of its part (k-means, Lloyd 1982): wax
    and liquid, where there are such. Where a pixel shows hardly anything but one of them, the other is taken from the
    pixels around. What is seen less, where both are seen, is taken to be in front.
    """
    frames = np.load(cache, mmap_mode="r", allow_pickle=False)
    mean, moving, lights, share = parted(frames[::math.ceil(len(frames) / 1000)])
    moves = moving[..., 0] > 0.25
    both = share[moves & (share > 1 - ALWAYS) & (share < ALWAYS)]
    if both.size and both.mean() > 0.5:
        lights, share = lights[::-1], 1 - share
    behind, front = mean + moving * (lights - mean)
    always = moves & (share > ALWAYS)
    covered = min(0.5, share[moves & ~always].mean()) if (moves & ~always).any() else 0
    # Discs that lie anywhere, of an area a, cover 1 - exp(-a) of a unit square.
    area = -math.log(1 - covered) * 4 * float(moving.mean())
    glass = room(moves)
    return Lights(mean, behind, front, moving, max(area, 0.01), glass, rest(always, glass))


def parted(frames):
    """The lights of pixels of frames uint8 [N, H, W, 3], parted in two, in 0..1.

    A pixel's own two lights count where they are about as far apart as those of the pixels around. Where they are not,
    it shows one of the two only, the one it is nearer to. A light of its own that lies between the two, as where an
    edge lies still, is taken from around, too. Only where what moves ends, as at a glass, its own count in any case.

    Returns the mean, how freely a pixel changes [H, W, 1], the means of its dark part and of its bright one
    [2, H, W, 3], and the share of the latter [H, W].
    """
    def by_row(part, *more):  # all frames as floats would be large
        rows = [part(frames[:, i], *(x[:, i] for x in more)) for i in range(frames.shape[1])]
        return [np.stack(found, axis=-3) for found in zip(*rows, strict=True)]

    mean, deviation, own, own_share = by_row(k_means)
    moving = np.minimum(deviation.max(-1, keepdims=True) / MOVES, 1) ** 2
    width = 2 * math.ceil(len(mean) / 64) + 1
    ends = cv2.dilate(np.uint8(moving < 0.25), np.ones((width, width)))[..., None]
    lights, share = own, own_share
    for _ in range(PARTINGS):
        around = surroundings(lights, moving * share * (1 - share))
        led, led_share = by_row(nearest, around)
        trust = np.maximum(ends, np.clip(4 * along(own[1] - own[0], around) - 1, 0, 1))
        lights, share = led + trust * (own - led), led_share + trust * (own_share - led_share)
    mixed = [along(lights[0] - around[0], around), along(around[1] - lights[1], around)]
    lights += (1 - ends) * np.clip(2 * np.stack(mixed), 0, 1) * (around - lights)
    return mean, moving, lights, share[..., 0]


def along(difference, lights):
    """How far a difference [H, W, 3] goes along the way from the first of lights [2, H, W, 3] to the second."""
    way = lights[1] - lights[0]
    return (difference * way).sum(-1, keepdims=True) / (np.square(way).sum(-1, keepdims=True) + 1e-9)


def k_means(pixels):
    """Of pixels uint8 [N, W, 3] over time: mean, deviation, the means of dark and bright part [2, W, 3], the latter's
    share.
    """
    mean, deviation, colours = pixels.mean(0) / 255, pixels.std(0) / 255, pixels.astype(np.float32) / 255
    light, lights = colours.mean(-1, keepdims=True), np.stack([mean, mean])
    for _ in range(9):
        lights, shares = halves(colours, light > lights.mean((0, 2))[:, None], lights)
    return mean, deviation, lights, shares[1]


def nearest(pixels, around):
    """Of pixels uint8 [N, W, 3]: the means of those nearer to the one and to the other of two lights around,
    [2, W, 3], and the latter's share. What is seen less than a tenth of the time or so is taken to be as it is around.
    """
    colours = pixels.astype(np.float32) / 255
    lights, shares = halves(colours, colours.mean(-1, keepdims=True) > around.mean((0, 2))[:, None], around)
    return around + shares**2 / (shares**2 + (1 - ALWAYS) ** 2) * (lights - around), shares[1]


def halves(colours, bright, default):
    """The means of the dark and the bright among colours [N, W, 3], or the default, and the shares of both."""
    shares = np.stack([1 - bright.mean(0), bright.mean(0)])
    sums = np.stack([(colours * ~bright).mean(0), (colours * bright).mean(0)])
    return np.where(shares > 0, sums / np.maximum(shares, 1e-9), default), shares


def surroundings(lights, weight):
    """Both lights [2, H, W, 3] as the pixels around have them, by `weight` [H, W, 1] and how much the two differ."""
    weight = weight * np.square(lights[1] - lights[0]).mean(-1, keepdims=True) + 1e-9

    def blur(x):
        return cv2.GaussianBlur(x.astype(np.float32), (0, 0), len(x) / 8).reshape(*x.shape[:2], -1)

    return np.stack([blur(weight * light) / blur(weight) for light in lights])


def rest(always, glass):
    """Two halves of ellipses, as Lights has them, as large as what is always in front, [H, W], and as wide."""
    down, right = ((2 * np.arange(size) + 1) / size - 1 for size in always.shape)
    low = down > (glass[0] + glass[1]) / 2
    found = []
    for end, half in (glass[1], low), (glass[0], ~low):
        columns = always[half].sum(0)
        if not columns.any():
            found.append((0, end, NOTHING, NOTHING))
            continue
        x = np.average(right, weights=columns)
        across = max(2 * math.sqrt(np.average(np.square(right - x), weights=columns)), 2 / len(right))
        found.append((x, end, across, 2 * columns.sum() * 4 / always.size / (math.pi * across)))
    return np.float32(found).T


def room(moving):
    """The trapezoid that fits best round the pixels [H, W] that move, as Lights has it; all of the frame if none do."""
    rows = np.nonzero(moving.any(1))[0]
    if len(rows) < 2:
        return FRAME
    height, width = moving.shape
    moving, ends = moving[rows], 2 * np.array([rows[0], rows[-1] + 1]) / height - 1
    sides = moving.argmax(1), width - moving[:, ::-1].argmax(1)
    lines = [np.polyfit((2 * rows + 1) / height - 1, 2 * side / width - 1, 1) for side in sides]
    return (*ends, *np.polyval(lines[0], ends), *np.polyval(lines[1], ends))


def pace(cache, every_nth, lags, share=1.0):
    """How far frames of the cache that `load` made are apart that lie `lags` steps apart, as a share, 0.01 to 1.

    Of thumbnails of 8x8 pixels, at up to four thousand places in the cache: the root mean square difference, by that of
    frames of independent times. The time between them is taken `share` times as long; between frames lies a straight
    line. A lag of more than half the cache is taken for that half.

    Returns a dict {lag: share}.
    """
    frames = np.load(cache, mmap_mode="r", allow_pickle=False)
    stride = math.ceil(len(frames) / 4000)

    def small(start):
        return np.stack([cv2.resize(frame, (8, 8), interpolation=cv2.INTER_AREA)
                         for frame in frames[start::stride]]).astype(np.float32)

    here, most = small(0), len(frames) // 2
    independent = math.sqrt(2 * here.var(0).mean()) + 1e-6
    gaps = {lag: min(lag * every_nth * share, most) for lag in lags}
    whole = sorted({end for gap in gaps.values() for end in (math.floor(gap), math.ceil(gap))})
    apart = [math.sqrt(np.square(there - here[:len(there)]).mean()) for there in map(small, whole)]
    return {lag: max(0.01, min(1.0, float(np.interp(gap, whole, apart)) / independent)) for lag, gap in gaps.items()}


def change(cache, every_nth):
    """How much a frame of the cache that `load` made changes in one step of the model: the mean difference, 0 to 1.

    At up to two thousand places.
    """
    frames = np.load(cache, mmap_mode="r", allow_pickle=False)
    before, after = frames[:-every_nth], frames[every_nth:]
    places = range(0, len(before), math.ceil(len(before) / 2000))
    return float(np.mean([cv2.absdiff(before[i], after[i]).mean() for i in places])) / 255


def batches_per_epoch(n_frames, batch_size, clip_len, every_nth):
    """Batches in one epoch, which shows about every one of `n_frames` frames once; at least 1."""
    return max(1, (n_frames - every_nth * clip_len) // (batch_size * clip_len))


def batches(cache, batch_size, clip_len, every_nth, seed, start=0, rows=None):
    """Sequences from the cache that `load` made, for ever, beginning with batch number `start`.

    A sequence is `clip_len` frames, `every_nth` apart. In each epoch of `batches_per_epoch` batches the places where
    sequences begin follow a fresh permutation of all such places, drawn from (`seed`, epoch); where one permutation is
    not enough, more follow. So batch number n is the same whatever `start` is. Of each batch only the sequences that
    `rows` lists are read, all of them by default: several machines may share a batch.

    Yields:
        uint8 [len(rows), clip_len, H, W, 3], RGB.

    Raises:
        UserError: there are too few frames for one sequence (at once), or the cache was cut short (on the way).
    """
    frames = np.load(cache, mmap_mode="r", allow_pickle=False)
    n_frames, shape, offset = len(frames), frames.shape, frames.offset
    n_places = n_frames - every_nth * (clip_len - 1)
    if n_places < 1:
        raise UserError(f"{cache} holds {n_frames} frames and a sequence takes {n_frames - n_places + 1}; "
                        "add frames, or lower --every_nth or the length of a sequence")
    per_epoch = batches_per_epoch(n_frames, batch_size, clip_len, every_nth)
    rows = np.arange(batch_size) if rows is None else np.asarray(rows)

    def endless():
        epoch, first = divmod(start, per_epoch)
        with open(cache, "rb", buffering=0) as file:  # once: a newer cache of the same folder may remove its name
            while True:
                rng = np.random.default_rng([seed, epoch])
                needed = math.ceil(per_epoch * batch_size / n_places)
                order = np.concatenate([rng.permutation(n_places) for _ in range(needed)])
                for i in range(first, per_epoch):
                    batch = np.empty((len(rows), clip_len, *shape[1:]), np.uint8)
                    for clip, place in zip(batch, order[i * batch_size + rows], strict=True):
                        for step, frame in enumerate(clip):
                            # Not through a map of the file: its pages would count as this process's memory.
                            file.seek(offset + int(place + step * every_nth) * frame.nbytes)
                            if file.readinto(frame) != frame.nbytes:
                                raise UserError(f"{cache} was cut short while it was in use; start again")
                    yield batch
                epoch, first = epoch + 1, 0

    return endless()


def fingerprint(paths):
    """16 hexadecimal digits that change when the name, size or time of change of one of `paths` does."""
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        stat = os.stat(path)
        digest.update(f"{path.name}/{stat.st_size}/{stat.st_mtime_ns}/".encode(errors="surrogateescape"))
    return digest.hexdigest()


def whole(cache, shape):
    """Whether the file `cache` is there and holds a uint8 array of this shape."""
    try:
        frames = np.load(cache, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return False
    return frames.shape == shape and frames.dtype == np.uint8


def sweep(cache, stem):
    """Remove what `cache` replaces: older caches, named `stem` and a fingerprint, and unfinished ones."""
    pattern = re.compile(rf"{re.escape(stem)}[0-9a-f]{{16}}\.npy|\.{re.escape(stem)}[0-9a-f]{{16}}\.npy\.\d+\.part")
    for old in cache.parent.iterdir():
        if pattern.fullmatch(old.name) and old != cache:
            with suppress(OSError):  # another process may be at the same
                # An unfinished one that grew within the hour may be in the making by another process.
                if old.suffix == ".npy" or time.time() - old.stat().st_mtime > 3600:
                    old.unlink()


def read_all(paths, img_size, part):
    """Read the images at `paths` into the new .npy file `part`, [len(paths), img_size, img_size, 3]."""
    shape = (len(paths), img_size, img_size, 3)
    size = decode(paths[0]).shape
    writing = threading.Lock()
    with open(part, "wb") as file, ThreadPoolExecutor(THREADS) as threads:
        header = dict(descr="|u1", fortran_order=False, shape=shape)
        np.lib.format.write_array_header_1_0(file, header)
        offset = file.tell()
        chunk = max(1, CHUNK // math.prod(shape[1:]))

        def read_chunk(i):
            # Plain writes, each at its place: unlike pages of a mapped file they do not stay in the process's memory.
            frames = np.empty((min(chunk, len(paths) - i), *shape[1:]), np.uint8)
            for frame, path in zip(frames, paths[i:i + chunk], strict=True):
                image = decode(path)
                if image.shape != size:
                    raise UserError(f"{path} is {image.shape[1]}x{image.shape[0]} pixels and {paths[0].name} is "
                                    f"{size[1]}x{size[0]}; bring all frames to one size")
                cv2.cvtColor(fit(image, square(image), img_size), cv2.COLOR_BGR2RGB, frame)
            with writing:
                file.seek(offset + i * frames[0].nbytes)
                file.write(frames)
            return len(frames)

        with tqdm(total=len(paths), desc=f"reading {paths[0].parent.name}", unit="frame") as bar:
            for n in threads.map(read_chunk, range(0, len(paths), chunk)):
                bar.update(n)


def decode(path):
    """The image at `path`, uint8 BGR [H, W, 3].

    Raises:
        UserError: the file is empty, cut short or damaged, is neither PNG nor JPEG, or would lose something as 8-bit
            RGB.
    """
    with open(path, "rb", buffering=0) as file:
        data = file.read()
    png, jpeg = data.startswith(b"\x89PNG"), data.startswith(b"\xff\xd8")
    if data and not png and not jpeg:
        raise UserError(f"{path} is neither PNG nor JPEG, whatever its name; convert or remove it")
    # Of a JPEG cut short OpenCV makes up the rest, and prints about that of a PNG: look for the end mark first.
    image = None
    if data.endswith(b"IEND\xaeB`\x82") if png else data.rstrip(b"\0").endswith(b"\xff\xd9"):
        # A JPEG is opaque, 8-bit, and may say which way is up; a PNG may be anything.
        flags = cv2.IMREAD_UNCHANGED if png else cv2.IMREAD_COLOR
        with suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise UserError(f"{path} is empty, cut short or damaged; make or copy it again, or remove it")
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image
    return lossless(image, path)


def lossless(image, path):
    """The grey, 16-bit or transparent `image` of any of OpenCV's layouts as uint8 BGR, if that loses nothing."""
    if image.dtype == np.uint16:
        if (image % 257).any():  # 257 = 65535 / 255
            raise UserError(f"{path} has more than 8 bits a channel; save the frames with 8")
        image = (image // 257).astype(np.uint8)
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.shape[2] == 4 and (image[..., 3] < 255).any():
        raise UserError(f"{path} is transparent in places; save the frames without an alpha channel")
    return np.ascontiguousarray(image[..., :3])


def square(image, crop=None):
    """The largest square in the middle of the `image`, or of the part `crop` of it: (x, y, width, height)."""
    x, y, width, height = crop or (0, 0, image.shape[1], image.shape[0])
    side = min(width, height)
    return x + (width - side) // 2, y + (height - side) // 2, side, side


def fit(image, crop, img_size):
    """The part `crop` (x, y, width, height) of the `image`, resized to `img_size` pixels square."""
    x, y, width, height = crop
    image = image[y:y + height, x:x + width]
    if height == img_size:
        return image
    # Shrinking averages the pixels that fall together; enlarging draws a smooth curve through them.
    return cv2.resize(image, (img_size, img_size), interpolation=cv2.INTER_AREA if height > img_size
                      else cv2.INTER_CUBIC)
