"""Weights and states: found, read bit for bit, kept when older, and told in a sentence when they are damaged."""

import os

import h5py
import keras
import numpy as np
import pytest

import checkpoints
from config import Config
from files import UserError
from models import VideoModel


def test_weights_are_found_by_prefix_by_file_by_run_and_by_default(run, tmp_path):
    logs, newest = run.parent, run / "weights.10"
    assert checkpoints.find_weights(newest, logs) == newest
    assert checkpoints.find_weights(run, logs) == newest, "10 comes after 9"
    assert checkpoints.find_weights(None, logs) == newest
    assert checkpoints.find_weights(run / "weights.9") == run / "weights.9"
    assert checkpoints.find_weights(run / "weights.9.weights.h5") == run / "weights.9"
    with pytest.raises(UserError, match=str(newest)):
        checkpoints.find_weights(tmp_path / "logs/none/weights.3", logs)
    for missing in run / "weights.11", run / "weights.1", tmp_path:
        with pytest.raises(UserError, match=str(missing)):
            checkpoints.find_weights(missing, logs)
    for nameless in ".weights.h5", tmp_path / ".weights.h5":
        with pytest.raises(UserError, match="there are no weights"):
            checkpoints.find_weights(nameless, logs)


def test_the_newest_run_with_weights_is_the_default(tmp_path):
    for name in "20220104-213105", "20220105-000000", "20220106-000000":
        (tmp_path / name).mkdir()
    (tmp_path / "20220105-000000" / "weights.3.weights.h5").touch()
    (tmp_path / "20220105-000000" / "weights.best.weights.h5").touch()  # a copy that a user made
    (tmp_path / "best").mkdir()  # as is this one
    (tmp_path / "best" / "weights.9.weights.h5").touch()
    assert checkpoints.find_weights(None, tmp_path) == tmp_path / "20220105-000000" / "weights.3"


def test_the_tenth_run_of_one_second_comes_after_the_second(tmp_path):
    for suffix in "", "-2", "-10":
        (tmp_path / f"20220104-213105{suffix}").mkdir()
        (tmp_path / f"20220104-213105{suffix}" / "weights.3.weights.h5").touch()
    assert checkpoints.find_weights(None, tmp_path).parent.name == "20220104-213105-10"


def test_a_folder_without_weights_is_resumed_only_where_it_can_be(run, tmp_path):
    with pytest.raises(UserError, match=f"holds no weights; take {run / 'weights.10'}$"):
        checkpoints.find_weights(tmp_path, run.parent)
    with pytest.raises(UserError, match=f"holds no weights; take {run / 'weights.10'}$"):
        checkpoints.find_weights(run.parent, tmp_path)
    (tmp_path / "state.1.h5").touch()
    with pytest.raises(UserError, match=r"holds no weights; .*--resume"):
        checkpoints.find_weights(tmp_path, tmp_path)


def test_weights_are_what_was_saved(small, tmp_path):
    one, other = (VideoModel(Config(**small)) for _ in range(2))
    left = tmp_path / f".weights.1.weights.h5.{2**22 + 1}.part.weights.h5"  # of a process that no longer is
    left.touch()
    os.utime(left, (0, 0))
    checkpoints.save_weights(one, tmp_path / "weights.1")
    checkpoints.load_weights(other, tmp_path / "weights.1")
    for ours, theirs in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.1.weights.h5"]


def foreign(path):
    with h5py.File(path, "w") as file:
        file["numbers"] = np.arange(3)


@pytest.mark.parametrize("harm", [
    lambda path: path.unlink(),
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes()[:100]),
    lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.write_bytes(bytes(100_000)),
    foreign,
], ids=["missing", "empty", "cut early", "cut late", "zeros", "foreign"])
def test_damaged_weights_are_told_in_a_sentence(copy, small, harm):
    harm(checkpoints.weights_file(copy))
    with pytest.raises(UserError, match=r"weights\.10\.weights\.h5") as error:
        checkpoints.load_weights(VideoModel(Config(**small)), copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("other", [dict(latent_size=10), dict(rnn_units=9), dict(img_size=32)])
def test_weights_of_other_networks_are_refused(copy, small, other):
    with pytest.raises(UserError, match="does not fit the config"):
        checkpoints.load_weights(VideoModel(Config(**(small | other))), copy)


@pytest.fixture
def state():
    """A training state of many kinds: names out of order, numbers of any type, of no dimensions, and Keras's own."""
    variable = keras.Variable(np.float32([0.1, np.nan, -0.0]))
    return dict(step=np.int64(7), past=np.random.default_rng(0).standard_normal((2, 3, 4)).astype("float32"),
                optimizer=[variable, (np.uint32([1, 2**32 - 1]), 1e-300)], done=np.array(True))


def test_a_state_is_the_same_bit_for_bit(state, tmp_path):
    checkpoints.save_state(state, tmp_path, 7)
    read = checkpoints.load_state(checkpoints.find_state(tmp_path), state)
    assert isinstance(read["optimizer"][1], tuple)
    for name in checkpoints.flatten(state):
        before, after = (checkpoints.flatten(tree)[name] for tree in (state, read))
        assert (before.dtype, before.shape, before.tobytes()) == (after.dtype, after.shape, after.tobytes())


def test_the_newest_two_states_are_kept(state, tmp_path):
    (tmp_path / "state.best.h5").touch()  # a copy that a user made
    for step in 8, 9, 10, 11:
        checkpoints.save_state(state, tmp_path, step)
    assert {file.name for file in tmp_path.iterdir()} == {"state.10.h5", "state.11.h5", "state.best.h5"}
    assert checkpoints.find_state(tmp_path) == tmp_path / "state.11.h5"


def test_a_state_that_fails_to_be_written_leaves_what_there_was(state, tmp_path):
    for step in 1, 2:
        checkpoints.save_state(state, tmp_path, step)
    with pytest.raises(TypeError):
        checkpoints.save_state(state | dict(wrong=object()), tmp_path, 3)
    assert {file.name for file in tmp_path.iterdir()} == {"state.1.h5", "state.2.h5"}


def test_a_damaged_state_is_told_with_the_older_one(state, tmp_path):
    for step in 9, 10:
        checkpoints.save_state(state, tmp_path, step)
    newest = checkpoints.find_state(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"state\.10\.h5 is damaged .*; remove it, .* goes on from .*state\.9\.h5"):
        checkpoints.load_state(newest, state)
    newest.unlink()
    older = checkpoints.find_state(tmp_path)
    older.write_bytes(b"")
    with pytest.raises(UserError, match="start a new run"):
        checkpoints.load_state(older, state)


@pytest.mark.parametrize("change", [
    dict(past=np.zeros((2, 3, 5), "float32")), dict(past=np.zeros((2, 3, 4))), dict(more=1.0),
    dict(optimizer=[np.zeros(3, "float32")]),
], ids=["shape", "type", "one more", "some fewer"])
def test_a_state_of_another_config_is_refused(state, tmp_path, change):
    checkpoints.save_state(state, tmp_path, 1)
    with pytest.raises(UserError, match=r"does not fit the config.json beside it, .*: (past|more|optimizer)"):
        checkpoints.load_state(tmp_path / "state.1.h5", state | change)


def test_unfinished_files_are_swept_away(tmp_path):
    kept = {"state.1.h5", ".out.mp4.77.part", ".eval.json.77.part", ".weights.1.clips.png.77.part"}  # of other modes
    for name in ".state.3.h5.77.part", ".weights.1.weights.h5.77.part.weights.h5", ".config.json.77.part", *kept:
        (tmp_path / name).touch()
    checkpoints.sweep(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == kept
