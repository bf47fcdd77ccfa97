"""Frames on disk -> one uint8 array in a file -> batches of clips.

A folder of images is read once, by up to eight threads, into a cache beside it: a plain .npy file [N, H, W, 3].
Training takes its clips from there, and holds no more of it in memory than a few batches.
"""

import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from stat import S_ISREG

import cv2
import numpy as np
import simplejpeg
from natsort import natsorted
from PIL import Image
from tqdm import tqdm

from config import Config
from files import UserError, abandoned, printable, replacing, say

RECORD = "frames.json"  # beside the images: where they came from, and whether they are all there
LARGEST = 2**30  # bytes of an image
TURNS = {2: (0, 1, 0), 3: (0, 1, 1), 4: (0, 0, 1), 5: (1, 0, 0), 6: (1, 1, 0), 7: (1, 1, 1), 8: (1, 0, 1)}  # EXIF's
CHUNK = 2**20  # bytes of frames a thread reads before it writes them to the cache: 85 of 64x64
MOVES = 4 / 255  # standard deviation of a pixel in time from which on its mask is 1; below, smaller: cameras make noise
LAGS = sorted({round(1.2**i) for i in range(39)})  # frames, 1 to 1,021: over these frames are compared
STEP, INDEPENDENT = 0.11, 0.8  # distances, as shares of that of frames of independent times
SHOWN = 25  # times that a run shows each frame, above which footage is augmented
STEPS = 250  # training steps, times the square root of the decorrelation lags that the footage lasts
THREADS = min(8, os.cpu_count() or 1)  # more would only wait for each other: a part of the work is Python's


def images(data_dir):
    """The images in the folder `data_dir`, in the order in which people count: frame2.png before frame10.png.

    Returns a list of Path: PNG, JPEG and WebP files by their suffix, of any case, but hidden ones; empty where the
    folder is missing.

    Raises:
        UserError: it is a file, or cannot be read.
    """
    try:
        names = sorted(os.listdir(data_dir))
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise UserError(f"{data_dir} is a file; name the folder that holds the frames") from None
    except OSError as error:
        raise UserError(f"the folder {data_dir} cannot be read: {error.strerror}; name another") from None
    return [Path(data_dir, name) for name in natsorted(names)
            if name.lower().endswith((".png", ".jpg", ".jpeg", ".webp")) and not name.startswith(".")]


def record(data_dir):
    """What prepare.py noted in `data_dir`/frames.json about the images there; {} where it noted nothing.

    Keys: "origin" (what the frames are made of, enough to tell two sources apart), "source" (in words), "fps" (frames a
    second), "n_frames", "complete" (false while frames are still being written), and of a video "lost": [[seconds,
    frames], ...], how many are damaged or missing after which second of it, or, where seconds is None, how many more
    its header or size tells of.
    """
    try:
        noted = json.loads(Path(data_dir, RECORD).read_text())
        noted = dict(source="images", fps=30.0, n_frames=None, lost=[]) | noted
        kinds = dict(origin=dict, source=str, fps=(int, float), complete=bool, lost=list)
        known = all(isinstance(noted[name], kind) for name, kind in kinds.items()) and 0 < noted["fps"] <= 1000
        return noted if known and all(isinstance(n, int) and float(t or 0) >= 0 for t, n in noted["lost"]) else {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def load(data_dir, img_size, cache_dir=None):
    """Read the images in `data_dir` into a cache, unless it is there already, and print which they are.

    The images, in the order of `images`, are consecutive frames. They have one size; the largest square in the
    middle of each is resized to `img_size` pixels. What is not 8-bit RGB is converted where that loses nothing.

    The cache lies in `cache_dir`; without that beside the folder or, where that cannot be written, in the user's folder
    for caches, which is then told. Its name holds a fingerprint of the images' origin, as frames.json has it, and of
    their names, sizes and times of change. Caches of the same folder and `img_size` from before a change are removed
    once the new one is whole.

    Returns:
        The path of the cache, a uint8 .npy file [N, img_size, img_size, 3], RGB.

    Raises:
        UserError: there are no images, or not all of them yet; an image is damaged, animated, no regular file, cannot
            be converted, or has another size than the first; the cache cannot be written.
    """
    folder = Path(os.path.abspath(data_dir))
    paths = images(folder)
    if not paths:
        raise UserError(f"{data_dir} holds no PNG, JPEG or WebP images; name the folder that does, or put some there "
                        "with --mode prepare or --mode simulate")
    noted = record(folder)
    if not noted.get("complete", True):
        raise UserError(f"{data_dir} holds only part of its frames, as writing them was interrupted; do that again, "
                        f"or delete {RECORD} there to use the part, as 30 frames a second")
    say(f"{data_dir} holds {len(paths)} frames, {paths[0].name} to {paths[-1].name}")
    mark, shape = fingerprint(paths, noted.get("origin")), (len(paths), img_size, img_size, 3)
    stems = {folder.parent: f"{folder.name}.{img_size}."} if cache_dir is None else {}
    elsewhere = Path(cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "duralava"))
    whose = hashlib.blake2b(os.fsencode(folder), digest_size=4).hexdigest()
    stems[elsewhere] = f"{folder.name[:40]}.{whose}.{img_size}."
    for place, stem in stems.items():
        cache = place / f"{stem}{mark}.npy"
        if whole(cache, shape):
            sweep(cache, stem)
            return cache
    for place, stem in stems.items():
        cache = place / f"{stem}{mark}.npy"
        try:
            place.mkdir(parents=True, exist_ok=True)
            with replacing(cache) as part:
                read_all(paths, img_size, part)
        except OSError as error:
            if place != elsewhere:
                say(f"{place} cannot be written ({error.strerror}): reading the frames into {elsewhere}")
                continue
            raise UserError(f"{error.filename or cache} cannot be written: {error.strerror}; name a folder for the "
                            f"{math.prod(shape) / 1e6:,.0f} MB of frames with --cache_dir") from None
        sweep(cache, stem)
        return cache


