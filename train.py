"""A run: the loop around the training step, its checkpoints and its logs.

A run is a folder, logs/<YYYYmmdd-HHMMSS>/:

    config.json                the hyper-parameters
    weights.<step>.weights.h5  what playing needs: the averaged generator and transition
    state.<step>.h5            what resuming needs, the newest two: written with the weights and every few minutes
    events.out.tfevents.*      TensorBoard's scalars, images and histograms
"""

import dataclasses
import itertools
import math
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tqdm import tqdm

import checkpoints
import data
from files import UserError, handling, lock, quoted, say
from gan import GAN, METRICS

STATE_SECONDS = 300  # between two saved training states, where --save_every steps take longer
WARM_UP = 100  # steps over which the learning rate rises linearly
FALL = 0.2  # share of a run, at its end, over which it falls
LOG_EVERY = 10  # steps between two points of a TensorBoard curve
BINS = 100  # of a histogram
SAMPLE_EVERY = 200  # steps between two sets of TensorBoard's images; a run stopped before the first leaves no weights


def new_run(logs="logs"):
    """Make the folder of a new run, named after the time; a second run of the same second gets a suffix."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    Path(logs).mkdir(parents=True, exist_ok=True)
    for i in itertools.count(1):
        run = Path(logs) / (stamp if i == 1 else f"{stamp}-{i}")
        with suppress(FileExistsError):
            run.mkdir()
            return run


def train(config, frames, run=None, backend=None):
    """Train on the frame cache `frames` until the run is over or is told to end; resume the folder `run`, if given.

    `backend` is what `make_backend` gives. Where several machines share a run, each calls this; the first alone writes,
    and shows the progress.

    Returns (run, signal): the run's folder, on other machines than the first `run` as given; and the number of the
    signal that ended it early, or None.

    Raises:
        UserError: there are too few frames for a clip, nothing to resume from or nothing left to do, no room to save
            it, the training diverged, the batch does not divide among devices and parts, the machines were not started
            alike, one of them is gone, or another process trains in the folder.
    """
    started = time.perf_counter()
    gan = GAN(config, backend)
    backend, step, seconds = gan.backend, 0, 0.0
    chief = backend.replicas[0] == 0

    def progress(step):
        """The share of the run that is done, 0..1: by the clock where --max_minutes is given, else by steps."""
        return min(1.0, seconds / (60 * config.max_minutes) if config.max_minutes else step / config.steps)

    def passed(interval):
        """Whether the last steps, from `before` to `step`, reached or passed a multiple of `interval`."""
        return step // interval > before // interval

    with ExitStack() as held:
        if run and chief:
            held.enter_context(lock(run, "training in"))
            checkpoints.sweep(run)
        if run:
            step, seconds = resume(gan, run)
            started -= seconds
            if progress(step) == 1:
                raise UserError(f"{run} is trained to its end, {step:,} steps in {seconds / 60:.0f} minutes; give a "
                                "larger --steps or --max_minutes, which count from its beginning")
        else:
            gan.init_from_stats(*data.background(frames))
        batches = data.batches(frames, config.batch_size, config.clip_len, config.every_nth, config.seed, step,
                               gan.rows())
        with others_there(backend, config, step):
            backend.agree(f"{dataclasses.replace(config, data_dir='')} {step}")
        received = held.enter_context(noted())
        if chief:
            if not run:
                run = new_run()
                held.enter_context(lock(run, "training in"))
            with saving(run, step):
                config.save(run / "config.json")
                log = held.enter_context(Log(run))
            say(f"training in {run} on {backend.describe()}; "
                f"curves and pictures: tensorboard --logdir {quoted(run.parent)}")
            say(f"{sizes(gan)}; the first step takes a while")
        at_once = math.gcd(backend.steps_at_once, step, config.save_every,
                           *([] if config.max_minutes else [config.steps]))
        stacks = held.enter_context(prefetched(batches, at_once))
        bar = held.enter_context(progress_bar(progress(step), chief))
        saved_at, stop = time.perf_counter(), 0
        while progress(step) < 1 and not stop:
            rates = [learning_rate(config, step + i, progress(step + i)) for i in range(at_once)]
            clock = time.perf_counter() - started, bool(received)
            try:
                with others_there(backend, config, step):
                    metrics, (seconds, stop) = gan.train(next(stacks), rates, clock)
                stop = stop or (received and config.distribute != "multiworker")  # else all machines stop a step later
            except FloatingPointError as error:
                raise UserError(f"the training diverged after step {step}, {error}; start anew with a lower "
                                "--learning_rate") from None
            before, step = step, step + at_once
            if not chief:
                continue
            show(bar, progress(step), step, metrics[-1])
            points = curves(metrics[-1], rates[-1]) if passed(LOG_EVERY) else []
            points += samples(gan) if passed(SAMPLE_EVERY) else []
            with saving(run, step):
                log.write(points, step)
            if passed(config.save_every) or time.perf_counter() - saved_at > STATE_SECONDS:
                save(gan, run, step, seconds, weights=passed(config.save_every))
                saved_at = time.perf_counter()
        if chief:
            save(gan, run, step, seconds, weights=not stop or step >= SAMPLE_EVERY)
    return run, (received or [signal.SIGINT])[0] if stop else None


@contextmanager
def others_there(backend, config, step):
    """Wait for the other machines of a run.

    Raises:
        UserError: one of them is gone.
    """
    try:
        yield
    except backend.gone as error:
        if config.distribute != "multiworker":
            raise
        raise UserError("another machine of this run is gone; start all of them again, with --resume and the run's "
                        f"folder ({type(error).__name__} after step {step})") from None


def learning_rate(config, step, progress):
    """The learning rate of a step: it rises over the first steps and falls to 0 with the run's progress, 0..1.

    That of the original falls along a cosine, otherwise it falls linearly over the last FALL of the run.
    """
    fall = 0.5 * (1 + math.cos(math.pi * progress)) if config.arch == "original" else min(1, (1 - progress) / FALL)
    return config.learning_rate * min(1, (step + 1) / WARM_UP) * fall


def resume(gan, run):
    """Fill `gan` from the newest training state in the folder `run`: (steps, seconds) trained so far.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    saved = checkpoints.load_state(checkpoints.find_state(run), gan.resumable() | {"seconds": np.float64(0)})
    gan.restore(saved)
    return int(saved["state"]["step"]), float(saved["seconds"])


