"""One step of training, on one device or on many."""

import math

import keras
import numpy as np
import tensorflow as tf

import checkpoints
import losses
from distribution import local_replicas
from files import UserError
from models import Discriminator, Generator, Transition, own_speeds

METRICS = ("loss/discriminator", "loss/generator", "loss/normality", "loss/distances", "loss/pace",
           "gradient/discriminator", "gradient/generator",
           "moments/mean", "moments/std", "moments/skewness", "moments/kurtosis")
PENALISED = 4  # clips of a batch under each gradient penalty: of all it would cost as much as the rest of a step
SAMPLES = 8  # lamps drawn for TensorBoard
PAST = 16  # sequences before a step's own to which its latents are compared: by then they are to be forgotten
REFRESH = (64, 64)  # batches and latents a batch to gather a batch norm's statistics: 0.9^64 of what was there stays


class Trainer:
    """The networks of a run, their averages, optimisers and carried states, and the steps that train them."""

    def __init__(self, config, strategy=None):
        keras.utils.set_random_seed(config.seed)
        self.config = config
        self.strategy = strategy or tf.distribute.get_strategy()
        self.replicas = local_replicas(self.strategy)
        self.chief = self.replicas[0] == 0
        check_parts(config, self.strategy.num_replicas_in_sync)
        self.step = tf.Variable(0, dtype=tf.int64)  # each machine counts for itself
        self.seconds = tf.Variable(0.0, dtype=tf.float64)
        with self.strategy.scope():
            self.build()

    def build(self):
        """Make all that changes in training."""
        config = self.config
        self.generator, self.transition = Generator(config), Transition(config)
        self.discriminator = Discriminator(config)
        self.average = {"generator": Generator(config.at_play()), "transition": Transition(config.at_play())}
        for name, network in self.average.items():
            network.set_weights(getattr(self, name).get_weights())
        self.lamp_weights = self.generator.trainable_variables + self.transition.trainable_variables
        self.lamp_optimizer = optimizer(config, self.lamp_weights)
        self.eye = self.discriminator.look.trainable_variables
        self.head = self.discriminator.trainable_variables[len(self.eye):]
        self.judge_optimizer = optimizer(config, self.eye + self.head)
        normals = tf.random.stateless_normal((config.chains, config.latent_size), [config.seed, -1])
        self.lags = lags(config.seq_len)
        self.pace = tf.Variable(tf.ones((len(self.lags), config.latent_size)), trainable=False)
        self.state = [tf.Variable(part) for part in self.transition.initial(normals)]
        shape = (config.chains, PAST * config.seq_len, config.latent_size)
        self.past = tf.Variable(tf.random.stateless_normal(shape, [config.seed, -3]))
        self.playing = tf.train.Checkpoint(**self.average)
        self.resuming = tf.train.Checkpoint(
            generator=self.generator, transition=self.transition, discriminator=self.discriminator,
            average=self.playing, lamp_optimizer=self.lamp_optimizer, judge_optimizer=self.judge_optimizer,
            step=self.step, seconds=self.seconds, state=self.state, past=self.past, pace=self.pace)

    def sizes(self):
        """How many weights each network has, in words."""
        return ", ".join(f"{network.name} {network.count_params():,}" for network in
                         (self.generator, self.transition, self.discriminator)) + " weights"

    def begin_with(self, background, pace):
        """Let the generator draw on the footage's `background`, and the states move at its `pace`, by lag; see data."""
        # A hand that is k times as fast as others is like itself at a time as they are at k times that. Where that is
        # how a Gaussian falls, it is what they have to the power of k^2.
        own = np.tile(own_speeds(self.config.latent_size // 2), 2)
        self.pace.assign([np.sqrt(1 - (1 - pace[lag] ** 2) ** own**2) for lag in self.lags])
        for transition in self.transition, self.average["transition"]:
            transition.begin_with(pace[1])
        if self.config.background:
            for generator in (self.generator, self.average["generator"]):
                generator.begin_with(*background)

    def train_step(self, real, learning_rate, clock=(0.0, 0.0)):
        """Train on real clips, uint8 [B, T, H, W, 3]: those of the batch that `rows` names.

        `clock` holds what all machines of a run should agree on: the seconds trained, and whether to stop, as 0 or 1.

        Returns (metrics, clock): the METRICS as a NumPy vector, and the clock's mean over all machines.

        Raises:
            FloatingPointError: a loss or a gradient is not finite.
        """
        self.lamp_optimizer.learning_rate.assign(learning_rate)
        self.judge_optimizer.learning_rate.assign(learning_rate)
        mine = np.split(real, len(self.replicas))
        real = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(mine[self.replicas.index(context.replica_id_in_sync_group)]))
        metrics, clock = np.split(self.update(real, tf.constant(clock, tf.float64)).numpy(), [len(METRICS)])
        for name, value in zip(METRICS, metrics, strict=True):
            # A gradient that float16 cannot hold is skipped: the optimiser then scales the losses down.
            if not math.isfinite(value) and not (self.config.precision == "float16" and name.startswith("gradient")):
                raise FloatingPointError(f"{name} became {value} at step {int(self.step)}")
        return metrics, clock

    def rows(self):
        """Which clips of a batch this machine trains on, each of its devices an equal share, one after the other."""
        batch, n = self.config.batch_size, self.strategy.num_replicas_in_sync
        return [row for replica in self.replicas for row in range(replica, batch, n)]

    @tf.function
    def update(self, real, clock):
        """One step of all networks, from one forward pass."""
        results = self.strategy.run(self.learn, (real, clock))
        known, latents, *state = (self.strategy.experimental_local_results(result)[0] for result in results)
        self.carry(latents, state, self.seeds(8)[4:])
        self.step.assign_add(1)
        self.update_average()
        return known

    def learn(self, real, clock):
        """One device's share of a step, of what all devices add up.

        Drawing frames and seeing them takes nearly all the time and memory. So every device rolls all lamps and judges
        all clips, each in the same way, but draws and sees its own clips alone. But for what a batch norm sees, the
        update is the same however many share in it.
        """
        config, device = self.config, tf.distribute.get_replica_context()
        n = device.num_replicas_in_sync
        seeds = self.seeds(8)
        normals = tf.random.stateless_normal((config.chains, config.seq_len, config.latent_size), seeds[0])
        scale = self.judge_optimizer.scale_loss(1.0), self.lamp_optimizer.scale_loss(1.0)  # 1 but in float16
        with tf.GradientTape() as rolling:
            latents, outputs, state = self.transition.roll(normals, self.state)
            window = self.window(latents, seeds[1])
            normality = losses.PENALTIES[config.penalty](outputs)
            pace = losses.pace_penalty(latents, self.past, dict(zip(self.lags, tf.unstack(self.pace), strict=True)))
            pace_weight = config.pace_weight if config.pace else 0.0
            penalty = scale[1] / n * (config.penalty_weight * normality + pace_weight * pace)
        share = config.batch_size // n
        rows = device.replica_id_in_sync_group + n * tf.range(share)
        seen, back = self.see(window, real, rows, seeds[2:4])
        order = [row % n * share + row // n for row in range(config.batch_size)]  # where in what is gathered
        whole = (tf.ensure_shape(device.all_gather(part, axis=0), (None, *part.shape[1:])) for part in seen)
        fake, true, *small = (tf.gather(part, order) for part in whole)
        with tf.GradientTape(persistent=True) as judging:
            judging.watch((fake, true, small))
            fake_logits, real_logits = self.discriminator.judge(fake), self.discriminator.judge(true)
            if config.relativistic:
                real_logits, fake_logits = losses.relative(real_logits, fake_logits)
            judge_loss = losses.discriminator_loss(real_logits, fake_logits)
            fool_loss = losses.generator_loss(fake_logits)
            apart = losses.distance_penalty(*small)
            lamp_loss = fool_loss + config.distance_weight * apart
            scaled = scale[0] * judge_loss, scale[1] * lamp_loss
        by_judge = judging.gradient(scaled[0], (fake, true))
        by_lamp = judging.gradient(scaled[1], (fake, small[0]))
        eye, hand, by_window = back(*([tf.gather(pull, rows) for pull in pulls] for pulls in (by_judge, by_lamp)))
        judge_gradients = eye + judging.gradient(scaled[0], self.head, tf.constant(1 / n))
        lamp_gradients = hand + rolling.gradient((window, penalty), self.transition.trainable_variables,
                                                 (by_window, tf.ones(())))
        few = rows[:math.ceil(PENALISED / n)]
        if config.r1_gamma:
            weight = scale[0] * config.r1_gamma / n
            judge_gradients = self.penalise(judge_gradients, to_float(real[:len(few)]), few, seeds[3], weight)
        if config.r2_gamma:
            weight, clips = scale[0] * config.r2_gamma / n, self.decode(tf.gather(window, few))
            judge_gradients = self.penalise(judge_gradients, clips, few, seeds[2], weight)
        self.judge_optimizer.apply(judge_gradients, self.eye + self.head)
        self.lamp_optimizer.apply(lamp_gradients, self.lamp_weights)
        metrics = tf.stack([judge_loss, fool_loss, normality, apart, pace,
                            n / scale[0] * tf.linalg.global_norm(judge_gradients),
                            n / scale[1] * tf.linalg.global_norm(lamp_gradients),
                            *losses.moments(outputs, axis=(0, 1, 2))])
        known = tf.concat([tf.cast(metrics, tf.float64), clock], axis=0)
        return device.all_reduce(tf.distribute.ReduceOp.MEAN, known), latents, *state

    def penalise(self, gradients, clips, rows, seed, weight):
        """Add to the discriminator's gradients those of `weight` times its gradient penalty on some clips.

        Every device offers a few of its own, and penalises those of all. They are judged as a batch of their own: the
        penalty also holds what the discriminator makes of their spread.
        """
        device, shape = tf.distribute.get_replica_context(), (None, *clips.shape[1:])
        clips, rows = (device.all_gather(part, axis=0)[:PENALISED] for part in (clips, rows))
        clips = self.augment(tf.ensure_shape(clips, shape), seed, rows)
        with tf.GradientTape() as tape:
            with tf.GradientTape() as inner:
                inner.watch(clips)
                logits = self.discriminator(clips, training=True)
            penalty = weight * losses.gradient_penalty(inner.gradient(logits, clips))
        weights = self.eye + self.head  # the last biases, if there are any, have no part in it
        return [before if more is None else before + more
                for before, more in zip(gradients, tape.gradient(penalty, weights), strict=True)]

    def see(self, window, real, rows, seeds):
        """Draw the latents `window` of the clips `rows`, and see them and the real clips.

        With --accumulate both are done in parts, twice: once for the features of all clips, from which follow the
        losses, and once more to carry the gradients of those back (Gao et al., "Scaling deep contrastive learning
        batch size under memory limited setup", 2021).

        Returns (seen, back): of the drawn and of the real clips the features [B, T, F], then of both the thumbnails;
        and a function that turns a judge's gradients by both features, and a lamp's by features and thumbnails of the
        drawn ones, into gradients by the weights that see, by those that draw, and by `window`.
        """
        parts, drawing = self.config.accumulate, self.generator.trainable_variables
        rows = tf.reshape(rows, (parts, -1))
        real = tf.reshape(real, (*rows.shape, *real.shape[1:]))

        decode, look = self.decode, lambda clips: self.discriminator.see(clips, training=True)
        if self.config.remat:
            decode, look = keras.remat(decode), keras.remat(look)

        def forth(part):
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(window)
                clips = decode(tf.gather(window, rows[part]))
                fake = self.augment(clips, seeds[0], rows[part])
                true = self.augment(to_float(real[part]), seeds[1], rows[part])
                seen = [look(fake), look(true), losses.thumbnails(fake), losses.thumbnails(true)]
            return tape, seen

        def back(tape, seen, by_judge, by_lamp):
            seeing = tape.gradient(seen[:2], self.eye, by_judge)
            *drawn, by_window = tape.gradient(seen[::2], [*drawing, window], by_lamp)
            return seeing, drawn, tf.convert_to_tensor(by_window)

        if parts == 1:
            tape, seen = forth(0)
            return seen, lambda by_judge, by_lamp: back(tape, seen, by_judge, by_lamp)

        def back_in_parts(by_judge, by_lamp):
            pulls = [tf.reshape(pull, (parts, -1, *pull.shape[1:])) for pull in (*by_judge, *by_lamp)]

            def add(sums, part):
                fake, true, *lamp = (pull[part] for pull in pulls)
                return tf.nest.map_structure(tf.add, sums, back(*forth(part), [fake, true], lamp))

            nothing = tf.nest.map_structure(tf.zeros_like, (self.eye, drawing, window))
            return tf.foldl(add, tf.range(parts), nothing, parallel_iterations=1)

        seen = tf.map_fn(lambda part: forth(part)[1], tf.range(parts), parallel_iterations=1,
                         fn_output_signature=4 * [tf.float32])
        return [tf.reshape(part, (-1, *part.shape[2:])) for part in seen], back_in_parts

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
        config, (batch, time, size) = self.config, latents.shape
        frames = self.generator(tf.reshape(latents, (-1, size)), training=True)
        return tf.reshape(frames, (batch, time, config.img_size, config.img_size, 3))

    def augment(self, clips, seed, rows):
        """Clips [B, T, H, W, 3], each shifted in a way of its own, with --augment; else as they are.

        `rows` [B] are their places in the batch: with them a clip's way does not depend on which others are here.

        What tells one from the other must then be more than the place of a pixel that the discriminator has learned by
        heart (Zhao et al., "Differentiable augmentation for data-efficient GAN training", 2020). Not tinted as well: it
        would not mind colours then.
        """
        if not self.config.augment:
            return clips
        batch, size = self.config.batch_size, self.config.img_size
        most = size // 8
        clips = tf.pad(clips, ((0, 0), (0, 0), (most, most), (most, most), (0, 0)), "SYMMETRIC")
        shifts = tf.random.stateless_uniform((batch, 2, 1), seed, 0, 2 * most + 1, tf.int32)
        shifts = tf.gather(shifts, rows) + tf.range(size)
        clips = tf.gather(clips, shifts[:, 0], axis=2, batch_dims=1)
        return tf.gather(clips, shifts[:, 1], axis=3, batch_dims=1)

    def carry(self, latents, state, seeds):
        """Let the next step begin where this one ended, with some chains anew, and other chains first to be decoded.

        This is truncated back-propagation: it makes rollouts of any length part of what is trained. A chain's past ends
        with the latents [chains, T, Z] of this step; for that of a new chain, which has none, stand normal numbers.
        """
        chains, size = self.config.chains, self.config.latent_size
        past = tf.concat([self.past[:, self.config.seq_len:], latents], axis=1)
        fresh = self.transition.initial(tf.random.stateless_normal((chains, size), seeds[0]))
        reset = tf.random.stateless_uniform((chains, 1), seeds[1]) < self.config.reset_probability
        order = tf.random.experimental.stateless_shuffle(tf.range(chains), seeds[2])
        for variable, old, begun in zip(self.state, state, fresh, strict=True):
            variable.assign(tf.gather(tf.where(reset, begun, old), order))
        new = tf.where(reset[:, 0])  # of few chains: normal numbers for the past of all took a twentieth of a step
        nothing = tf.random.stateless_normal((tf.shape(new)[0], *past.shape[1:]), seeds[3])
        self.past.assign(tf.gather(tf.tensor_scatter_nd_update(past, new, nothing), order))

    def update_average(self):
        """Move the averaged weights towards the trained ones, faster in the first steps than `ema` says."""
        step = tf.cast(self.step, tf.float32)
        decay = tf.minimum(self.config.ema, step / (step + 10))
        for name, network in self.average.items():
            trained = getattr(self, name).trainable_variables
            for mean, weight in zip(network.trainable_variables, trained, strict=True):
                mean.assign(weight + decay * (mean - weight))

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
        state = checkpoints.find_state(run)
        checkpoints.sweep(run)
        checkpoints.read(self.resuming, state)


def check_parts(config, devices):
    """See that a batch can be shared.

    Raises:
        UserError: it cannot.
    """
    if config.batch_size % (devices * config.accumulate):
        raise UserError(f"--batch_size {config.batch_size} does not divide into {devices * config.accumulate} parts: "
                        f"--accumulate {config.accumulate} on each of {devices} devices")


def optimizer(config, variables):
    """The optimiser of `variables`, its learning rate set before each step."""
    if config.optimizer == "adam":  # no momentum: what one network learned of the other is stale at once
        built = keras.optimizers.Adam(config.learning_rate, beta_1=0.0, beta_2=0.99)
    else:
        built = keras.optimizers.SGD(config.learning_rate)
    if config.precision == "float16":  # whose smallest gradients would else be lost; slopes exceed it at Keras's 2^15
        built = keras.optimizers.LossScaleOptimizer(built, initial_scale=2**12)
    built.build(variables)
    return built


def lags(seq_len):
    """The lags, in steps, over which the pace of states is held to the footage's: 1, 2, 4 ... seq_len, and a long one.

    In between the states are free: a thing that comes and goes is then further from where it was than chance.
    """
    return [*(2**i for i in range(seq_len.bit_length())), PAST * seq_len]


def to_float(frames):
    """Frames 0..255, uint8 -> 0..1, float32."""
    return tf.cast(frames, tf.float32) / 255


def sample_steps(config):
    """The steps of a sequence that TensorBoard shows, by name."""
    return {"1_first": 0, "2_second": 1, "3_third": min(2, config.seq_len - 1),
            "4_middle": config.seq_len // 2, "5_last": config.seq_len - 1}
