"""A run: the loop around the training step, its checkpoints and its logs.

A run is a folder, logs/<YYYYmmdd-HHMMSS>/:

    config.json                  the hyper-parameters
    weights.<epoch>.index/.data* what playing needs: the averaged generator and transition
    state.<step>.index/.data*    what resuming needs: all networks, optimisers, carried states; the newest only,
                                 written with the weights and every few minutes
    events.out.tfevents.*        TensorBoard's scalars, images and histograms
"""

import dataclasses
import math
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import tensorflow as tf
from tqdm import tqdm

import data
from distribution import GONE, agree, devices
from files import UserError
from trainer import METRICS, SAMPLES, Trainer, sample_steps

STATE_SECONDS = 300  # between two saved training states, where the epochs of --save_every take longer
LONGEST_EPOCH = 200  # steps: also of an hour of footage one wants to see, soon, what was learned
WARM_UP = 100  # steps until the learning rate has its full height: networks that know nothing yet overshoot
LOG_EVERY = 10  # steps between two points of a TensorBoard curve


def new_run(logs="logs"):
    """Make the folder of a new run, named after the time; a second run of the same second gets a suffix."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
        run = Path(logs) / (stamp + suffix)
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            continue
    raise UserError(f"{logs} holds 999 runs of this very second; wait one")


def train(config, frames, run=None, strategy=None):
    """Train on the frame cache `frames` until the run is over or is told to end; go on with `run`, if given.

    Where several machines share a run, each calls this; the first alone writes, and shows how it goes.

    Returns (run, signal): the run's folder, None on other machines than the first; and the number of the signal that
    ended it early, or None.

    Raises:
        UserError: there are too few frames for a sequence, nothing to resume from, the training diverged, or another
            machine is gone.
    """
    started = time.perf_counter()
    trainer = Trainer(config, strategy)
    if run:
        trainer.restore(run)
        started -= float(trainer.seconds)
    steps_per_epoch = min(LONGEST_EPOCH, data.batches_per_epoch(data.count(frames), config.batch_size, config.clip_len,
                                                                config.every_nth))
    batches = data.batches(frames, config.batch_size, config.seq_len, config.every_nth, config.seed,
                           int(trainer.step), trainer.rows(), config.window)
    if not run:
        pace = data.pace(frames, config.every_nth, trainer.lags, config.pace)
        trainer.begin_with(data.background(frames), pace)
    agree(trainer.strategy, f"{dataclasses.replace(config, data_dir='')} {int(trainer.step)}")
    if trainer.chief:
        if not run:
            run = new_run()
        config.save(run / "config.json")
        print(f"training in {run} on {devices(trainer.strategy)}; curves and pictures: tensorboard --logdir "
              f"{run.parent}\n{trainer.sizes()}; the first step takes a while", flush=True)

    def progress():
        """The share of the run that is done, 0..1: by the clock where --max_minutes is given, else by epochs."""
        if config.max_minutes:
            return min(1.0, float(trainer.seconds) / (60 * config.max_minutes))
        return min(1.0, int(trainer.step) / (config.epochs * steps_per_epoch))

    with noted(signal.SIGINT, signal.SIGTERM) as received, log_in(run, trainer.chief), \
            progress_bar(progress(), trainer.chief) as bar:
        saved_at, stop = time.perf_counter(), 0
        for real in prefetched(batches):
            done = progress()
            if done == 1 or stop:
                break
            warm = min(1, (int(trainer.step) + 1) / WARM_UP)
            learning_rate = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))
            clock = time.perf_counter() - started, bool(received)
            try:
                metrics, (seconds, stop) = trainer.train_step(real, learning_rate, clock)
            except FloatingPointError as error:
                folder = run or "the run's folder"
                raise UserError(f"the training diverged, {error}; the checkpoints in {folder} are from before: go on "
                                f"from the last with --resume {folder}, or start anew with a lower --learning_rate"
                                ) from None
            except GONE as error:
                if config.distribute != "multiworker":
                    raise
                raise UserError("another machine of this run is gone; start all of them again, with --resume and the "
                                f"run's folder ({type(error).__name__} in step {int(trainer.step) + 1})") from None
            trainer.seconds.assign(seconds)
            if not trainer.chief:
                continue
            step = int(trainer.step)
            report(bar, progress(), step, steps_per_epoch, metrics)
            if step % LOG_EVERY == 0:
                log_scalars(step, metrics, learning_rate)
            if step % steps_per_epoch == 0:
                log_samples(trainer, step)
            due = step % (config.save_every * steps_per_epoch) == 0
            if due:
                trainer.save_weights(run, epoch_name(step, steps_per_epoch))
            if due or time.perf_counter() - saved_at > STATE_SECONDS:
                trainer.save_state(run)
                saved_at = time.perf_counter()
        if trainer.chief:
            # A trial stopped in its first epoch has nothing to show: it shall not pass for the newest lamp.
            if not stop or int(trainer.step) >= steps_per_epoch:
                trainer.save_weights(run, epoch_name(int(trainer.step), steps_per_epoch))
            trainer.save_state(run)
    return run, (received or [signal.SIGINT])[0] if stop else None


def prefetched(batches):
    """The items of the endless iterator `batches`, each made ready while the one before is in use."""
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(next, batches)
        while True:
            batch, ahead = ahead.result(), thread.submit(next, batches)
            yield batch


def epoch_name(step, steps_per_epoch):
    """Epochs trained after `step`, as files name them: 180, or 180.25 where a run was ended within one."""
    return f"{step / steps_per_epoch:.3f}".rstrip("0").rstrip(".")


@contextmanager
def noted(*signals):
    """Note a signal in the list yielded, to be acted on when the step is done; a second one acts at once."""
    received = []

    def note(number, _):
        received.append(number)
        signal.signal(number, previous[number])
        # Not print, which may be in the midst of a line itself.
        os.write(2, b"\nstopping as soon as this step is done and saved\n")

    previous = {number: signal.signal(number, note) for number in signals}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def log_in(run, shown):
    """Let TensorBoard's figures go to the folder `run`, or nowhere."""
    writer = tf.summary.create_file_writer(str(run)) if shown else tf.summary.create_noop_writer()
    return writer.as_default()


