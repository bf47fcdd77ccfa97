"""What TensorFlow and JAX do not do alike: gradients, compiled steps, several devices.

Everything else is plain Keras. `make_backend` gives the one that Keras runs on (environment variable KERAS_BACKEND).
"""

import os
import zlib

import keras
import numpy as np
from keras import ops

from files import UserError


def make_backend(distribute="none"):
    """The TensorFlow or Jax of this process, whose devices share the work as --distribute says.

    Raises:
        UserError: this backend cannot share the work in this way, or TF_CONFIG is missing or makes no sense.
    """
    return {"tensorflow": TensorFlow, "jax": Jax}[keras.backend.backend()](distribute)


def compiled(function, network):
    """`function` compiled, with the weights that `network` has when it is called.

    Args:
        function: takes and returns tensors, or nested tuples of them, and may call `network`, a built keras.Layer.

    Returns a function of the same arguments, which may be NumPy arrays too. It is compiled anew for each new shape.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    import jax

    @jax.jit
    def pure(values, *args):
        with keras.StatelessScope(zip(network.variables, values, strict=True)):
            return function(*args)

    return lambda *args: pure([variable.value for variable in network.variables], *args)


class TensorFlow:
    """Gradients by tf.GradientTape, steps by tf.function, devices by tf.distribute."""

    name, steps_at_once = "tensorflow", 1

    def __init__(self, distribute):
        import tensorflow as tf

        import devices

        self.tf, self.strategy = tf, devices.make_strategy(distribute)
        mine = self.strategy.experimental_distribute_values_from_function(lambda here: here.replica_id_in_sync_group)
        self.replicas = [int(i) for i in self.strategy.experimental_local_results(mine)]  # this machine's devices
        # count: parts of a batch that are computed apart; devices: --batch_size has to be a multiple of it.
        self.count = self.devices = self.strategy.num_replicas_in_sync
        self.gone = devices.GONE

    def gradients(self, function, *weights):
        """The gradient of each loss of `function` by its own weights, from one forward pass.

        `function` takes nested structures `weights`, as many as it returns losses: (losses, others).
        Returns (gradients, others).
        """
        with self.tf.GradientTape(persistent=True) as tape:
            tape.watch(weights)
            losses, others = function(*weights)
        return [tape.gradient(loss, part, unconnected_gradients="zero")
                for loss, part in zip(losses, weights, strict=True)], others

    def input_gradient(self, function, x):
        """The gradient of the sum of `function`(x) by x; it may be differentiated again."""
        with self.tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x)

    def mean_of_parts(self, function, n):
        """The mean of what `function`(i) returns, nested tensors, over i = 0 .. n - 1, one after another."""
        def add(total, i):
            return keras.tree.map_structure(ops.add, total, function(i))

        total = self.tf.foldl(add, self.tf.range(1, n), function(0), parallel_iterations=1)
        return keras.tree.map_structure(lambda x: x / n, total)

    def device(self):
        """The number of the device that runs this."""
        return self.tf.distribute.get_replica_context().replica_id_in_sync_group

    def mean_of_devices(self, tensors):
        """The mean over all devices of each of some nested tensors."""
        replica = self.tf.distribute.get_replica_context()
        return replica.all_reduce(self.tf.distribute.ReduceOp.MEAN, tensors) if self.count > 1 else tensors

    def shard(self, x):
        return x

    def describe(self):
        """What a run computes on, in words."""
        config = self.tf.config
        gpus = [config.experimental.get_device_details(gpu).get("device_name", "a GPU")
                for gpu in config.list_physical_devices("GPU")]
        here = " and ".join(gpus) or f"{os.cpu_count()} CPU cores"
        return here if self.count == 1 else f"{self.count} devices, here on {here}"

    def agree(self, plan):
        """See that all machines of a run are about to do the same, by a text that says what.

        Raises:
            UserError: they are not.
        """
        number = self.tf.constant([zlib.crc32(plan.encode())], self.tf.int64)
        numbers = self.strategy.run(
            lambda: self.tf.distribute.get_replica_context().all_gather(self.tf.identity(number), axis=0))
        if len(set(self.local(numbers))) > 1:
            raise UserError("the machines of this run were not started alike; give each the same flags and the same "
                            "frames, with their frames.json, and to resume the same folder")

    def place(self, tree):
        """A nested structure of arrays as each device holds it."""
        return keras.tree.map_structure(lambda x: self.strategy.experimental_distribute_values_from_function(
            lambda _: self.tf.constant(x)), tree)

    def local(self, tree):
        """The first local device's copy of what `place` made, as NumPy arrays."""
        return keras.tree.map_structure(
            lambda x: self.strategy.experimental_local_results(x)[0].numpy(), tree)

    def compile_steps(self, step):
        """`step`(state, batch, *values) -> (state, metrics), compiled, for stacks [K, ...] of batches and values.

        Returns a function of (state, batches, *stacks) to (state, metrics [K, M], in NumPy).
        """
        # XLA where TensorFlow's guide advises it, on a GPU: https://www.tensorflow.org/xla
        xla = bool(self.tf.config.list_physical_devices("GPU")) and self.count == 1
        compiled = self.tf.function(lambda *args: self.strategy.run(step, args), autograph=False,
                                    jit_compile=xla or None)

        def run(state, batches, *stacks):
            metrics = []
            for batch, *values in zip(batches, *stacks, strict=True):
                mine = dict(zip(self.replicas, np.split(batch, len(self.replicas)), strict=True))
                batch = self.strategy.experimental_distribute_values_from_function(
                    lambda context, mine=mine: self.tf.constant(mine[context.replica_id_in_sync_group]))
                state, row = compiled(state, batch, *map(self.tf.constant, values))
                metrics.append(self.local(row))
            return state, np.stack(metrics)

        return run


