"""One training step, the loop around it, checkpoints and logs: where TensorFlow lives.

A run is a folder, logs/<YYYYmmdd-HHMMSS>/:

    config.json                  the hyper-parameters
    weights.<epoch>.index/.data* what playing needs: the averaged generator and transition
    state.<step>.index/.data*    what resuming needs: all networks, optimisers, carried states; the newest only,
                                 written with the weights and every few minutes
    events.out.tfevents.*        TensorBoard's scalars, images and histograms
"""

import math
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import keras
import tensorflow as tf
from tqdm import tqdm

import checkpoints
import data
import losses
from files import UserError
from models import Discriminator, Generator, Transition

METRICS = ("loss/discriminator", "loss/generator", "loss/normality", "gradient/discriminator", "gradient/generator",
           "moments/mean", "moments/std", "moments/skewness", "moments/kurtosis")
R1_EVERY = 16  # steps: the gradient penalty acts slowly, and costs as much as a step (Karras et al. 2020)
STATE_SECONDS = 300  # between two saved training states, where the epochs of --save_every take longer
WARM_UP = 100  # steps until the learning rate has its full height: networks that know nothing yet overshoot
LOG_EVERY = 10  # steps between two points of a TensorBoard curve
SAMPLES = 8  # lamps drawn for TensorBoard
REFRESH = (64, 64)  # batches and latents a batch to gather a batch norm's statistics: 0.9^64 of what was there stays


