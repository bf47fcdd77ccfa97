"""Several machines, here processes, train one run."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import threading

import numpy as np
import pytest

import checkpoints
import data
import train
from config import Config
from devices import check_cluster, meet
from files import UserError
from helpers import PATIENCE, learn, start, until


def free_hosts(n):
    """Addresses of n ports of this machine that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]


def cluster(hosts, index=0, kind="worker"):
    """A value of TF_CONFIG."""
    return json.dumps(dict(cluster=dict(worker=hosts), task=dict(type=kind, index=index)))


def workers(folder, flags):
    """Two machines of one run, on this one, each with its flags."""
    hosts = free_hosts(2)
    return [start(folder, "--distribute=multiworker", *flags[i], env=os.environ | dict(TF_CONFIG=cluster(hosts, i)))
            for i in range(2)]


def run_of_two(folder, flags):
    """Train on two machines to the end.

    TensorFlow takes a machine that is silent for ten seconds for gone, be it only busy: then both start again.
    """
    for _ in range(3):
        processes = workers(folder, (flags, flags))
        errors = "\n".join([process.communicate()[1] for process in processes])
        codes = [process.returncode for process in processes]
        if "stopped sending heartbeats" not in errors:
            break
    assert codes == [0, 0], errors


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_two_machines_continue_a_run_as_two_parts_of_a_batch_on_one(footage, small, monkeypatch):
    monkeypatch.chdir(footage)
    config, frames = Config(**small, gamma=0.0, steps=3, accumulate=2), data.load("frames", 16)
    alone, _ = train.train(config, frames)
    shared = alone.with_name("shared")
    shutil.copytree(alone, shared)
    train.train(dataclasses.replace(config, steps=6), frames, alone)
    run_of_two(footage, ["--resume", shared, "--steps=6", "--accumulate=1"])
    assert Config.load(shared / "config.json").distribute == "multiworker"
    theirs, ours = (checkpoints.arrays(run / "weights.6.weights.h5") for run in (alone, shared))
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_a_machine_that_dies_ends_the_run_which_goes_on_from_its_checkpoint(footage, flags, monkeypatch):
    flags = [*flags, "--steps=100000", "--save_every=2"]
    chief, other = workers(footage, (flags, flags))
    until(lambda: list(footage.glob("logs/*/state.*.h5")), chief)
    other.send_signal(signal.SIGKILL)
    _, errors = chief.communicate()
    assert chief.returncode == 2
    assert "another machine of this run is gone" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    [run] = (footage / "logs").iterdir()
    step = int(checkpoints.find_state(run).name.split(".")[1])
    monkeypatch.chdir(footage)
    train.train(dataclasses.replace(Config.load(run / "config.json"), distribute="none", steps=step + 2),
                data.load("frames", 16), run)
    assert checkpoints.find_state(run).name == f"state.{step + 2}.h5"


@pytest.mark.slow
def test_machines_that_were_started_differently_say_so(footage, flags):
    for process in workers(footage, ([*flags, "--normality_weight=1"], [*flags, "--normality_weight=2"])):
        _, errors = process.communicate()
        assert process.returncode == 2
        assert "not started alike" in errors.splitlines()[-1]


@pytest.mark.parametrize("value", [
    "", "{}", "[]", "[" * 100_000, "1", '{"cluster": 1, "task": 1}', cluster(["a:1"], kind="ps"), cluster(["a:1"], 1),
    cluster(["a:1"], -1), cluster(["a:1", "b:1"], True), cluster(["a:1", "b:1"], "0"), cluster([]), cluster("a:1"),
    *(cluster([host]) for host in ("a", "a:", ":1", "a:0", "a:65536", "a:-1", "a:1e3", "a:b", "a b:1", "http://a:1",
                                   "a:1\n", "fe80::1:2222", "[a]:1", 1, None, ["a:1"])),
    cluster(["a:1", "a:1"]), cluster({"a:1": 0})])
def test_says_what_tf_config_has_to_hold(value):
    with pytest.raises(UserError, match="TF_CONFIG"):
        check_cluster(value)


def test_a_wrong_tf_config_is_told_in_a_sentence(footage, flags):
    done = learn(footage, "--distribute=multiworker", *flags, env=os.environ | dict(TF_CONFIG="{}"))
    assert done.returncode == 2
    *bars, line = done.stderr.splitlines()
    assert all(bar.startswith("reading frames:") for bar in filter(None, bars)), "nothing of TensorFlow's"
    assert line.startswith("learn.py: --distribute multiworker wants the environment variable TF_CONFIG")


def test_knows_machines_by_name_and_by_number():
    hosts = ["alpha-1.local:2222", "10.0.0.7:65535", "[fe80::1]:1"]
    assert check_cluster(cluster(hosts, 2)) == (hosts, 2)


def test_machines_meet_in_any_order_and_say_whom_they_wait_for(capsys):
    hosts, shown = free_hosts(3), []
    threads = [threading.Thread(target=meet, args=(hosts, i), daemon=True) for i in range(3)]

    def told(i):
        shown.append(capsys.readouterr().out)
        others = ", ".join(host for host in hosts if host != hosts[i])
        return f"waiting for {others}" in "".join(shown)  # then it listens on its own port

    for i, thread in enumerate(threads):
        thread.start()
        until(lambda i=i: told(i))
    # A machine that has met all others leaves its port to TensorFlow, which listens there on, here to the test.
    with contextlib.ExitStack() as stack:
        left = [*hosts]

        def met():
            for host in [*left]:
                with contextlib.suppress(OSError):
                    stack.enter_context(socket.create_server(("", int(host[10:]))))
                    left.remove(host)
            return not any(thread.is_alive() for thread in threads)

        until(met)


def test_a_port_in_use_is_told():
    with socket.create_server(("", 0)) as taken, pytest.raises(UserError, match="cannot be opened: Address already"):
        meet([f"127.0.0.1:{taken.getsockname()[1]}", "b:1"], 0)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_machine_that_waits_for_others_ends_at_a_signal(footage, flags, number):
    text = cluster(free_hosts(2))
    process = start(footage, "--distribute=multiworker", *flags, env=os.environ | dict(TF_CONFIG=text))
    for line in process.stdout:
        if line.startswith("waiting for 127.0.0.1:"):
            break
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert not (footage / "logs").exists()
