"""Which devices share a run on TensorFlow: one, all GPUs of a machine, or several machines."""

import ipaddress
import json
import os
import re
import signal
import socket
import time
from contextlib import suppress

import tensorflow as tf

from files import UserError, handling, say

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
        meet(*check_cluster(os.environ.get("TF_CONFIG", "")))
        with handling(signal.SIG_DFL):  # where TensorFlow waits it does not let Python hear of signals
            return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


def check_cluster(text):
    """See that `text`, of TF_CONFIG, names the machines of a run and which of them this is.

    Returns (machines, index): each "host:port", and the number of this one among them.

    Raises:
        UserError: it does not.
    """
    try:
        value = json.loads(text)
        workers, kind, index = value["cluster"]["worker"], value["task"]["type"], value["task"]["index"]
        known = set(value["cluster"]) == {kind} == {"worker"} and type(index) is int and index in range(len(workers))
        if known and type(workers) is list and len(set(workers)) == len(workers) and all(map(is_address, workers)):
            return workers, index
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UserError("--distribute multiworker wants the environment variable TF_CONFIG to name all machines, each once "
                    "with a port from 1 to 65535, and this one's number, such as "
                    '{"cluster": {"worker": ["alpha:2222", "beta:2222"]}, "task": {"type": "worker", "index": 0}}, '
                    f"not {text[:300]!r}")


def is_address(text):
    """Whether `text` is a host and a port: alpha:2222, 10.0.0.7:2222 or [fe80::1]:2222."""
    match = re.fullmatch(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})", text)
    with suppress(ValueError):
        if match and match[1].startswith("["):
            ipaddress.IPv6Address(match[1][1:-1])
        return bool(match) and 1 <= int(match[2]) <= 65535
    return False


def meet(workers, index):
    """Wait until all other machines of a run answer, and tell of those that do not yet.

    A machine listens on its port until it has reached all others; from then on TensorFlow does, for those that still
    look for it.

    Raises:
        UserError: this machine's port is taken.
    """
    missing, told = [worker for i, worker in enumerate(workers) if i != index], None
    port = int(workers[index].rpartition(":")[2])
    both = dict(family=socket.AF_INET6, dualstack_ipv6=True) if socket.has_dualstack_ipv6() else {}
    try:
        listener = socket.create_server(("", port), **both)
    except OSError as error:
        raise UserError(f"port {port}, this machine's in TF_CONFIG, cannot be opened: {error.strerror}; end the "
                        "program that uses it, or name another") from None
    with listener:
        while missing:
            if missing != told:
                say(f"waiting for {', '.join(missing)}")
                told = [*missing]
            for worker in [*missing]:
                host, _, port = worker.rpartition(":")
                with suppress(OSError, UnicodeError), socket.create_connection((host.strip("[]"), int(port)), 1):
                    missing.remove(worker)
            time.sleep(0.2 if missing else 0)
