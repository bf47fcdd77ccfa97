"""Which devices share a run on TensorFlow: one, all GPUs of a machine, or several machines."""

import json
import os
import zlib

import tensorflow as tf

from files import UserError

# What TensorFlow may say where another machine of a run does not answer.
GONE = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.InternalError, tf.errors.DeadlineExceededError)


def make_strategy(name):
    """How --distribute `name` shares the work. To be called before TensorFlow has computed anything.

    Raises:
        UserError: TF_CONFIG is missing or makes no sense.
    """
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    if name == "multiworker":
        check_cluster(os.environ.get("TF_CONFIG", ""))
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


def check_cluster(text):
    """See that `text`, of TF_CONFIG, names the machines of a run and which of them this is.

    Raises:
        UserError: it does not.
    """
    try:
        value = json.loads(text)
        workers, kind, index = value["cluster"]["worker"], value["task"]["type"], value["task"]["index"]
        known = set(value["cluster"]) == {kind} == {"worker"} and all(":" in worker for worker in workers)
        if known and index in range(len(workers)):
            return
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError("--distribute multiworker wants the environment variable TF_CONFIG to name all machines and this "
                    'one, such as {"cluster": {"worker": ["alpha:2222", "beta:2222"]}, "task": {"type": "worker", '
                    f'"index": 0}}}}, not {text!r}')


def local_replicas(strategy):
    """The numbers of this machine's devices among all of the run."""
    numbers = strategy.experimental_distribute_values_from_function(lambda context: context.replica_id_in_sync_group)
    return [int(number) for number in strategy.experimental_local_results(numbers)]


def agree(strategy, plan):
    """See that all machines of a run are about to do the same, by a text that says what.

    Raises:
        UserError: they are not.
    """
    number = tf.constant([zlib.crc32(plan.encode())], tf.int64)
    numbers = strategy.run(lambda: tf.distribute.get_replica_context().all_gather(tf.identity(number), axis=0))
    if len(set(strategy.experimental_local_results(numbers)[0].numpy())) > 1:
        raise UserError("the machines of this run were not started alike; give each the same flags, and to resume the "
                        "same folder")


def describe(strategy):
    """What a run computes on, in words."""
    gpus = [tf.config.experimental.get_device_details(gpu).get("device_name", "a GPU")
            for gpu in tf.config.list_physical_devices("GPU")]
    here = " and ".join(gpus) or f"{os.cpu_count()} CPU cores"
    n = strategy.num_replicas_in_sync
    return here if n == 1 else f"{n} devices, here on {here}"