def progress_bar(done, shown):
    """A bar over the share of the run that is done, as a run ends by epochs or by the clock."""
    return tqdm(total=1.0, initial=done, disable=not shown, mininterval=0.5, dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar:10}| {elapsed}<{remaining}{postfix}")


def report(bar, done, step, steps_per_epoch, metrics):
    """Show on the bar the epoch, the speed, the losses, and the moments of the states."""
    elapsed = bar.format_dict["elapsed"]
    bar.steps = getattr(bar, "steps", 0) + 1
    judge, fool, normality = metrics[:3]
    mean, std, skewness, kurtosis = metrics[-4:]
    bar.set_description_str(f"epoch {math.ceil(step / steps_per_epoch)}", refresh=False)
    bar.set_postfix_str(f"{bar.steps / elapsed:.2f} steps/s, loss D {judge:.2f} G {fool:.2f} N {normality:.3f}, "
                        f"mean {mean:+.2f} std {std:.2f} skew {skewness:+.2f} kurt {kurtosis:.2f}", refresh=False)
    bar.update(done - bar.n)


def log_scalars(step, metrics, learning_rate):
    """A point on each of TensorBoard's curves."""
    for name, value in zip((*METRICS, "learning_rate"), (*metrics, learning_rate), strict=True):
        tf.summary.scalar(name, value, step=step)


def log_samples(trainer, step):
    """Pictures of new lamps, and histograms of their latents, at some steps of a sequence."""
    latents, frames = trainer.sample()
    for i, name in enumerate(sample_steps(trainer.config)):
        tf.summary.image(f"frames/{name}", frames[:, i], step=step, max_outputs=SAMPLES)
        tf.summary.histogram(f"latents/{name}", latents[:, i], step=step)
