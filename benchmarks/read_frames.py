"""How fast images become the array that training reads: data.load beside a plain loop with Pillow.

    python benchmarks/read_frames.py [--frames 10000] [--img_size 64]

Makes the images in a temporary folder, twice: as prepare.py writes them (stored PNGs), and compressed, as most tools
do. The files are in the operating system's memory when they are read. Prints images a second, the best of three,
and where the time of one image goes.
"""

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data
import prepare
import simulator


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--img_size", type=int, default=64)
    args = parser.parse_args()
    footage = list(itertools.islice(simulator.frames(args.img_size, 0), min(args.frames, 500)))
    footage = [cv2.cvtColor(frame, cv2.COLOR_RGB2BGR) for frame in footage]
    for kind in ("stored", "compressed"):
        with tempfile.TemporaryDirectory() as folder:
            compare(kind, footage, Path(folder, "frames"), args.frames, args.img_size)


def compare(kind, footage, folder, n_frames, img_size):
    """Write `n_frames` PNGs of `kind` to `folder`, read them both ways, and print."""
    folder.mkdir()
    started = time.perf_counter()
    for i in range(n_frames):
        path = folder / f"image{i + 1:07d}.png"
        if kind == "stored":
            prepare.write_image(path, footage[i % len(footage)])
        else:
            cv2.imwrite(str(path), footage[i % len(footage)])
    written = time.perf_counter() - started
    paths = data.images(folder)

    def plain():
        for path in paths:
            np.asarray(Image.open(path).convert("RGB"))

    def first_pass():
        for cache in folder.parent.glob("*.npy"):
            cache.unlink()
        data.load(folder, img_size)

    ours, pillow = best(first_pass), best(plain)
    again = best(lambda: data.load(folder, img_size))
    print(f"{kind} PNGs of {sum(p.stat().st_size for p in paths) / n_frames / 1000:.1f} kB, written "
          f"{n_frames / written:,.0f}/s\n"
          f"  data.load, {data.THREADS} threads: {n_frames / ours:,.0f}/s; "
          f"Pillow, one by one: {n_frames / pillow:,.0f}/s; ratio {pillow / ours:.1f}; "
          f"data.load again, from the cache: {again:.2f} s")
    shares(paths[:2000])


def shares(paths):
    """Print the microseconds that each part of reading one image takes, in one thread."""
    files = [path.read_bytes() for path in paths]
    frames = [cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED) for file in files]
    target = np.empty_like(frames[0])
    parts = {
        "opening and reading": lambda: [path.read_bytes() for path in paths],
        "decoding": lambda: [cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED) for file in files],
        "BGR to RGB": lambda: [cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, target) for frame in frames],
        "all of data.decode": lambda: [data.decode(path) for path in paths],
    }
    times = {name: best(part) / len(paths) * 1e6 for name, part in parts.items()}
    print("  one thread, microseconds an image: " + ", ".join(f"{name} {t:.0f}" for name, t in times.items()))


def best(work):
    """Seconds that `work` takes, the best of three."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    main()
