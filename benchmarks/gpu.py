"""What a training step and playing cost on the device at hand: one table.

    KERAS_BACKEND=jax python benchmarks/gpu.py [--weights logs/20220104-213105/weights.180]

Every row is measured in a process of its own: milliseconds of a step, by a wall clock that waits for the device,
seconds from building the networks to the end of the first call, memory, and the share of the peak, which is that of a
float32 matrix product at the backend's default precision, measured first.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from learn import quiet_imports

ROOT = sys.path[0]

ROWS = {
    "default": "",
    "--batch_size 256": "--batch_size 256",
    "--precision bfloat16": "--precision bfloat16",
    "original's sizes": "--preset original",
    "--img_size 128": "--img_size 128",
    "--img_size 256": "--img_size 256",
}


def child(*command):
    """What a Python program prints, or None where it fails, as by running out of memory."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        *_, reason = "it was killed", *done.stderr.strip().splitlines()
        print(f"{' '.join(command)}: {reason}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def peak(size=8192):
    """TFLOP/s of a float32 matrix product [size, size], at the backend's default precision."""
    with quiet_imports():
        import keras
        from keras import ops

        import backend

    a = ops.ones((size, size))
    multiply = backend.compiled(lambda a: ops.sum(ops.matmul(ops.matmul(ops.matmul(a, a), a), a)), keras.layers.Layer())
    times = []
    for _ in range(8):
        begun = time.perf_counter()
        float(ops.convert_to_numpy(multiply(a)))
        times.append(time.perf_counter() - begun)
    return 3 * 2 * size**3 / min(times) / 1e12


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="weights to play; without it playing is not measured")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(json.dumps(peak()))
        return
    if (top := child(__file__, "--peak")) is None:
        sys.exit(1)
    print(f"peak of a matrix product: {top:.3g} TFLOP/s")
    print(f"| {'step':20} | {'ms':>8} | {'first call, s':>13} | {'GB':>5} | {'GFLOP':>6} | share of the peak |")
    print(f"| {'-' * 20} | {'-' * 8} | {'-' * 13} | {'-' * 5} | {'-' * 6} | ----------------- |")
    device = "no device: every row failed"
    for name, flags in ROWS.items():
        if found := child("benchmarks/step.py", "--repeat=5", *flags.split()):
            step = statistics.median(found["steps"])
            memory = found["device_memory"] or found["memory"]
            print(f"| {name:20} | {1000 * step:8.2f} | {found['first']:13.1f} | {memory:5.2f} | {found['gflop']:6.0f} "
                  f"| {found['gflop'] / 1000 / step / top:17.0%} |", flush=True)
            device = found["device"]
    print(f"on {device}")
    if args.weights and (found := child("benchmarks/play.py", f"--weights={args.weights}")):
        print(f"frames a second: live {found['live']:,.0f}, video {found['video']:,.0f}, "
              f"twelve at once {found['grid']:,.0f}")


if __name__ == "__main__":
    main()
