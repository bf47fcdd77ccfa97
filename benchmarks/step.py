"""Seconds and memory of a training step at the original's sizes: ours, beside the same networks unrolled in time.

    python benchmarks/step.py [--rounds 2] [--steps 6]

Ours rolls the latents first and calls generator and discriminator once, on all frames of all steps as one batch.
Unrolled calls every network at every time step. Beside them, the default recipe, which decodes a window of the steps.
They take turns, each in processes of its own, so that their peak memories are their own. Prints the median step, the
time before the first step is done (building and tracing, without TensorFlow's import), and the largest resident memory.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
VARIANTS = "ours", "unrolled", "default"


def measure(variant, steps):
    """Time `steps` training steps after the first; prints a JSON object."""
    from learn import hushed

    with hushed():
        import tensorflow as tf
        from keras import ops

        import models
        import training
    from config import PRESETS, Config

    class UnrolledTransition(models.Transition):
        def roll(self, normals, state):
            latents, outputs = [], []
            for t in range(normals.shape[1]):
                latents.append(state[0])
                output, state = self(normals[:, t], state)
                outputs.append(output)
            return ops.stack(latents, axis=1), ops.stack(outputs, axis=1), state

    class UnrolledDiscriminator(models.Discriminator):
        def call(self, clips, training=False):
            h, logits = ops.zeros((clips.shape[0], self.config.rnn_units)), []
            for t in range(clips.shape[1]):
                h, _ = self.read.cell(self.look(clips[:, t] * 2 - 1, training=training), [h])
                logits.append(self.judge_motion(h)[:, 0])
            return ops.stack(logits, axis=1)

    class UnrolledTrainer(training.Trainer):
        def decode(self, latents):
            frames = [self.generator(latents[:, t], training=True) for t in range(latents.shape[1])]
            return ops.stack(frames, axis=1)

    trainer_class = training.Trainer
    if variant == "unrolled":
        training.Transition, training.Discriminator = UnrolledTransition, UnrolledDiscriminator
        trainer_class = UnrolledTrainer
    config = Config() if variant == "default" else Config(**PRESETS["original"])
    shape = (config.batch_size, config.clip_len, config.img_size, config.img_size, 3)
    real = tf.cast(tf.random.stateless_uniform(shape, [0, 0], 0, 256, tf.int32), tf.uint8)

    begun = time.perf_counter()
    trainer = trainer_class(config)
    times = []
    for _ in range(1 + steps):
        trainer.train_step(real, config.learning_rate)
        times.append(time.perf_counter() - begun)
        begun = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps(dict(first=times[0], steps=times[1:], memory=peak)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2, help="processes of each variant (default: 2)")
    parser.add_argument("--steps", type=int, default=6, help="steps timed in each (default: 6)")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        return measure(args.variant, args.steps)
    results = {variant: [] for variant in VARIANTS}
    for _ in range(args.rounds):
        for variant in VARIANTS:
            child = subprocess.run([sys.executable, __file__, f"--variant={variant}", f"--steps={args.steps}"],
                                   check=True, stdout=subprocess.PIPE, text=True)
            results[variant].append(json.loads(child.stdout))
    print(f"{os.cpu_count()} cores; ours and unrolled: 32 sequences of 20 frames of 64x64, all decoded")
    figures = {}
    for variant in VARIANTS:
        step = statistics.median(t for result in results[variant] for t in result["steps"])
        first, memory = (statistics.median(result[key] for result in results[variant]) for key in ("first", "memory"))
        figures[variant] = step, first, memory
        print(f"{variant:9} {step:5.2f} s a step   {first:5.1f} s to the first   {memory:4.1f} GB at most")
    step, first, memory = (b / a for a, b in zip(figures["ours"], figures["unrolled"], strict=True))
    print(f"unrolled / ours: {step:.2f} the step, {first:.2f} the first step, {memory:.2f} the memory")


if __name__ == "__main__":
    main()
