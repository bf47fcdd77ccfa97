"""What training, playing and writing a video cost here, each beside the plain way of doing it: one table.

    make bench          (python benchmarks/bench.py)

Every figure is taken in a process of its own, one after the other, in the same minutes: compare ratios, as times vary
from run to run. "Wanted" is what we ask of the row, of ours or of the ratio. Takes about ten minutes on two cores.
"""

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from learn import quiet_imports

ROOT = sys.path[0]
PLAYED = "--weights=logs/20261130-165607/weights.5000"  # 64x64 pixels
ORIGINAL = "--preset original"  # batch 32, 20 steps, 64x64, all frames decoded


def child(*command):
    """The standard output of a Python program."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def step(flags, repeat=4):
    """Median seconds of a step with these flags of learn.py, seconds to the first, GB and GFLOP."""
    out = json.loads(child("benchmarks/step.py", f"--repeat={repeat}", *flags.split()))
    return dict(out, step=statistics.median(out["steps"]))


def row(what, ours, plain="", ratio="", wanted=""):
    print(f"| {what:58} | {ours:>13} | {plain:>24} | {ratio:>5} | {wanted:>16} |", flush=True)


def seconds(x):
    return f"{x:.2f} s"


def beside(ours, plain):
    """How many times better `ours` is, where less is better."""
    return f"{plain / ours:.2f}"


def training():
    peak = json.loads(child(__file__, "peak"))
    row("float32 GFLOP/s of a matrix product, of a convolution", f"{peak['product']:.0f}, {peak['convolution']:.0f}")
    plain = step(f"--unrolled {ORIGINAL}", repeat=3)
    ours = step(ORIGINAL)
    row("a training step at the original's sizes", seconds(ours["step"]), f"{seconds(plain['step'])} (unrolled)",
        beside(ours["step"], plain["step"]))
    row("share of the peak, of the convolution's", f"{ours['gflop'] / ours['step'] / peak['convolution']:.0%}",
        f"{plain['gflop'] / plain['step'] / peak['convolution']:.0%} (unrolled)")
    shorter = step(f"{ORIGINAL} --clip_len 5")
    row("the same, 5 of the 20 steps drawn", seconds(shorter["step"]),
        f"{seconds(plain['step'])} (unrolled)", beside(shorter["step"], plain["step"]), "ratio >= 1.8")
    row("from building the networks to the first step", seconds(ours["first"]), f"{seconds(plain['first'])} (unrolled)",
        beside(ours["first"], plain["first"]))
    row("memory at the original's sizes", f"{ours['memory']:.2f} GB", f"{plain['memory']:.2f} GB (unrolled)",
        beside(ours["memory"], plain["memory"]))
    lean = step(f"{ORIGINAL} --accumulate 4", repeat=2)
    row("the same with --accumulate 4", f"{lean['memory']:.2f} GB", f"{plain['memory']:.2f} GB (unrolled)",
        beside(lean["memory"], plain["memory"]), "<= 1.5 GB, ratio >= 2")
    row("its time with --accumulate 4", seconds(lean["step"]), f"{seconds(ours['step'])} (without)",
        beside(lean["step"], ours["step"]))
    default = step("")
    row("a step of the default recipe", seconds(default["step"]), f"{seconds(plain['step'])} (unrolled)",
        beside(default["step"], plain["step"]))
    row("its share of the peak", f"{default['gflop'] / default['step'] / peak['convolution']:.0%}")
    row("its memory", f"{default['memory']:.2f} GB")
    low = step("--precision bfloat16", repeat=2)
    row("with --precision bfloat16", seconds(low["step"]), f"{seconds(default['step'])} (float32)",
        beside(low["step"], default["step"]))
    large = step("--img_size 128", repeat=2)
    row("at 128x128, its step and memory", f"{large['step']:.1f} s {large['memory']:.2f} GB",
        f"{seconds(default['step'])} (64x64)", f"{default['step'] / large['step']:.2f}", "<= 4 GB")
    for flags, times in {"--seq_len 200": 10, "--batch_size 320 --accumulate 8": 8}.items():
        grown = step(flags, repeat=2)
        row(f"with {flags} ({times} times)", f"{seconds(grown['step'])} {grown['memory']:.1f} GB",
            f"{seconds(default['step'])} (default)", f"1/{grown['step'] / default['step']:.1f}", f"ratio >= 1/{times}")
    loopback = shared(cores=os.cpu_count() // 2)
    row("as two machines, processes with half the cores each", seconds(loopback), f"{seconds(default['step'])} (one)",
        beside(loopback, default["step"]))
    overhead(default["step"])


def shared(cores):
    """Median seconds of a step of the default recipe that two processes share, with so many cores each."""
    ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]  # taken together, so that they differ
    hosts = [f"127.0.0.1:{port.getsockname()[1]}" for port in ports]
    for port in ports:
        port.close()
    command, processes = [sys.executable, "benchmarks/step.py", "--distribute=multiworker"], []
    for index in range(2):
        cluster = json.dumps(dict(cluster=dict(worker=hosts), task=dict(type="worker", index=index)))
        limits = dict(TF_CONFIG=cluster, TF_NUM_INTRAOP_THREADS=str(cores), TF_NUM_INTEROP_THREADS=str(cores))
        processes.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | limits, stdout=subprocess.PIPE,
                                          stderr=subprocess.PIPE, text=True))
    outputs = [process.communicate() for process in processes]
    if any(process.returncode for process in processes):
        sys.exit(f"{' '.join(command)}: {outputs[0][1]}{outputs[1][1]}")
    return statistics.median(json.loads(outputs[0][0])["steps"])


def overhead(step):
    """Rows of what a step waits for beside its computation."""
    cost = json.loads(child(__file__, "overhead"))
    row("reading a batch, of a step", f"{cost['batch'] * 1000:.1f} ms", f"{step * 1000:.0f} ms (the step)",
        f"{cost['batch'] / step:.1%}", "<= 3%")
    row("logs and checkpoints, of a run", f"{cost['log'] * 1000:.1f} ms a step", f"{step * 1000:.0f} ms (the step)",
        f"{cost['log'] / step:.1%}", "<= 2%")


def playing():
    cores = json.loads(child("benchmarks/play.py", PLAYED))
    one = json.loads(child("benchmarks/play.py", PLAYED, "--threads=1"))
    for name, figures in {f"{os.cpu_count()} cores": cores, "one core": one}.items():
        for what in "live", "video":
            row(f"frames a second of one video, {what}, {name}", f"{figures[what]:,.0f}",
                f"{figures['plain']:,.0f} (eager loop)", f"{figures[what] / figures['plain']:.1f}",
                ">= 1,000" if figures is cores else "")
    row("of a grid of 12, all together", f"{cores['grid']:,.0f}")
    for chains, key, wanted in (1, "roll_one", "<= 180 s"), (64, "roll_many", ""):
        row(f"a million time steps of {chains} chain{'s' * (chains > 1)}, the latent alone",
            f"{1e6 / cores[key]:.0f} s", wanted=wanted)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        child("-c", "import tensorflow")
        imported = time.perf_counter() - begun
        begun = time.perf_counter()
        child("learn.py", "--mode=video", PLAYED, f"--out={folder}/out.png")
        written = time.perf_counter() - begun
    row("a video of 30 s, from typing to the finished APNG", seconds(written),
        f"{seconds(imported)} (importing TensorFlow)", f"{imported / written:.0%}")


def measure_peak():
    """GFLOP/s of a matrix product and of a convolution of about the size of the networks'."""
    with quiet_imports():
        import tensorflow as tf

    def rate(work, gflop):
        work, times = tf.function(work), []
        for _ in range(12):
            begun = time.perf_counter()
            work().numpy()
            times.append(time.perf_counter() - begun)
        return gflop / min(times)

    a, x, w = (tf.random.normal(shape) for shape in ((2048, 2048), (120, 32, 32, 64), (3, 3, 64, 64)))
    return dict(product=rate(lambda: tf.matmul(a, a)[0, 0], 2 * 2048**3 / 1e9),
                convolution=rate(lambda: tf.nn.conv2d(x, w, 1, "SAME")[0, 0, 0, 0],
                                 2 * 120 * 32 * 32 * 64 * 64 * 9 / 1e9))


