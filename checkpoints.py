"""Weights and training states on disk: pairs of files, <prefix>.index and <prefix>.data-00000-of-00001."""

import re
import shutil
from pathlib import Path

from files import UserError, settle


def write(checkpoint, prefix):
    """Write a tf.train.Checkpoint under `prefix`; its index gets its name last, so where that is, the data is."""
    part = prefix.with_name(f".{prefix.name}.part")
    checkpoint.write(str(part))
    for suffix in (".data-00000-of-00001", ".index"):
        settle(part.with_name(part.name + suffix), prefix.with_name(prefix.name + suffix))


def read(checkpoint, prefix):
    """Fill a tf.train.Checkpoint from the pair of files under `prefix`.

    Raises:
        UserError: they are missing or broken, or of networks of another shape.
    """
    import tensorflow as tf  # late, so that a wrong path is told at once

    try:
        checkpoint.read(str(prefix)).assert_existing_objects_matched().expect_partial()
    except (tf.errors.OpError, AssertionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{prefix} is broken or belongs to another config.json ({reason}); "
                        "take another checkpoint") from None


def sweep(run):
    """Remove from the folder `run` what a run that was killed had begun to write."""
    for part in Path(run).glob(".*.part*"):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink()


def newest(run, kind):
    """The prefix in the folder `run` with the highest number, kind.<number>; None where there is none."""
    name = re.compile(rf"{kind}\.(\d+(?:\.\d+)?)\.index")
    numbered = {float(match[1]): index for index in Path(run).iterdir() if (match := name.fullmatch(index.name))}
    return numbered[max(numbered)].with_suffix("") if numbered else None


def find_weights(path=None, logs="logs"):
    """The prefix of the weights meant by `path`: itself, the newest of a run's folder or, for None, of all runs.

    One of the two files of a prefix, as a shell completes its name, means the prefix.

    Raises:
        UserError: there are no such weights.
    """
    trained = [found for run in sorted(Path(logs).glob("*/")) if (found := newest(run, "weights"))]
    if path is None:
        if not trained:
            raise UserError(f"{logs} holds no trained weights; train some first with: python learn.py")
        return trained[-1]
    path = Path(path)
    if path.is_dir():
        found = newest(path, "weights")
        if not found:
            raise UserError(f"{path} holds no weights; name another run, or train on with --resume {path}")
        return found
    path = path.with_name(re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", path.name))
    if not exists(path):
        known = f"the newest of {logs} are {trained[-1]}" if trained else "train some first with: python learn.py"
        raise UserError(f"there are no weights {path}; give --weights the folder of a run, or a prefix: {known}")
    return path


def find_state(run):
    """The prefix of the newest training state in the folder `run`.

    Raises:
        UserError: there is no such folder, or no state in it.
    """
    if not Path(run).is_dir():
        raise UserError(f"there is no run {run}; give --resume the folder of one, or start anew without it")
    state = newest(run, "state")
    if not state:
        raise UserError(f"{run} holds no training state to resume from; start anew without --resume")
    return state


def exists(prefix):
    """Whether there is a pair of files under `prefix`."""
    return prefix.with_name(f"{prefix.name}.index").is_file()
