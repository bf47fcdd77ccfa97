"""Seconds, memory and floating-point operations of a training step, in a process of its own.

    python benchmarks/step.py [--repeat 5] [--unrolled] [the training flags of learn.py]
    KERAS_BACKEND=jax python benchmarks/step.py ...

With --unrolled, for --preset original alone, the same networks are called anew at every step of a sequence; ours rolls
out the latents first, and calls generator and discriminator once, on all frames as one batch. Prints JSON: the device,
seconds from building the networks to the end of the first call (which compiles), seconds a step of each later call, the
largest resident memory of the process and, on a GPU, of the device, in GB, and on one device the GFLOP of convolutions
and matrix products in a step, but for its loops, which are small GRUs (with --accumulate most of the step is a loop);
on JAX, of all operations, as XLA counts them.
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
from learn import build_parser, quiet_imports


def unroll(models, gan):
    """Let every network of `gan` be called once at each step of a sequence."""
    from keras import ops

    class Transition(models.Transition):
        def roll(self, normals, state):
            latents, outputs = [], []
            for t in range(normals.shape[1]):
                latents.append(state[0])
                output, state = self(normals[:, t], state)
                outputs.append(output)
            return ops.stack(latents, axis=1), ops.stack(outputs, axis=1), tuple(state)

    class Discriminator(models.Discriminator):
        def call(self, clips):
            h, logits = ops.zeros((clips.shape[0], self.gru.units)), []
            for t in range(clips.shape[1]):
                h, _ = self.gru.cell(self.backbone(clips[:, t] * 2 - 1, training=True), [h])
                logits.append(self.clip_head(h)[:, 0])
            return ops.stack(logits, axis=1)

    class GAN(gan.GAN):
        def draw(self, latents):
            return ops.stack([self.video.generator(latents[:, t], training=True) for t in range(latents.shape[1])],
                             axis=1)

    models.Transition, gan.Discriminator = Transition, Discriminator
    return GAN


def graph_gflop(graph):
    """Of the convolutions and matrix products in a TensorFlow graph, but for those in its loops."""
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


def gflop(gan, real):
    """GFLOP of a step."""
    import numpy as np

    args = gan.state, real, np.float32(1e-4), np.zeros(2, np.float32)
    if gan.backend.name == "tensorflow":
        import tensorflow as tf

        return graph_gflop(tf.function(gan.step, autograph=False).get_concrete_function(*args).graph)
    import jax

    return jax.jit(gan.step).lower(*args).cost_analysis()["flops"] / 1e9


def device_memory():
    """Largest memory in use on a GPU, in GB; None on a CPU, or where the backend does not tell."""
    if "jax" in sys.modules:
        import jax

        stats = jax.devices()[0].memory_stats() or {}
        return stats["peak_bytes_in_use"] / 1e9 if "peak_bytes_in_use" in stats else None
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        return None
    return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9


def measure(config, repeat, unrolled):
    """Time the first call of a training step and `repeat` more, on random clips."""
    with quiet_imports():
        import numpy as np

        import gan
        import models
        from backend import make_backend

        backend = make_backend(config.distribute)
    kind = unroll(models, gan) if unrolled else gan.GAN
    begun = time.perf_counter()
    ours, times = kind(config, backend), []
    n = backend.steps_at_once
    shape = (n, len(ours.rows()), config.clip_len, config.img_size, config.img_size, 3)
    real = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for _ in range(1 + repeat):
        ours.train(real, np.full(n, config.learning_rate))  # which waits for the metrics, so for the device
        times.append(time.perf_counter() - begun)
        begun = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return dict(device=backend.describe(), first=times[0], steps=[seconds / n for seconds in times[1:]], memory=memory,
                device_memory=device_memory(), gflop=gflop(ours, real[0]) if config.distribute == "none" else None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], add_help=False)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--unrolled", action="store_true")
    own, rest = parser.parse_known_args()
    given = vars(build_parser().parse_args(rest))
    names = {f.name for f in dataclasses.fields(Config)}
    values = PRESETS.get(given.get("preset"), {}) | {name: value for name, value in given.items() if name in names}
    print(json.dumps(measure(Config(**values), own.repeat, own.unrolled)))


if __name__ == "__main__":
    main()
