"""Weights and training states in the folder of a run, as HDF5 files.

    weights.<step>.weights.h5   what playing needs, written by Keras; named by its prefix, weights.<step>
    state.<step>.h5             what resuming needs; the newest two are kept

Either kind reads on every backend of Keras.
"""

import os
import re
import warnings
from contextlib import suppress
from pathlib import Path

from natsort import natsorted

from files import PART, UserError, quoted, replacing

SUFFIX = dict(weights=".weights.h5", state=".h5")
SHIPPED = Path(__file__).with_name("logs")  # weights to play where nothing was trained yet
RUN = re.compile(r"\d{8}-\d{6}(-\d+)?")  # the name of a run's folder, as train.new_run makes it
STATES = 2  # kept: an older one to resume from, should the newest be damaged
# What h5py and Keras raise for files that are damaged, foreign, or of networks of other shapes.
BROKEN = OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError


def save_weights(model, prefix):
    """Write the weights of a Keras model to the file of `prefix`, whole or not at all."""
    with replacing(weights_file(prefix), SUFFIX["weights"]) as part:  # Keras insists on this ending
        model.save_weights(part)


def load_weights(model, prefix):
    """Fill a built Keras model from the file of `prefix`.

    Raises:
        UserError: the file is missing or damaged, or holds weights of other networks.
    """
    file = weights_file(prefix)
    if not os.path.isfile(file):
        raise UserError(f"there are no weights {file}; name others with --weights")
    try:
        with warnings.catch_warnings(action="ignore"):  # of what the error then says
            model.load_weights(file)
        extra = len(arrays(file)) - len(model.weights)
        if extra:  # which Keras does not mind
            raise ValueError(f"it holds {extra} arrays more")
    except BROKEN as error:
        older = [other for other in numbered(file.parent, "weights")
                 if number(other, "weights") < (number(file, "weights") or 0)]
        advice = f"take older ones with --weights {quoted(older[-1])}" if older else "name other weights"
        raise UserError(f"{file} is damaged or of an older version, or does not fit the config.json beside it "
                        f"({first_sentence(error)}); {advice}") from None


def save_state(tensors, run, step):
    """Write a training state to `run`/state.<step>.h5, whole or not at all, and remove all but the newest two.

    `tensors` is a dict, list or tuple, nested, of what np.asarray turns into numbers; each is stored under its path,
    such as "state/g/0", with all its bits.
    """
    import h5py

    with replacing(Path(run) / f"state.{step}{SUFFIX['state']}") as part, h5py.File(part, "w") as file:
        for name, array in flatten(tensors).items():
            file[name] = array
    for old in numbered(run, "state")[:-STATES]:
        old.unlink()


def load_state(path, like):
    """The tensors that `save_state` wrote to the file `path`, as NumPy arrays in the structure of `like`.

    Raises:
        UserError: the file is damaged, or its names, shapes or types of numbers are not those of `like`.
    """
    import keras

    path, expected = Path(path), flatten(like)
    try:
        stored = arrays(path)
    except BROKEN as error:
        older = [other for other in numbered(path.parent, "state") if number(other) < (number(path) or 0)]
        advice = f"remove it, and --resume goes on from {older[-1]}" if older else "start a new run"
        raise UserError(f"{path} is damaged ({first_sentence(error)}); {advice}") from None
    for name in expected | stored:
        found, wanted = described(stored.get(name)), described(expected.get(name))
        if found != wanted:
            raise UserError(f"{path} does not fit the config.json beside it, or is of an older version: {name} is "
                            f"{found}, not {wanted}; restore config.json, or start a new run")
    return keras.tree.pack_sequence_as(like, [stored[name] for name in expected])


def arrays(path):
    """The arrays in an HDF5 file, by their paths."""
    import h5py
    import numpy as np

    with h5py.File(path, "r") as file:
        items = []
        file.visititems(lambda *item: items.append(item))
        return {name: np.asarray(item[()]) for name, item in items if isinstance(item, h5py.Dataset)}


