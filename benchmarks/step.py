"""Seconds, memory and floating-point operations of a training step, in a process of its own.

    python benchmarks/step.py [--steps 5] [--unrolled] [the training flags of learn.py]

With --unrolled the same networks are called anew at every time step, the plain way; ours rolls the latents first, and
calls generator and discriminator once, on all frames of all steps as one batch. Prints JSON: seconds to the first step
(building and tracing, without TensorFlow's import), seconds of each later one, the largest resident memory in GB, and
on one device the GFLOP of convolutions and matrix products in the step's graph, but for its loops: those are small
GRUs, unless --accumulate is given.
"""

import argparse
import dataclasses
import json
import math
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from config import PRESETS, Config
from learn import build_parser, hushed


def unroll(models, trainer):
    """Let every network of `trainer` be called once at each time step."""
    from keras import ops

    class Transition(models.Transition):
        def roll(self, normals, state):
            latents, outputs = [], []
            for t in range(normals.shape[1]):
                latents.append(state[0])
                output, state = self(normals[:, t], state)
                outputs.append(output)
            return ops.stack(latents, axis=1), ops.stack(outputs, axis=1), state

    class Discriminator(models.Discriminator):
        def see(self, clips, training=False):
            return ops.stack([self.look(clips[:, t] * 2 - 1, training=training) for t in range(clips.shape[1])], axis=1)

        def judge(self, features):
            h, logits = ops.zeros((features.shape[0], self.config.rnn_units)), []
            for t in range(features.shape[1]):
                h, _ = self.read.cell(features[:, t], [h])
                logits.append(self.judge_motion(h)[:, 0])
            return ops.stack(logits, axis=1)

    class Trainer(trainer.Trainer):
        def decode(self, latents):
            frames = [self.generator(latents[:, t], training=True) for t in range(latents.shape[1])]
            return ops.stack(frames, axis=1)

    trainer.Transition, trainer.Discriminator = Transition, Discriminator
    return Trainer


def gflop(graph):
    """Of the convolutions and matrix products in a graph, forwards and backwards, but for those in its loops."""
    total = 0
    for op in graph.get_operations():
        if op.type == "Conv2D":
            filters, result = op.inputs[1], op.outputs[0]
        elif op.type == "Conv2DBackpropInput":
            filters, result = op.inputs[1], op.inputs[2]
        elif op.type == "Conv2DBackpropFilter":
            filters, result = op.outputs[0], op.inputs[2]
        elif op.type == "MatMul":
            inner = op.inputs[0].shape[0 if op.get_attr("transpose_a") else 1]
            total += 2 * math.prod(op.outputs[0].shape) * inner
            continue
        else:
            continue
        total += 2 * math.prod(result.shape) * math.prod(filters.shape[:3])  # a result's channel sees kh x kw x cin
    return total / 1e9


def measure(config, steps, unrolled):
    """Time the first training step and `steps` more, on random clips."""
    with hushed():
        import numpy as np
        import tensorflow as tf

        import models
        import trainer
        from distribution import make_strategy

        strategy = make_strategy(config.distribute)
    trainer_class = unroll(models, trainer) if unrolled else trainer.Trainer
    times, begun = [], time.perf_counter()
    ours = trainer_class(config, strategy)
    shape = (len(ours.rows()), config.clip_len, config.img_size, config.img_size, 3)
    real = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for _ in range(1 + steps):
        ours.train_step(real, config.learning_rate)
        times.append(time.perf_counter() - begun)
        begun = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    out = dict(first=times[0], steps=times[1:], memory=memory)
    if config.distribute == "none":
        signature = tf.TensorSpec(shape, tf.uint8), tf.TensorSpec((2,), tf.float64)
        out["gflop"] = gflop(ours.update.get_concrete_function(*signature).graph)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], add_help=False)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--unrolled", action="store_true")
    own, rest = parser.parse_known_args()
    given = vars(build_parser().parse_args(rest))
    names = {f.name for f in dataclasses.fields(Config)}
    values = PRESETS.get(given.get("preset"), {}) | {name: value for name, value in given.items() if name in names}
    print(json.dumps(measure(Config(**values), own.steps, own.unrolled)))


if __name__ == "__main__":
    main()