def measure_overhead():
    """Seconds that reading a batch takes, and that a step's share of logs and checkpoints does."""
    from config import Config

    with quiet_imports():
        import data
        import train
        from gan import GAN, METRICS
    config, n_frames = Config(), 24_000

    def cost(work, times):
        work()
        begun = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - begun) / times

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        cache = np.lib.format.open_memmap(folder / "frames.npy", "w+", np.uint8, (n_frames, 64, 64, 3))
        cache[:] = np.random.default_rng(0).integers(0, 256, (100, 64, 64, 3), np.uint8)[np.arange(n_frames) % 100]
        cache.flush()
        batches = data.batches(folder / "frames.npy", config.batch_size, config.clip_len, config.every_nth, 0)
        gan, metrics, steps = GAN(config), np.zeros(len(METRICS)), itertools.count()

        with train.Log(folder) as log, train.progress_bar(0.0, True) as bar:
            state = cost(lambda: train.save(gan, folder, next(steps), 0.0, weights=False), 3)
            weights = cost(lambda: gan.save_weights(folder / f"weights.{next(steps)}"), 3)
            every = {1: cost(lambda: train.show(bar, 0.0, 1, metrics), 50),
                     train.LOG_EVERY: cost(lambda: log.write(train.curves(metrics, 0.0), 1), 20),
                     train.SAMPLE_EVERY: cost(lambda: log.write(train.samples(gan), 1), 5),
                     config.save_every: weights + state,
                     train.STATE_SECONDS: state}  # at a step a second
        return dict(batch=cost(lambda: next(batches), 50), log=sum(cost / steps for steps, cost in every.items()))


MEASURES = dict(peak=measure_peak, overhead=measure_overhead)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("only", nargs="?", choices=MEASURES, help="measure this in this process, and print JSON")
    if only := parser.parse_args().only:
        print(json.dumps(MEASURES[only]()))
        return
    begun = time.perf_counter()
    row("what", "ours", "the plain way", "ratio", "wanted")
    row(*("-" * width for width in (58, 13, 24, 5, 16)))
    training()
    playing()
    print(f"\n{os.cpu_count()} cores, {(time.perf_counter() - begun) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