def flatten(tensors):
    """The leaves of a nested structure as NumPy arrays, by their paths, in the order of keras.tree."""
    import keras
    import numpy as np

    return {"/".join(map(str, path)): np.asarray(leaf) for path, leaf in keras.tree.flatten_with_path(tensors)}


def described(array):
    """Type and shape of an array in words; "missing" for None."""
    return "missing" if array is None else f"{array.dtype}{list(array.shape)}"


def first_sentence(error):
    """The beginning of an exception's message, on one line."""
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".")[:200] or type(error).__name__


def sweep(run):
    """Remove from the folder `run` unfinished files of a training that was killed; other modes may be writing there."""
    for part in Path(run).iterdir():
        match = PART.fullmatch(part.name)
        if match and (match[1] == "config.json" or any(number(Path(match[1]), kind) is not None for kind in SUFFIX)):
            part.unlink()


def numbered(run, kind):
    """The files of a kind, "weights" or "state", in the folder `run`, in the order of their numbers."""
    files = (file for file in Path(run).iterdir() if number(file, kind) is not None and os.path.isfile(file))
    return sorted(files, key=lambda file: (number(file, kind), file.name))


def number(file, kind="state"):
    """The number in the name of a file of a kind, 180 of weights.180.weights.h5; None where the name is another."""
    match = re.fullmatch(rf"{kind}\.(\d+){re.escape(SUFFIX[kind])}", file.name)
    return int(match[1]) if match else None


def newest(run, kind):
    """The prefix, such as `run`/weights.180, of the file of a kind with the highest number; None if there is none."""
    files = numbered(run, kind)
    return files[-1].with_name(files[-1].name.removesuffix(SUFFIX[kind])) if files else None


def find_weights(path=None, logs="logs"):
    """The prefix of the weights meant by `path`: a prefix, a file, or a run's folder, meaning its newest weights; None
    means those of the newest run in `logs` or, where there are none, in that beside this file.

    Raises:
        UserError: there are no such weights.
    """
    if path is None:
        found = newest_of_all(logs) or newest_of_all(SHIPPED)
        if not found:
            raise UserError(f"{logs} holds no trained weights; train some first with: python learn.py")
        return found
    path = Path(path)
    folder = os.path.isdir(path)
    path = path if folder else Path(str(path).removesuffix(SUFFIX["weights"]))
    found = newest(path, "weights") if folder else path if os.path.isfile(weights_file(path)) else None
    if not found:
        near = path if folder else path.parent.parent
        known = newest_of_all(near) or newest_of_all(logs) or newest_of_all(SHIPPED)
        way_on = (f"train on with --resume {quoted(path)}" if folder and numbered(path, "state") else
                  f"take {known}" if known else "train some first with: python learn.py")
        raise UserError(f"{f'{path} holds no weights' if folder else f'there are no weights {path}'}; {way_on}")
    return found


def newest_of_all(logs):
    """The prefix of the newest weights of the newest run in the folder `logs`; None if there are none.

    Of runs that keep the names they were given, by their times, the last one; of others the last by name.
    """
    trained = []
    for run in natsorted(Path(logs).glob("*/"), key=lambda run: (bool(RUN.fullmatch(run.name)), run.name)):
        with suppress(OSError):  # of a folder that is not for us to read
            trained += filter(None, [newest(run, "weights")])
    return trained[-1] if trained else None


def find_state(run):
    """The file of the newest training state in the folder `run`.

    Raises:
        UserError: there is no such folder, or no state in it.
    """
    if not os.path.isdir(run):
        raise UserError(f"there is no run {run}; give --resume the folder of one, or start anew without it")
    states = numbered(run, "state")
    if not states:
        raise UserError(f"{run} holds no training state to resume from; start anew without --resume")
    return states[-1]


def weights_file(prefix):
    """The file of weights under `prefix`."""
    return Path(f"{prefix}{SUFFIX['weights']}")