class Trainer:
    """The networks of a run, their averages, optimisers and carried states, and the steps that train them."""

    def __init__(self, config):
        keras.utils.set_random_seed(config.seed)
        self.config = config
        self.generator, self.transition = Generator(config), Transition(config)
        self.discriminator = Discriminator(config)
        self.average = {"generator": Generator(config), "transition": Transition(config)}
        for name, network in self.average.items():
            network.set_weights(getattr(self, name).get_weights())
        self.lamp_weights = self.generator.trainable_variables + self.transition.trainable_variables
        self.lamp_optimizer = optimizer(config, self.lamp_weights)
        self.judge_optimizer = optimizer(config, self.discriminator.trainable_variables)
        self.step = tf.Variable(0, dtype=tf.int64)
        self.seconds = tf.Variable(0.0, dtype=tf.float64)
        normals = tf.random.stateless_normal((config.chains, config.latent_size), [config.seed, -1])
        self.state = [tf.Variable(part) for part in self.transition.initial(normals)]
        self.playing = tf.train.Checkpoint(**self.average)
        self.resuming = tf.train.Checkpoint(
            generator=self.generator, transition=self.transition, discriminator=self.discriminator,
            average=self.playing, lamp_optimizer=self.lamp_optimizer, judge_optimizer=self.judge_optimizer,
            step=self.step, seconds=self.seconds, state=self.state)

    def begin_with(self, frame):
        """Let the generator start from a picture [H, W, 3], 0..1."""
        if self.config.background:
            for generator in (self.generator, self.average["generator"]):
                generator.get_layer("background").begin_with(frame)

    def train_step(self, real, learning_rate):
        """Train on real clips [B, T, H, W, 3], uint8; returns the METRICS as a NumPy vector.

        Raises:
            FloatingPointError: a loss or a gradient is not finite.
        """
        self.lamp_optimizer.learning_rate.assign(learning_rate)
        self.judge_optimizer.learning_rate.assign(learning_rate)
        metrics = self.update(real).numpy()
        if self.config.r1_gamma and int(self.step) % R1_EVERY == 0:
            self.regularise(real)
        for name, value in zip(METRICS, metrics, strict=True):
            if not math.isfinite(value):
                raise FloatingPointError(f"{name} became {value} at step {int(self.step)}")
        return metrics

    @tf.function
    def update(self, real):
        """One step of all networks, from one forward pass."""
        config = self.config
        seeds = self.seeds(7)
        normals = tf.random.stateless_normal((config.chains, config.seq_len, config.latent_size), seeds[0])
        with tf.GradientTape(persistent=True) as tape:
            latents, outputs, state = self.transition.roll(normals, self.state)
            fake = self.decode(self.window(latents, seeds[1]))
            fake_logits = self.discriminator(self.augment(fake, seeds[2]), training=True)
            real_logits = self.discriminator(self.augment(to_float(real), seeds[3]), training=True)
            judge_loss = losses.discriminator_loss(real_logits, fake_logits)
            fool_loss = losses.generator_loss(fake_logits)
            normality = losses.PENALTIES[config.penalty](outputs)
            lamp_loss = fool_loss + config.penalty_weight * normality
        judge_gradients = tape.gradient(judge_loss, self.discriminator.trainable_variables)
        lamp_gradients = tape.gradient(lamp_loss, self.lamp_weights)
        self.judge_optimizer.apply(judge_gradients, self.discriminator.trainable_variables)
        self.lamp_optimizer.apply(lamp_gradients, self.lamp_weights)
        self.carry(state, seeds[4:])
        self.step.assign_add(1)
        self.update_average()
        return tf.stack([judge_loss, fool_loss, normality, tf.linalg.global_norm(judge_gradients),
                         tf.linalg.global_norm(lamp_gradients), *losses.moments(outputs, axis=(0, 1, 2))])

    def seeds(self, n):
        """n seeds [n, 2] for this step.

        They follow from --seed and the step alone: no generator has to be saved for a run to resume.
        """
        return tf.random.split(tf.random.fold_in([self.config.seed, 0], self.step), n)

    def window(self, latents, seed):
        """The latents [batch_size, clip_len, Z] to decode: of the first chains, at a random stretch of the steps."""
        config = self.config
        start = tf.random.stateless_uniform((), seed, 0, config.seq_len - config.clip_len + 1, tf.int32)
        return tf.slice(latents, [0, start, 0], [config.batch_size, config.clip_len, config.latent_size])

    def decode(self, latents):
        """Clips [B, T, H, W, 3] of latents [B, T, Z], drawn as one batch."""
        config = self.config
        frames = self.generator(tf.reshape(latents, (-1, config.latent_size)), training=True)
        return tf.reshape(frames, (*latents.shape[:2], config.img_size, config.img_size, 3))

    def augment(self, clips, seed):
        """Clips [B, T, H, W, 3], each shifted and tinted in a way of its own, with --augment; else as they are.

        What tells one from the other must then be more than the place and colour of a pixel that the discriminator
        has learned by heart (Zhao et al., "Differentiable augmentation for data-efficient GAN training", 2020).
        """
        if not self.config.augment:
            return clips
        seeds = tf.random.split(seed, 3)
        batch, _, size, *_ = clips.shape
        most = size // 8
        clips = tf.pad(clips, ((0, 0), (0, 0), (most, most), (most, most), (0, 0)), "SYMMETRIC")
        shifts = tf.random.stateless_uniform((batch, 2, 1), seeds[0], 0, 2 * most + 1, tf.int32) + tf.range(size)
        clips = tf.gather(clips, shifts[:, 0], axis=2, batch_dims=1)
        clips = tf.gather(clips, shifts[:, 1], axis=3, batch_dims=1)
        tint = tf.random.stateless_uniform((batch, 1, 1, 1, 3), seeds[1], -0.1, 0.1)
        contrast = tf.random.stateless_uniform((batch, 1, 1, 1, 1), seeds[2], 0.7, 1.3)
        return contrast * clips + tint

    def carry(self, state, seeds):
        """Let the next step begin where this one ended, with some chains anew, and other chains first to be decoded.

        This is truncated back-propagation: it makes rollouts of any length part of what is trained.
        """
        chains = self.config.chains
        fresh = self.transition.initial(tf.random.stateless_normal((chains, self.config.latent_size), seeds[0]))
        reset = tf.random.stateless_uniform((chains, 1), seeds[1]) < self.config.reset_probability
        order = tf.random.experimental.stateless_shuffle(tf.range(chains), seeds[2])
        for variable, old, new in zip(self.state, state, fresh, strict=True):
            variable.assign(tf.gather(tf.where(reset, new, old), order))

    def update_average(self):
        """Move the averaged weights towards the trained ones, faster in the first steps than `ema` says."""
        step = tf.cast(self.step, tf.float32)
        decay = tf.minimum(self.config.ema, step / (step + 10))
        for name, network in self.average.items():
            trained = getattr(self, name).trainable_variables
            for mean, weight in zip(network.trainable_variables, trained, strict=True):
                mean.assign(weight + decay * (mean - weight))

    @tf.function
    def regularise(self, real):
        """Move the discriminator down its gradient penalty on real clips, as a step of its own."""
        clips = self.augment(to_float(real), self.seeds(1)[0])
        with tf.GradientTape() as tape:
            with tf.GradientTape() as inner:
                inner.watch(clips)
                logits = self.discriminator(clips, training=True)
            penalty = losses.gradient_penalty(inner.gradient(logits, clips))
            loss = R1_EVERY * self.config.r1_gamma * penalty
        weights = self.discriminator.trainable_variables
        pairs = zip(tape.gradient(loss, weights), weights, strict=True)
        gradients, weights = zip(*(pair for pair in pairs if pair[0] is not None), strict=True)  # all but last biases
        self.judge_optimizer.apply(gradients, weights)

    @tf.function
    def refresh_statistics(self):
        """Gather a batch norm's statistics for the averaged generator, on states that its own lamps run through.

        The statistics of the trained weights, averaged or not, do not fit the averaged weights.
        """
        batches, latents = REFRESH
        stride = self.config.clip_len
        state = tuple(part[:latents] for part in self.state)
        for seed in self.seeds(batches):
            shape = (tf.shape(state[0])[0], stride, self.config.latent_size)
            _, _, state = self.average["transition"].roll(tf.random.stateless_normal(shape, seed), state)
            self.average["generator"](state[0], training=True)

    @tf.function
    def sample(self):
        """New lamps, the same ones each time: (latents [N, 5, Z], frames [SAMPLES, 5, H, W, 3]) at SAMPLE_STEPS."""
        config = self.config
        normals = tf.random.stateless_normal((config.chains, config.seq_len, config.latent_size), [config.seed, -2])
        transition = self.average["transition"]
        latents, _, _ = transition.roll(normals, transition.initial(normals[:, 0]))
        latents = tf.gather(latents, list(sample_steps(config).values()), axis=1)
        drawn = tf.reshape(latents[:SAMPLES], (-1, config.latent_size))
        frames = self.average["generator"](drawn, training=False)
        return latents, tf.reshape(frames, (-1, latents.shape[1], config.img_size, config.img_size, 3))

    def save_weights(self, run, epoch):
        """Write the playing weights of `epoch` into the folder `run`."""
        prefix = run / f"weights.{epoch}"
        if not checkpoints.exists(prefix):
            if self.config.generator_norm == "batch":
                self.refresh_statistics()
            checkpoints.write(self.playing, prefix)

    def save_state(self, run):
        """Write the training state into the folder `run`, and remove older ones."""
        state = f"state.{int(self.step)}"
        if not checkpoints.exists(run / state):
            checkpoints.write(self.resuming, run / state)
        for old in run.glob("state.*"):
            if not old.name.startswith(f"{state}."):
                old.unlink()

    def restore(self, run):
        """Continue from the newest training state in the folder `run`.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        state = checkpoints.newest(run, "state")
        if not state:
            raise UserError(f"{run} holds no training state to resume from; start anew without --resume")
        checkpoints.sweep(run)
        checkpoints.read(self.resuming, state)


def optimizer(config, variables):
    """The optimiser of `variables`, its learning rate set before each step."""
    if config.optimizer == "adam":  # no momentum: what one network learned of the other is stale at once
        built = keras.optimizers.Adam(config.learning_rate, beta_1=0.0, beta_2=0.99)
    else:
        built = keras.optimizers.SGD(config.learning_rate)
    built.build(variables)
    return built


def to_float(frames):
    """Frames 0..255, uint8 -> 0..1, float32."""
    return tf.cast(frames, tf.float32) / 255


def sample_steps(config):
    """The steps of a sequence that TensorBoard shows, by name."""
    return {"1_first": 0, "2_second": 1, "3_third": min(2, config.seq_len - 1),
            "4_middle": config.seq_len // 2, "5_last": config.seq_len - 1}


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


def train(config, frames, run=None):
    """Train on the frame cache `frames` until the run is over or is told to end; go on with `run`, if given.

    Returns (run, signal): the run's folder, and the number of the signal that ended it early, or None.

    Raises:
        UserError: there are too few frames for a sequence, nothing to resume from, or the training diverged.
    """
    started = time.perf_counter()
    trainer = Trainer(config)
    if run:
        trainer.restore(run)
        started -= float(trainer.seconds)
    steps_per_epoch = data.batches_per_epoch(data.count(frames), config.batch_size, config.clip_len, config.every_nth)
    batches = data.batches(frames, config.batch_size, config.clip_len, config.every_nth, config.seed, int(trainer.step))
    if not run:
        run = new_run()
        trainer.begin_with(data.mean_frame(frames))
        for network in (trainer.generator, trainer.transition, trainer.discriminator):
            network.summary()
    config.save(run / "config.json")
    print(f"training in {run} on {devices()}; curves and pictures: tensorboard --logdir {run.parent}", flush=True)

    def progress():
        """The share of the run that is done, 0..1: by the clock where --max_minutes is given, else by epochs."""
        if config.max_minutes:
            return min(1.0, float(trainer.seconds) / (60 * config.max_minutes))
        return min(1.0, int(trainer.step) / (config.epochs * steps_per_epoch))

    log = tf.summary.create_file_writer(str(run))
    with noted(signal.SIGINT, signal.SIGTERM) as received, log.as_default(), progress_bar(progress()) as bar:
        saved_at = time.perf_counter()
        for real in prefetched(batches):
            done = progress()
            if done == 1 or received:
                break
            warm = min(1, (int(trainer.step) + 1) / WARM_UP)
            learning_rate = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))
            try:
                metrics = trainer.train_step(tf.constant(real), learning_rate)
            except FloatingPointError as error:
                raise UserError(f"the training diverged, {error}; the checkpoints in {run} are from before: go on from "
                                f"the last with --resume {run}, or start anew with a lower --learning_rate") from None
            step = int(trainer.step)
            trainer.seconds.assign(time.perf_counter() - started)
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
        trainer.save_weights(run, epoch_name(int(trainer.step), steps_per_epoch))
        trainer.save_state(run)
    return run, received[0] if received else None


def prefetched(batches):
    """The items of the endless iterator `batches`, each made ready while the one before is in use."""
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(next, batches)
        while True:
            batch, ahead = ahead.result(), thread.submit(next, batches)
            yield batch


def devices():
    """What TensorFlow computes on, in words."""
    gpus = [tf.config.experimental.get_device_details(gpu).get("device_name", "a GPU")
            for gpu in tf.config.list_physical_devices("GPU")]
    return " and ".join(gpus) or f"{os.cpu_count()} CPU cores"


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

    previous = {number: signal.signal(number, note) for number in signals}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def progress_bar(done):
    """A bar over the share of the run that is done, as a run ends by epochs or by the clock."""
    return tqdm(total=1.0, initial=done, mininterval=0.5, dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar:10}| {elapsed}<{remaining}{postfix}")


def report(bar, done, step, steps_per_epoch, metrics):
    """Show on the bar the epoch, the speed, the losses, and the moments of the states."""
    elapsed = bar.format_dict["elapsed"]
    bar.steps = getattr(bar, "steps", 0) + 1
    judge, fool, normality, _, _, mean, std, skewness, kurtosis = metrics
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