def save(gan, run, step, seconds, weights):
    """Write the state that `resume` reads and, if asked, the weights for playing."""
    with saving(run, step):
        if weights:
            gan.save_weights(run / f"weights.{step}")
        checkpoints.save_state(gan.resumable() | {"seconds": np.float64(seconds)}, run, step)


@contextmanager
def saving(run, step):
    """Write files of a run whole or not at all.

    Raises:
        UserError: they cannot be written, as on a full disk; what is there is left as it was.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError is h5py's
        states = checkpoints.numbered(run, "state")
        way_on = f"go on from {states[-1].name} with: --resume {quoted(run)}" if states else "start again"
        number = re.search(r"errno = (\d+)", str(error))  # in what h5py tells
        reason = os.strerror(int(number[1])) if number else getattr(error, "strerror", None) or error
        raise UserError(f"step {step} could not be saved in {run} ({reason}); make room there, then {way_on}"
                        ) from None


def sizes(gan):
    """How many weights each network has, in words."""
    networks = gan.video.generator, gan.video.transition, gan.discriminator
    return ", ".join(f"{network.name} {network.count_params():,}" for network in networks) + " weights"


@contextmanager
def prefetched(batches, n):
    """An endless iterator of stacks of n batches, each made ready while the one before is in use."""
    def stacks():
        ahead = thread.submit(stack)
        while True:
            ready, ahead = ahead.result(), thread.submit(stack)
            yield ready

    def stack():
        return np.stack([next(batches) for _ in range(n)])

    with ThreadPoolExecutor(1) as thread:
        yield stacks()


@contextmanager
def noted():
    """Yield the list that a first signal is noted in, to be acted on after the step; a second one acts at once."""
    received = []

    def note(number, _):
        received.append(number)
        signal.signal(number, previous[number])
        with suppress(OSError):  # not print, which may be in the midst of a line itself
            os.write(2, b"\nstopping as soon as this step is done and saved\n")

    with handling(note) as previous:
        yield received


def progress_bar(done, shown):
    """A bar over the share of the run that is done, as a run ends by steps or by the clock."""
    return tqdm(total=1.0, initial=done, disable=not shown, mininterval=0.5, dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar:10}| {elapsed}<{remaining}{postfix}")


def show(bar, done, step, metrics):
    """Show on the bar the step, the speed, the losses, and the moments of the transition's outputs."""
    first = bar.__dict__.setdefault("first", (step, bar.format_dict["elapsed"]))
    elapsed = bar.format_dict["elapsed"] - first[1]
    speed = f"{(step - first[0]) / elapsed:.2f} steps/s, " if elapsed else ""
    value = dict(zip(METRICS, metrics, strict=True))
    losses = ", ".join(f"{name} {value[f'loss/{name}']:.2f}" for name in ("d_adv", "g_adv"))
    moments = " ".join(f"{name} {value[f'moments/{name}']:.2f}" for name in ("mean", "std", "skewness", "kurtosis"))
    bar.set_description_str(f"step {step}", refresh=False)
    bar.set_postfix_str(f"{speed}{losses}, normality {value['loss/normality']:.3f}, {moments}", refresh=False)
    bar.update(done - bar.n)


class Log:
    """The file of a run that TensorBoard shows, written in this thread.

    tensorboardX's SummaryWriter writes in a thread of its own, which ends where the disk is full; the training would
    then wait for it without end.
    """

    def __init__(self, run):
        self.file = EventsWriter(str(run / "events"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with suppress(OSError):  # which `write` has raised before
            self.file.close()

    def write(self, points, step):
        """Write what `curves` and `samples` give."""
        for point in points:
            self.file.write_event(Event(wall_time=time.time(), step=step, summary=point))
        if points:
            self.file.flush()


def curves(metrics, rate):
    """The METRICS of a step and its learning rate, each a point of a curve."""
    return [summary.scalar(name, value)
            for name, value in zip((*METRICS, "learning_rate"), (*metrics, rate), strict=True)]


def samples(gan):
    """Frames of new chains, and histograms of their latents, at some time steps."""
    last = gan.config.seq_len - 1
    names = {"1_first": 0, "2_second": 1, "3_third": min(2, last), "4_middle": (last + 1) // 2, "5_last": last}
    latents, frames = gan.samples(list(names.values()))
    return [point for i, name in enumerate(names) for point in (
        summary.image(f"frames/{name}", frames[:, i], dataformats="NHWC"),
        summary.histogram(f"latents/{name}", latents[:, i], BINS))]
