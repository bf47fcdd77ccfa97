"""What the measure of motion sees: the simulated lamp with other vertical speeds of its blobs.

    python benchmarks/velocities.py [--lamps 16]

Prints motion and flow as multiples of their floor, that between two halves of the lamps. Blobs of the simulated lamp
rise or sink, and hardly loiter: at one size and height their speeds have a smaller kurtosis than normal numbers. Here
they are painted a step further on with speeds of their own, with those of others of like size and height, and with
numbers of the same mean and deviation, normal or of heavier tails (Student's t of 4 degrees of freedom).
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import lamp
import measures

EVERY_NTH, CLIPS = 6, 32  # frames to a step; clips of each lamp
LEVELS = 0.1, 0.2, 0.35, 0.65, 0.8, 0.9  # heights within which blobs are alike


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lamps", type=int, default=16, help="lamps in each sample, an even number (default: 16)")
    lamps = parser.parse_args().lamps
    wax, reference = film(range(lamps)), film(range(lamps, 2 * lamps))
    speed = np.diff(wax, axis=2)[:, :, 0, :, 1]  # [lamps, CLIPS, blobs]
    alike = np.digitize(wax[:, :, 0, :, 1], LEVELS) * len(lamp.RADII) + np.arange(len(lamp.RADII))
    rng = np.random.default_rng(0)

    def drawn(draw):
        """The speeds of each kind of blob, drawn anew."""
        found = speed.copy()
        for kind in np.unique(alike):
            found[alike == kind] = draw(speed[alike == kind])
        return found

    samples = {
        "their own": speed,
        "of others alike": drawn(rng.permutation),
        "normal": drawn(lambda v: v.mean() + v.std() * rng.standard_normal(len(v))),
        "heavy-tailed": drawn(lambda v: v.mean() + v.std() * rng.standard_t(4, len(v)) / np.sqrt(2)),
    }
    real = paint(reference)
    floor = measures.distances(real[::2], real[1::2], [0, 0])
    print("vertical speeds     motion  flow")
    for name, speeds in samples.items():
        moved = wax[:, :, :1].repeat(3, axis=2)
        steps = np.arange(3)[:, None]
        moved[..., 0] += steps * (wax[:, :, 1, None, :, 0] - wax[:, :, :1, :, 0])
        moved[..., 1] += steps * speeds[:, :, None]
        found = measures.distances(paint(moved), real, [0, 0])
        print(f"{name:20} {found['motion'] / floor['motion']:5.2f} {found['flow'] / floor['flow']:5.1f}", flush=True)


def film(seeds):
    """Wax [lamps, CLIPS, 3, blobs, 4] of clips of three steps, from a lamp of each seed."""
    places = EVERY_NTH * np.arange(CLIPS * 8)
    lamps = [np.stack(list(itertools.islice(lamp.simulate(np.random.default_rng(seed)), int(places[-1]) + 1)))
             for seed in seeds]
    return np.stack([wax[places].reshape(CLIPS, 8, *wax.shape[1:])[:, :3] for wax in lamps])


def paint(wax):
    """Frames [lamps, CLIPS, 3, 64, 64, 3] of the wax of clips."""
    painter = lamp.Painter(64)
    return np.stack([np.stack([painter.paint(clip) for clip in clips]) for clips in wax])


if __name__ == "__main__":
    main()
