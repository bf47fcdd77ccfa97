"""Several machines, here processes, train one run."""

import contextlib
import json
import os
import shutil
import signal
import socket

import numpy as np
import pytest

import checkpoints
from devices import check_cluster
from files import UserError
from helpers import learn, start, until

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def workers(folder, flags):
    """Two machines of one run, on this one, each with its flags."""
    with socket.socket() as one, socket.socket() as two:
        for s in one, two:
            s.bind(("127.0.0.1", 0))
        hosts = [f"127.0.0.1:{s.getsockname()[1]}" for s in (one, two)]
    processes = []
    for index in range(2):
        cluster = json.dumps(dict(cluster=dict(worker=hosts), task=dict(type="worker", index=index)))
        processes.append(start(folder, "--distribute=multiworker", *flags[index],
                               env=os.environ | dict(TF_CONFIG=cluster)))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def run_of_two(folder, flags):
    with workers(folder, (flags, flags)) as processes:
        for process in processes:
            _, errors = process.communicate()
            assert process.returncode == 0, errors


def test_runs_of_one_and_of_two_machines_continue_each_other(footage, flags):
    """Two machines are two parts of a batch on one."""
    logs = footage / "logs"
    assert learn(footage, *flags, "--steps=3", "--accumulate=2").returncode == 0
    [one_one] = logs.iterdir()
    one_two = logs / "one_two"
    shutil.copytree(one_one, one_two)
    run_of_two(footage, [*flags, "--steps=3"])
    [two_one] = set(logs.iterdir()) - {one_one, one_two}  # of two machines only the first writes
    assert learn(footage, "--resume", one_one, "--steps=6").returncode == 0
    assert learn(footage, "--resume", two_one, "--steps=6", "--distribute=none", "--accumulate=2").returncode == 0
    run_of_two(footage, ["--resume", one_two, "--steps=6", "--accumulate=1"])
    assert json.loads((one_two / "config.json").read_text())["distribute"] == "multiworker"
    reference = checkpoints.arrays(one_one / "weights.6.weights.h5")
    for run in one_two, two_one:
        found = checkpoints.arrays(run / "weights.6.weights.h5")
        assert set(found) == set(reference)
        for name in found:
            np.testing.assert_allclose(found[name], reference[name], rtol=2e-5, atol=2e-5, err_msg=name)


def test_a_machine_that_dies_ends_the_run_which_goes_on_from_its_checkpoint(footage, flags):
    flags = [*flags, "--steps=100000", "--save_every=2"]
    with workers(footage, (flags, flags)) as (chief, other):
        until(lambda: list(footage.glob("logs/*/state.*.h5")), chief)
        other.send_signal(signal.SIGKILL)
        _, errors = chief.communicate()
    assert chief.returncode == 2
    assert "another machine of this run is gone" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    [run] = (footage / "logs").iterdir()
    step = int(checkpoints.find_state(run).name.split(".")[1])
    done = learn(footage, f"--resume={run.relative_to(footage)}", "--distribute=none", f"--steps={step + 2}")
    assert done.returncode == 0, done.stderr


def test_machines_that_were_started_differently_say_so(footage, flags):
    with workers(footage, ([*flags, "--noise=0.1"], [*flags, "--noise=0.2"])) as processes:
        for process in processes:
            _, errors = process.communicate()
            assert process.returncode == 2
            assert "not started alike" in errors.splitlines()[-1]


@pytest.mark.parametrize("value", [
    "", "{}", "[]", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
    '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}'])
def test_says_what_tf_config_has_to_hold(value):
    with pytest.raises(UserError, match="TF_CONFIG"):
        check_cluster(value)
