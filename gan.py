"""The networks of a run and one training step, as a pure function of an explicit state."""

import random

import keras
import numpy as np
from keras import ops

import checkpoints
import losses
from backend import compiled, make_backend
from files import UserError
from models import Discriminator, VideoModel

TERMS = "d_adv", "g_adv", "normality", "distance", "gradient_penalty"
METRICS = ("gradient/discriminator", "gradient/generator", *(f"loss/{term}" for term in TERMS),
           "moments/mean", "moments/std", "moments/skewness", "moments/kurtosis")
DRAWS = 8  # numbers of the random stream that a step has for itself; it draws from it six times
PENALISED = 4  # clips of a part of the batch under each gradient penalty; penalising all would double a step's cost
SAMPLES = 8  # new chains drawn for TensorBoard
REFRESH = 64, 64  # batches and latents a batch to gather batch norm's statistics: 0.9^64 of the old ones is left


class GAN:
    """The networks of a run, and the state that a training step turns into the next one.

    `state` is a nested dict of tensors: the trained weights of the generating networks, g, and of the discriminator, d,
    their optimisers' second moments, the average of g, the chains' states, and the number of the step. The
    networks' own variables hold the initial weights, and what is not trained.

    Raises:
        UserError: the batch does not divide among devices and parts.
    """

    def __init__(self, config, backend=None):
        self.config, self.backend = config, backend or make_backend(config.distribute)
        if config.batch_size % (self.backend.devices * config.accumulate):
            raise UserError(f"--batch_size {config.batch_size} does not divide into {self.backend.devices} devices x "
                            f"--accumulate {config.accumulate} parts")
        random.seed(config.seed)  # of Keras's initialisers
        self.random_source = keras.random.SeedGenerator(config.seed)
        self.video, self.discriminator = VideoModel(config), Discriminator(config)
        self.average = VideoModel(config.at_play())  # what is saved for playing
        self.compiled_steps = self.backend.compile_steps(self.step)
        self.compiled_rollout = compiled(self.rollout, self.average)
        rng = np.random.default_rng(config.seed)
        normal = rng.standard_normal((config.n_chains, config.latent_size), np.float32)
        g, d = (to_numpy(network.trainable_variables) for network in (self.video, self.discriminator))
        self.state = self.backend.place(dict(
            step=np.int32(0), g=g, d=d, average=g, chains=to_numpy(self.video.transition.initial(normal)),
            g_moments=[np.zeros_like(w) for w in g], d_moments=[np.zeros_like(w) for w in d]))

    def init_from_stats(self, mean, mask):
        """Draw on top of the mean frame, and only where pixels change, as data.background gives them."""
        if self.config.background:
            for model in self.video, self.average:
                model.generator.get_layer("background").init_from_stats(mean, mask)

    def rows(self):
        """The rows of a batch that this machine trains on: each of its devices has an equal share."""
        share = self.config.batch_size // self.backend.count
        return [device * share + i for device in self.backend.replicas for i in range(share)]

    def train(self, batches, learning_rates, clock=(0.0, 0.0)):
        """K steps on real clips, uint8 [K, B, T, H, W, 3], at K learning rates.

        B are the `rows` of this machine. `clock`: the seconds trained, and whether to stop, as 0 or 1. Returns
        (metrics [K, M], clock): the METRICS of each step, and the clock averaged over all machines.

        Raises:
            FloatingPointError: a loss or a gradient is not finite.
        """
        clocks = np.broadcast_to(np.float32(clock), (len(batches), len(clock)))
        self.state, rows = self.compiled_steps(self.state, batches, np.float32(learning_rates), clocks)
        metrics, clocks = np.split(rows, [len(METRICS)], axis=1)
        for step, name in np.argwhere(~np.isfinite(metrics)):
            raise FloatingPointError(f"{METRICS[name]} became {metrics[step, name]}")
        return metrics, clocks[-1].tolist()

    def step(self, state, real, learning_rate, clock):
        """One step on a device's share of real clips, uint8 [B, T, H, W, 3]: (next state, metrics and clock)."""
        return self.update(state, real, learning_rate, clock, self.random_numbers(state["step"]))

    def random_numbers(self, step):
        """The random numbers of a step, which --seed and its number determine."""
        config, random, source = self.config, keras.random, self.random_source
        shape = config.n_chains, config.seq_len, config.latent_size
        seed = ops.stack([config.seed, step * DRAWS])
        with keras.StatelessScope([(source.state, ops.cast(seed, source.state.dtype))]):
            return dict(
                normals=random.normal(shape, seed=source),
                start=random.randint((), 0, config.seq_len - config.clip_len + 1, seed=source),
                # Of real or drawn clips, in y or x.
                shifts=random.randint((2, 2, config.batch_size), 0, config.img_size // 4 + 1, seed=source),
                fresh=random.normal((shape[0], shape[2]), seed=source),
                reset=random.uniform((shape[0], 1), seed=source) < config.reset_probability,
                order=random.shuffle(ops.arange(config.n_chains), seed=source))

    def update(self, state, real, learning_rate, clock, numbers):
        """The step: gradients of generator and discriminator, both optimisers, the average, the chains' next states.

        With --accumulate and on several devices the gradients of the parts of a batch are averaged. Returns (next
        state, METRICS and clock as one vector).
        """
        backend, parts = self.backend, self.config.accumulate

        def part(i):
            """The gradients of both networks by part i of the batch, from one forward pass; metrics; last states."""
            def objectives(g, d):
                terms, outputs, end = self.loss_terms(g, d, state, real, numbers, i)
                metrics = [*(terms[name] for name in TERMS), *losses.moments(outputs, axis=(0, 1, 2))]
                return self.objectives(**terms), (ops.stack(metrics), end)

            return backend.gradients(objectives, state["g"], state["d"])

        gradients, (metrics, end) = part(0) if parts == 1 else backend.mean_of_parts(part, parts)
        metrics = ops.concatenate([metrics, clock])
        (g_gradients, d_gradients), metrics = backend.mean_of_devices((gradients, metrics))
        step = state["step"] + 1
        g, g_moments = self.optimise(state["g"], g_gradients, state["g_moments"], step, learning_rate)
        d, d_moments = self.optimise(state["d"], d_gradients, state["d_moments"], step, learning_rate)
        metrics = ops.concatenate([ops.stack([norm(d_gradients), norm(g_gradients)]), metrics])
        return dict(step=step, g=g, d=d, g_moments=g_moments, d_moments=d_moments,
                    average=self.move_average(state["average"], g, step),
                    chains=self.carry(end, numbers)), metrics

    def loss_terms(self, g, d, state, real, numbers, i):
        """The terms of the losses, by name, of part i of a device's share of the batch and the weights g and d.

        All chains are rolled out, whatever the part: their normality is that of all. Other statistics of a batch, in
        the distance penalty and batch norm, are those of the part.

        Returns (terms, outputs, end): the outputs and the last states of the rollout, as `Transition.roll` gives them.
        """
        config = self.config
        n = config.batch_size // (self.backend.count * config.accumulate)
        first = (self.backend.device() * config.accumulate + i) * n  # where the part begins in the whole batch

        def discriminate(clips):
            with with_weights(self.discriminator, d):
                return self.discriminator(clips)

        with with_weights(self.video, g):
            latents, outputs, end = self.video.transition.roll(numbers["normals"], state["chains"])
            chosen = ops.slice(latents, [first, numbers["start"], 0], [n, config.clip_len, config.latent_size])
            fake = self.draw(self.backend.shard(chosen))
        real = ops.cast(ops.slice(real, [i * n, 0, 0, 0, 0], [n, *real.shape[1:]]), "float32") / 255
        if config.augment:
            shifts = ops.slice(numbers["shifts"], [0, 0, first], [2, 2, n])
            real, fake = shift(real, shifts[0]), shift(fake, shifts[1])
        d_adv, g_adv = losses.ADVERSARIAL[config.loss](discriminate(real), discriminate(fake))
        penalised = (real[:PENALISED], ops.stop_gradient(fake[:PENALISED])) if config.gamma else ()
        return dict(
            d_adv=d_adv, g_adv=g_adv,
            normality=losses.NORMALITY[config.normality](outputs),
            distance=losses.distance_penalty(losses.thumbnails(fake), losses.thumbnails(real)),
            gradient_penalty=sum((losses.gradient_penalty(self.backend.input_gradient(discriminate, clips))
                                  for clips in penalised), ops.zeros(()))), outputs, end

    def objectives(self, d_adv, g_adv, normality, distance, gradient_penalty):
        """The weighted sums of the terms: (g_loss, d_loss).

        The weight of the gradient penalty grows with the number of pixels, as in StyleGAN2-ADA (Karras et al. 2020,
        https://arxiv.org/abs/2006.06676): the squared gradient by a clip, of the same picture in more pixels, is as
        many times smaller.
        """
        config = self.config
        gamma = config.gamma * config.img_size**2 / 64**2
        return (g_adv + config.normality_weight * normality + config.distance_weight * distance,
                d_adv + gamma * gradient_penalty)

    def draw(self, latents):
        """Clips [B, T, H, W, 3] of latents [B, T, Z], as one batch."""
        frames = self.video.generator(ops.reshape(latents, (-1, latents.shape[-1])), training=True)
        return ops.reshape(frames, (*latents.shape[:2], *frames.shape[1:]))

    def optimise(self, weights, gradients, moments, step, learning_rate):
        """A step of the optimiser: (weights, second moments).

        Adam (Kingma & Ba 2015, https://arxiv.org/abs/1412.6980) with beta_1 = 0, as what one network has learned of the
        other is soon out of date, and beta_2 = 0.99; the original's is plain gradient descent.
        """
        if self.config.arch == "original":
            return [w - learning_rate * g for w, g in zip(weights, gradients, strict=True)], moments
        moments = [0.99 * v + 0.01 * g * g for v, g in zip(moments, gradients, strict=True)]
        bias = 1 - 0.99 ** ops.cast(step, "float32")
        return [w - learning_rate * g / (ops.sqrt(v / bias) + 1e-7)
                for w, g, v in zip(weights, gradients, moments, strict=True)], moments

    def move_average(self, average, weights, step):
        """The exponential moving average of the weights: its decay is step / (step + 10), at most config.ema."""
        step = ops.cast(step, "float32")
        decay = ops.minimum(self.config.ema, step / (step + 10))
        return [w + decay * (mean - w) for mean, w in zip(average, weights, strict=True)]

    def carry(self, end, numbers):
        """The chains' states for the next step, from those (z, m) at the end of this one's rollout.

        Chains go on, so that rollouts of any length are trained (truncated backpropagation through time); some start
        anew. They are shuffled, as the first ones are those that are drawn.
        """
        fresh = self.video.transition.initial(numbers["fresh"])
        return tuple(ops.take(ops.where(numbers["reset"], new, old), numbers["order"], axis=0)
                     for new, old in zip(fresh, end, strict=True))

    def rollout(self, normals):
        """Latents [N, T, Z] of new chains of the averaged weights with the normal numbers `normals` [N, T, Z]."""
        transition = self.average.transition
        # The noise of the last step changes no latent that is returned, so these numbers are free for the first one.
        return transition.roll(normals, transition.initial(normals[:, -1]))[0]

    def samples(self, steps):
        """New chains of the averaged weights at the S `steps`: latents [chains, S, Z], and frames [N, S, H, W, 3] of
        the first of them, at most SAMPLES.
        """
        config = self.config
        normals = np.random.default_rng(config.seed).standard_normal(
            (config.n_chains, config.seq_len, config.latent_size), np.float32)
        self.set_average()
        latents = to_numpy(self.compiled_rollout(normals))[:, steps]
        frames = self.average.generator(latents[:SAMPLES].reshape(-1, config.latent_size))
        return latents, to_numpy(frames).reshape(-1, len(steps), config.img_size, config.img_size, 3)

    def set_average(self):
        """Give the model that is saved for playing the averaged weights, and statistics of them for batch norm."""
        for variable, value in zip(self.average.trainable_variables, self.backend.local(self.state["average"]),
                                   strict=True):
            variable.assign(value)
        if self.config.arch == "original":
            self.refresh_statistics()

    def refresh_statistics(self):
        """Gather batch norm's statistics for the averaged generator, on latents that its own chains run through: an
        average of the statistics in training is not that of the averaged weights.
        """
        for layer in self.average.generator.layers:
            if isinstance(layer, keras.layers.BatchNormalization):  # from the beginning, as old ones would still matter
                layer.moving_mean.assign(ops.zeros_like(layer.moving_mean))
                layer.moving_variance.assign(ops.ones_like(layer.moving_variance))
        batches, latents = REFRESH
        shape = latents, batches * self.config.seq_len, self.config.latent_size
        z = self.compiled_rollout(np.random.default_rng(self.config.seed).standard_normal(shape, np.float32))
        for batch in range(batches):
            self.average.generator(z[:, batch * self.config.seq_len], training=True)

    def save_weights(self, prefix):
        """Write the weights for playing."""
        self.set_average()
        checkpoints.save_weights(self.average, prefix)

    def resumable(self):
        """All that a run resumes from, as nested NumPy arrays."""
        fixed = [to_numpy(network.non_trainable_weights) for network in (self.video, self.average)]
        return dict(state=self.backend.local(self.state), fixed=fixed)

    def restore(self, saved):
        """Continue from what `resumable` gave."""
        self.state = self.backend.place(saved["state"])
        for network, values in zip((self.video, self.average), saved["fixed"], strict=True):
            for variable, value in zip(network.non_trainable_weights, values, strict=True):
                variable.assign(value)


def with_weights(network, weights):
    """A scope in which a network computes with the given trained weights in place of its variables', and updates
    nothing.
    """
    return keras.StatelessScope(zip(network.trainable_variables, weights, strict=True))


def shift(clips, offsets):
    """Clips [B, T, H, W, 3], each moved down and right by H / 8 less its `offsets` [2, B], 0..H / 4; mirrored outside.

    It keeps the discriminator from memorising the places of pixels (Zhao et al. 2020,
    https://arxiv.org/abs/2006.10738).
    """
    batch, time, height, width, colours = clips.shape

    def places(size, offset):
        place = ops.arange(size) + offset[:, None] - size // 8
        place = ops.where(place < 0, -1 - place, place)
        return ops.where(place < size, place, 2 * size - 1 - place)

    y, x = places(height, offsets[0])[:, None, :, None], places(width, offsets[1])[:, None, None]
    frame = ops.reshape(ops.arange(batch * time), (batch, time, 1, 1))
    return ops.take(ops.reshape(clips, (-1, colours)), (frame * height + y) * width + x, axis=0)


def norm(tensors):
    """The length of all numbers of some tensors as one vector."""
    return ops.sqrt(sum(ops.sum(ops.square(x)) for x in tensors))


def to_numpy(tree):
    """A nested structure of tensors as NumPy arrays."""
    return keras.tree.map_structure(ops.convert_to_numpy, tree)