def digest(cache):
    """A digest of the frames in the cache that `load` made: of their number and size, and of up to a thousand."""
    frames = np.load(cache, mmap_mode="r", allow_pickle=False)
    found = hashlib.blake2b(repr(frames.shape).encode(), digest_size=8)
    for frame in frames[::math.ceil(len(frames) / 1000)]:
        found.update(frame)
    return found.hexdigest()


def background(cache):
    """What a fixed camera shows where nothing moves, of up to a thousand frames spread over the cache.

    Returns (mean, mask): the mean frame [H, W, 3] in 0..1, and for each pixel how much it ever changes, [H, W, 1]: 1
    from a standard deviation of MOVES over time on, and below it (deviation / MOVES)^2.
    """
    frames = np.load(cache, mmap_mode="r", allow_pickle=False)
    frames = frames[::math.ceil(len(frames) / 1000)]
    rows = [frames[:, row] for row in range(frames.shape[1])]  # one at a time: as floats all would be large
    mean, deviation = (np.stack([of(row, axis=0) for row in rows]) / 255 for of in (np.mean, np.std))
    return mean, np.minimum(deviation.max(-1, keepdims=True) / MOVES, 1) ** 2


def lag_distances(cache, lags):
    """How far apart frames are over some lags, in frames, as shares of the distance of frames of independent times.

    Root mean square distances of 8x8 thumbnails at up to four thousand places in the cache: {lag: share}.
    """
    frames = np.load(cache, mmap_mode="r", allow_pickle=False)
    stride = math.ceil(len(frames) / 4000)

    small = np.stack([cv2.resize(frame, (8, 8), interpolation=cv2.INTER_AREA) for frame in frames])
    here = small[::stride].astype(np.float32)
    independent = math.sqrt(2 * here.var(0).mean()) + 1e-6
    return {lag: math.sqrt(np.square(there - here[:len(there)]).mean()) / independent
            for lag, there in ((lag, small[lag::stride]) for lag in lags)}


