"""Whether the discriminator of a run has learned its footage by heart.

    python benchmarks/by_heart.py logs/20220104-213105 OTHER [--data_dir FOLDER]

It judges clips of the footage it was trained on, of OTHER footage of the same lamp, a folder of frames like the first,
and drawn by the run's own averaged weights. Prints for each the mean and the standard deviation over CLIPS clips of
what it says of frames, and of motion. What it takes for more real than other footage, it knows by heart.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
import data
from config import Config
from files import UserError
from learn import hushed

CLIPS = 480
STEPS = 40  # that a drawn lamp has run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run, with its training state")
    parser.add_argument("other", help="folder of frames it was not trained on")
    parser.add_argument("--data_dir", help="footage it was trained on; by default, where it was then")
    args = parser.parse_args()
    config = Config.load(args.run / "config.json")
    if not config.frame_logits:
        raise UserError(f"the discriminator of {args.run} judges no frames by themselves")
    with hushed():
        from trainer import Trainer, to_float

        trainer = Trainer(config)
    trainer.restore(args.run)

    def tell(name, clips):
        batches = np.split(clips, range(config.batch_size, len(clips), config.batch_size))
        logits = np.concatenate([trainer.discriminator(batch) for batch in batches])
        frames, motion = logits[:, :config.clip_len], logits[:, config.clip_len:]
        print(f"{name:22} frames {frames.mean():6.2f} +- {frames.std():.2f}, motion {motion.mean():6.2f} +- "
              f"{motion.std():.2f}")

    print(f"{args.run} after {int(trainer.step)} steps")
    for name, folder in {"its footage": args.data_dir or config.data_dir, "other footage": args.other}.items():
        batches = data.batches(data.load(folder, config.img_size), CLIPS, config.clip_len, config.every_nth, seed=0)
        tell(name, to_float(next(batches)).numpy())
    transition, generator = trainer.average["transition"], trainer.average["generator"]
    normals = np.random.default_rng(0).standard_normal((CLIPS, STEPS + config.clip_len, config.latent_size), np.float32)
    latents, _, _ = transition.roll(normals, transition.initial(normals[:, 0]))
    latents = latents.numpy()[:, STEPS:].reshape(-1, config.latent_size)
    frames = np.concatenate([generator(part) for part in np.array_split(latents, 12)])
    tell("drawn", frames.reshape(CLIPS, config.clip_len, *frames.shape[1:]))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"by_heart.py: {error}", file=sys.stderr)
        sys.exit(2)