class Jax:
    """Gradients by jax.vjp, steps by jax.jit and jax.lax.scan, devices by keras.distribution.DataParallel."""

    name, steps_at_once = "jax", 10

    def __init__(self, distribute):
        import jax

        if distribute == "multiworker":
            raise UserError("--distribute multiworker needs TensorFlow: set KERAS_BACKEND=tensorflow, or share the "
                            "GPUs of one machine with --distribute mirrored")
        self.jax, self.mesh = jax, None
        if distribute == "mirrored":
            parallel = keras.distribution.DataParallel()
            keras.distribution.set_distribution(parallel)
            self.mesh = parallel.device_mesh.backend_mesh
        self.replicas, self.count = [0], 1  # the step is compiled for the whole batch, however many devices
        self.devices = self.mesh.size if self.mesh else 1
        self.gone = ()

    def gradients(self, function, *weights):
        losses, pullback, others = self.jax.vjp(function, *weights, has_aux=True)
        one_hot = [tuple(ops.cast(i == j, "float32") for j in range(len(losses))) for i in range(len(losses))]
        return [pullback(seed)[i] for i, seed in enumerate(one_hot)], others  # jit drops what is not used

    def input_gradient(self, function, x):
        return self.jax.grad(lambda x: ops.sum(function(x)))(x)

    def mean_of_parts(self, function, n):
        def add(i, total):
            return keras.tree.map_structure(ops.add, total, function(i))

        total = self.jax.lax.fori_loop(1, n, add, function(0))
        return keras.tree.map_structure(lambda x: x / n, total)

    def device(self):
        return 0

    def mean_of_devices(self, tensors):
        return tensors

    def describe(self):
        kinds = [device.device_kind for device in self.jax.devices()]
        return f"{len(kinds) if self.mesh else 1} x {kinds[0]}, by JAX"

    def agree(self, plan):
        """One process has nobody to disagree with."""

    def sharding(self, axis):
        """How an array is laid out: parts along `axis` on the devices, or copies on all for None."""
        spec = [] if axis is None else [None] * axis + [self.mesh.axis_names[0]]
        return self.jax.sharding.NamedSharding(self.mesh, self.jax.sharding.PartitionSpec(*spec))

    def shard(self, x):
        """x [B, ...] with a part of B on each device."""
        return self.jax.lax.with_sharding_constraint(x, self.sharding(0)) if self.mesh else x

    def place(self, tree):
        return keras.tree.map_structure(
            lambda x: self.jax.device_put(x, self.sharding(None) if self.mesh else None), tree)

    def local(self, tree):
        return keras.tree.map_structure(np.asarray, tree)

    def compile_steps(self, step):
        scan = self.jax.jit(lambda state, *stacks: self.jax.lax.scan(lambda state, x: step(state, *x), state, stacks),
                            donate_argnums=0)

        def run(state, batches, *stacks):
            if self.mesh:
                batches = self.jax.device_put(batches, self.sharding(1))
            state, metrics = scan(state, batches, *stacks)
            return state, np.asarray(metrics)

        return run