def suited(cache, per_step=Config.batch_size * Config.clip_len, steps=0):
    """The hyper-parameters that depend on how fast frames of this footage decorrelate: ({name: value}, lag).

    `per_step`: frames of the footage in a training step; `steps`: how many of these a run takes at least.

    `every_nth`: the largest lag up to which the distance of frames is at most STEP of that of independent ones, so that
    a step is about the same change, whatever the footage; at least 1, and at most a fortieth of the footage. `lag`: the
    smallest one at which that share is INDEPENDENT; None where none is, of LAGS and of at most half of the footage.
    `steps`, in tens: the fewer independent frames there are, the sooner the networks memorise them. `augment`:
    whether so many steps, or the `steps` given, show each frame more than SHOWN times. Distances: `lag_distances`.
    """
    n_frames = len(np.load(cache, mmap_mode="r", allow_pickle=False))
    shares = lag_distances(cache, [lag for lag in LAGS if lag <= n_frames // 2])
    every_nth = max(takewhile(lambda lag: shares[lag] <= STEP, shares), default=1)
    lag = next((lag for lag, share in shares.items() if share >= INDEPENDENT), None)
    measured = 10 * round(STEPS / 10 * math.sqrt(max(n_frames / (lag or LAGS[-1]), 4)))  # on JAX ten are taken at once
    measured = min(measured, Config.steps)
    augment = max(measured, steps) * per_step / n_frames > SHOWN
    return dict(every_nth=min(every_nth, max(1, n_frames // 40)), augment=augment, steps=measured), lag


def batches_per_epoch(n_frames, batch_size, clip_len, every_nth):
    """Batches in one epoch, which shows about every one of `n_frames` frames once; at least 1."""
    return max(1, (n_frames - every_nth * clip_len) // (batch_size * clip_len))


def batches(cache, batch_size, clip_len, every_nth, seed, start=0, rows=None):
    """Clips from the cache that `load` made, for ever, beginning with batch number `start`.

    A clip is `clip_len` frames, `every_nth` apart. In each epoch of `batches_per_epoch` batches the frames at which
    clips begin follow a random permutation of all such frames, which (`seed`, epoch) determines; where one permutation
    is not enough, more follow. So batch number n is the same whatever `start` is. Of each batch only the clips that
    `rows` lists are read, all of them by default: several machines may share a batch.

    Yields:
        uint8 [len(rows), clip_len, H, W, 3], RGB.

    Raises:
        UserError: there are too few frames for one clip (at once), or the cache was cut short (on the way).
    """
    frames = np.load(cache, mmap_mode="r", allow_pickle=False)
    n_frames, shape, offset = len(frames), frames.shape, frames.offset
    n_places = n_frames - every_nth * (clip_len - 1)
    if n_places < 1:
        raise UserError(f"the footage holds {n_frames} frames and a clip takes {n_frames - n_places + 1}; name "
                        "a --data_dir with more, or start a new run with a lower --every_nth or --clip_len")
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


def fingerprint(paths, origin):
    """16 hexadecimal digits that change when `origin`, or the name, size or time of change of one of `paths` does.

    Raises:
        UserError: one cannot be read, is not a regular file, or is larger than an image may be.
    """
    digest = hashlib.blake2b(json.dumps(origin, sort_keys=True).encode(), digest_size=8)
    for path in paths:
        try:
            stat = os.stat(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}; put the frame there or remove it") from None
        if not S_ISREG(stat.st_mode) or stat.st_size > LARGEST:
            raise UserError(f"{path} is no regular file of at most {LARGEST >> 20} MiB, as a frame is; remove it")
        digest.update(f"{path.name}/{stat.st_size}/{stat.st_mtime_ns}/".encode(errors="surrogateescape"))
    return digest.hexdigest()


def whole(cache, shape):
    """Whether the file `cache` is there and holds a uint8 array of this shape, and nothing else."""
    if not os.path.isfile(cache):
        return False
    try:
        frames = np.lib.format.open_memmap(cache, mode="r")
    except Exception:  # of damaged headers NumPy raises many kinds
        return False
    return (frames.shape == shape and frames.dtype == np.uint8 and frames.flags.c_contiguous
            and frames.offset + frames.nbytes == os.path.getsize(cache))


def sweep(cache, stem):
    """Remove what `cache` replaces: older caches, named `stem` and a fingerprint, and unfinished ones."""
    pattern = re.compile(rf"{re.escape(stem)}[0-9a-f]{{16}}\.npy")
    for old in cache.parent.iterdir():
        with suppress(OSError):  # another process may be at the same
            if pattern.fullmatch(abandoned(old) or old.name) and old != cache:
                old.unlink()


def read_all(paths, img_size, part):
    """Read the images at `paths` into the new .npy file `part`, [len(paths), img_size, img_size, 3].

    Raises:
        UserError: see `decode`; or the images differ in size.
        OSError: `part` cannot be written.
    """
    shape = (len(paths), img_size, img_size, 3)
    if shutil.disk_usage(part.parent).free < math.prod(shape):  # rather than find out at the end
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), part.parent)
    size = decode(paths[0]).shape
    if min(size[:2]) < img_size:
        say(f"frames of {size[1]}x{size[0]} pixels are enlarged to {img_size}x{img_size}")
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
                cv2.cvtColor(fit(image, square(*image.shape[1::-1]), img_size), cv2.COLOR_BGR2RGB, frame)
            with writing:
                file.seek(offset + i * frames[0].nbytes)
                file.write(frames)
            return len(frames)

        with tqdm(total=len(paths), desc=printable(f"reading {paths[0].parent.name}"), unit="frame") as bar:
            for n in threads.map(read_chunk, range(0, len(paths), chunk)):
                bar.update(n)


def decode(path):
    """The image at `path`, the way up that it says, uint8 BGR [H, W, 3].

    Raises:
        UserError: the file cannot be read, is empty, cut short or damaged, is animated, is neither PNG, JPEG nor WebP,
            or would lose something as 8-bit RGB. Bytes after the image's end do not matter.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; make it readable, or remove it") from None
    jpeg, png = data.startswith(b"\xff\xd8"), data.startswith(b"\x89PNG")
    if data and not jpeg and not png and data[:4] + data[8:12] != b"RIFFWEBP":
        raise UserError(f"{path} is neither PNG, JPEG nor WebP, whatever its name; convert or remove it")
    image, turn, parts = None, 1, chunks(data) if png else ()
    if b"eXIf" in parts or b"acTL" in parts or data[12:16] == b"VP8X" or (jpeg and b"Exif" in data[:2**16]):
        with suppress(Exception), Image.open(io.BytesIO(data)) as opened:  # of damaged ones it raises many kinds
            turn = opened.getexif().get(0x112, 1) if jpeg or getattr(opened, "n_frames", 1) == 1 else None
    if turn is None:
        first = "" if png else "convert it to a GIF and "  # ffmpeg reads no animated WebP
        raise UserError(f"{path} is animated; {first}take it apart with --mode prepare --video, or remove it")
    try:
        if jpeg:  # of which OpenCV would make up what is missing
            image = simplejpeg.decode_jpeg(data, "BGR", strict=True)
        elif b"IEND" in parts if png else len(data) >= 8 + int.from_bytes(data[4:8], "little"):  # or OpenCV prints
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (cv2.error, ValueError) as error:
        # Some cameras write a few bytes before the end, 0xd9, or a scan of fewer coefficients than it has.
        if re.search(r": \d extraneous bytes before marker 0xd9|Invalid SOS parameters", str(error)):
            with suppress(ValueError):
                image = simplejpeg.decode_jpeg(data, "BGR", strict=False)
    if image is None:
        raise UserError(f"{path} is empty, cut short or damaged; make or copy it again, or remove it")
    image = turned(lossless(image, path), *TURNS.get(turn, (False, False, False)))
    return np.ascontiguousarray(image)


def chunks(png):
    """The names of the chunks of a PNG file up to its end, or to one damaged that a decoder needs."""
    names, start, view = set(), 8, memoryview(png)
    while start + 12 <= len(png) and b"IEND" not in names:
        name, end = png[start + 4:start + 8], start + 12 + int.from_bytes(png[start:start + 4])
        if zlib.crc32(view[start + 4:end - 4]) == int.from_bytes(png[end - 4:end]):
            names.add(name)
        elif name[:1].isupper():  # libpng would print so
            break
        start = end
    return names


def lossless(image, path):
    """The grey, 16-bit or transparent `image` of any of OpenCV's layouts as uint8 BGR.

    Raises:
        UserError: that would lose something.
    """
    if image.dtype == np.uint16:
        if (image % 257).any():  # 257 = 65535 / 255
            raise UserError(f"{path} has more than 8 bits a channel; save the frames with 8")
        image = (image // 257).astype(np.uint8)
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.shape[2] == 3:
        return image
    if image.shape[2] == 4 and (image[..., 3] < 255).any():
        raise UserError(f"{path} is transparent in places; save the frames without an alpha channel")
    return np.ascontiguousarray(image[..., :3])


def square(width, height, crop=None):
    """The largest square in the middle of a picture, or of the part `crop` of it: (x, y, width, height)."""
    x, y, width, height = crop or (0, 0, width, height)
    side = min(width, height)
    return x + (width - side) // 2, y + (height - side) // 2, side, side


def turned(image, across, mirrored, upside_down):
    """The `image` [H, W, C], its axes exchanged if it lies `across`, and then turned about in x, and in y."""
    image = image.swapaxes(0, 1) if across else image
    return image[::-1 if upside_down else 1, ::-1 if mirrored else 1]


def fit(image, crop, img_size):
    """The part `crop` (x, y, width, height) of the `image`, resized to `img_size` pixels square."""
    x, y, width, height = crop
    image = np.ascontiguousarray(image[y:y + height, x:x + width])
    if (width, height) == (img_size, img_size):
        return image
    # Shrinking averages the pixels that fall together; enlarging draws a smooth curve through them.
    return cv2.resize(image, (img_size, img_size), interpolation=cv2.INTER_AREA if width * height > img_size**2
                      else cv2.INTER_CUBIC)
