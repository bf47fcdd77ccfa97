"""How much of what a lamp's motion misses is the drawing, and how much the ways of its blobs.

    python benchmarks/painted.py [logs/20220104-213105/weights.180]

A lamp that learned from the simulated one draws blobs: things, what is behind them, and how much of each pixel things
cover. Here some of the three are drawn, and others painted as the simulated lamp paints them, of the same blobs. Prints
motion, and motion at each size, as multiples of their floor, that between two halves of simulated lamps; then how far
blobs lie beyond the glass, which cuts them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from velocities import CLIPS, film, paint

sys.path.insert(0, str(Path(__file__).parent.parent))

import lamp
import measures
from files import UserError
from learn import hushed

with hushed():
    import keras

    import checkpoints
    import rollout
    from models import SHARPNESS

LAMPS, APART = 32, 12  # lamps in a sample, and steps from one of a lamp's clips to the next


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, nargs="?", help="a run or one of its checkpoints (default: the newest)")
    config, generator, transition = rollout.load(checkpoints.find_weights(parser.parse_args().weights))
    if not config.blobs or config.img_size != 64:
        raise UserError("this is about lamps of blobs, of 64x64 pixels")
    simulated = film(range(LAMPS))
    real = paint(simulated)
    arrangement, *drawn = draw(generator, transition)
    lamp.BLEND = SHARPNESS  # from here on paint as the lamp melts its blobs, not as the simulated one does
    wax = to_wax(arrangement)
    painted = painted_parts(wax)
    floor = measures.distances(real[::2], real[1::2], [0, 0])
    names = ["motion", *(f"motion, {size} px" for size in (64, 32, 16))]
    print(f"{'':42} motion   64 px 32 px 16 px")
    rows = {
        "as drawn": (drawn, drawn, drawn),
        "how much things cover painted": (drawn, drawn, painted),
        "that and what is behind": (painted, drawn, painted),
        "that and things, but not what is behind": (drawn, painted, painted),
        "all painted": (painted, painted, painted),
    }
    for name, kinds in rows.items():
        behind, front, cover = (kind[i] for i, kind in enumerate(kinds))
        frames = np.clip(behind + cover * (front - behind) + 0.5, 0, 255).astype(np.uint8)
        found = measures.distances(frames.reshape(LAMPS, CLIPS, 3, 64, 64, 3), real, [0, 0])
        ratios = [found[name] / floor[name] for name in names]
        print(f"{name:42} {ratios[0]:6.2f}   " + " ".join(f"{ratio:5.2f}" for ratio in ratios[1:]), flush=True)
    for name, blobs in (("drawn", wax), ("simulated", simulated)):
        walls, lid = beyond(blobs)
        print(f"{name:9} blobs lie {walls:.2f} pixels beyond the walls, {lid:.2f} beyond the lid, on average")


def draw(generator, transition):
    """Clips of lamps on their way: LAMPS x CLIPS x 3 frames.

    Returns (arrangement [N, 4, K] but for the blobs at rest, as the simulated lamp paints a pool of its own; what is
    behind and in front [N, 64, 64, 3] in 0..255, cover [N, 64, 64, 1] in 0..1).
    """
    rng, size = np.random.default_rng(0), transition.state_size[0]
    normals = rng.standard_normal((LAMPS, rollout.BURN_IN + CLIPS * APART, size), np.float32)
    latents = transition.roll(normals, transition.initial(normals[:, 0]))[0].numpy()[:, rollout.BURN_IN:]
    latents = latents.reshape(LAMPS, CLIPS, APART, size)[:, :, :3].reshape(-1, size)
    scene, blobs = generator.get_layer("background"), generator.get_layer("blobs")
    look = keras.Model(generator.input, [blobs.output, *scene.input])
    found = [[np.asarray(part) for part in look(some)] for some in np.array_split(latents, len(latents) // 256)]
    arrangement, *pictures, cover = (np.concatenate(parts) for parts in zip(*found, strict=True))
    behind, front = (255 * keras.ops.convert_to_numpy(part) for part in scene.light(pictures))
    return arrangement[..., :-2], behind, front, cover


def to_wax(arrangement):
    """The wax [N, K, 4] of the simulated lamp that an arrangement [N, 4, K] of blobs is; see lamp.simulate."""
    tall = lamp.HEAD - lamp.FOOT
    x, y, across, down = np.moveaxis(arrangement, 1, 0)
    return np.stack([x / 2 / tall, ((1 - y) / 2 - lamp.FOOT) / tall, across / 2 / tall, down / 2 / tall], axis=-1)


def painted_parts(wax):
    """What is behind, in front, and how much that covers, as `draw` gives it, of the wax by lamp.Painter."""
    painter = lamp.Painter(64)
    parts = [painter.parts(some) for some in np.array_split(wax, len(wax) // 64)]
    behind = np.repeat(painter.scene[None], len(wax), axis=0)
    front, cover = behind.copy(), np.zeros_like(behind[..., :1])
    for whole, some in zip((behind, front, cover), zip(*parts, strict=True), strict=True):
        whole[:, *painter.box] = np.concatenate(some)
    return behind, front, cover


def beyond(wax):
    """How far the edges of blobs [..., 4] lie beyond walls and lid, on average, in pixels: 0 of blobs within."""
    x, y, across, up = np.moveaxis(wax, -1, 0)
    half = lamp.FLOOR + (lamp.LID - lamp.FLOOR) * y
    pixels = 64 * (lamp.HEAD - lamp.FOOT)
    return [pixels * np.maximum(over, 0).mean() for over in (np.abs(x) + across - half, y + up - 1)]


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"painted.py: {error}", file=sys.stderr)
        sys.exit(2)
