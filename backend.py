"""What Keras does not offer alike on TensorFlow and on JAX."""

import keras


def compiled(function, network):
    """`function` compiled, with the weights that `network` has when it is called.

    Args:
        function: takes and returns tensors, or nested tuples of them, and may call `network`, a built keras.Layer.

    Returns a function of the same arguments, which may be NumPy arrays too. It is compiled anew for each new shape.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    import jax

    @jax.jit
    def pure(values, *args):
        with keras.StatelessScope(zip(network.variables, values, strict=True)):
            return function(*args)

    return lambda *args: pure([variable.value for variable in network.variables], *args)
