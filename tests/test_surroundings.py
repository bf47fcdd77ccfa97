"""A run is safe from what surrounds it: streams, signals, disks, folders, other processes."""

import json
import os
import shutil
import signal
import subprocess

import pytest

import checkpoints
import files
import learn as program
import train
from config import Config
from files import UserError
from helpers import command, learn, start, until


def run_of(folder):
    [run] = (folder / "logs").iterdir()
    return run


@pytest.mark.parametrize("shell", ["{} | head -1", "{} >&- 2>&-", "{} >/dev/full 2>&1", "{} 2>&1 | true"])
def test_no_broken_stream_ends_a_training(footage, flags, shell):
    line = shell.format(" ".join(command(*flags, "--steps=3")))
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=footage, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert checkpoints.find_state(run_of(footage)).name == "state.3.h5"


def test_ctrl_c_saves_though_the_reader_of_the_output_died_first(footage, flags):
    process = start(footage, *flags, "--steps=100000")
    until(lambda: list(footage.glob("logs/*/config.json")), process)
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert checkpoints.find_state(run_of(footage))


def test_a_hangup_saves_unless_it_is_ignored(footage, flags):
    process = start(footage, *flags, "--steps=100000")
    until(lambda: list(footage.glob("logs/*/config.json")), process)
    process.send_signal(signal.SIGHUP)
    process.communicate()
    assert process.returncode == 129
    run = run_of(footage)
    before = checkpoints.find_state(run)
    process = start(footage, "--resume", run, "--save_every=1", preexec_fn=lambda: signal.signal(signal.SIGHUP,
                                                                                                 signal.SIG_IGN))
    until(lambda: checkpoints.find_state(run) != before, process)
    process.send_signal(signal.SIGHUP)
    newer = checkpoints.find_state(run)
    until(lambda: checkpoints.find_state(run) != newer, process)
    process.terminate()
    process.communicate()
    assert process.returncode == 143


def test_a_full_disk_is_told_and_leaves_the_last_state(footage, small, monkeypatch):
    monkeypatch.chdir(footage)
    run, _ = train.train(Config(**small, steps=1), train.data.load("frames", 16))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=rf"step 2 could not be saved in {run} \(No space left on device\); make room "
                                        rf"there, then go on from state.1.h5 with: --resume {run}"):
        train.train(Config(**small, steps=2), train.data.load("frames", 16), run)
    monkeypatch.undo()
    monkeypatch.chdir(footage)
    assert not list(run.glob(".*"))
    train.train(Config(**small, steps=2), train.data.load("frames", 16), run)


def test_a_resumed_run_wants_the_frames_it_was_trained_on(footage, flags):
    assert learn(footage, *flags, "--steps=1").returncode == 0
    run = run_of(footage).relative_to(footage)
    shutil.move(footage / "frames", footage / "elsewhere")
    done = learn(footage, "--resume", run, "--steps=2")
    assert done.returncode == 2
    assert f"frames holds none of the frames that {run} was trained on; name their folder" in done.stderr
    assert not (footage / "frames").exists(), "nothing is simulated"
    shutil.copytree(footage / "elsewhere", footage / "frames")
    (footage / "frames" / "image0000001.png").unlink()
    done = learn(footage, "--resume", run, "--steps=2")
    assert done.returncode == 2
    assert f"the frames in frames are not those that {run} was trained on" in done.stderr
    assert learn(footage, "--resume", run, "--steps=2", "--data_dir=elsewhere").returncode == 0
    assert json.loads((footage / run / "config.json").read_text())["data_dir"] == "elsewhere"


def test_a_run_is_resumed_by_one_process_at_a_time(footage, small, monkeypatch):
    monkeypatch.chdir(footage)
    frames = train.data.load("frames", 16)
    run, _ = train.train(Config(**small, steps=1), frames)
    with files.lock(run, "training in"), pytest.raises(UserError, match=f"another process is training in {run}"):
        train.train(Config(**small, steps=2), frames, run)
    train.train(Config(**small, steps=2), frames, run)


def test_an_empty_name_of_a_run_is_no_run(footage):
    done = learn(footage, "--resume=")
    assert done.returncode == 2
    assert "--resume needs the folder of a run" in done.stderr


@pytest.mark.parametrize("kind", ["file", "dangling", "loop"])
def test_logs_that_cannot_be_a_folder_are_told_before_the_work(footage, flags, kind):
    logs = footage / "logs"
    if kind == "file":
        logs.touch()
    else:
        logs.symlink_to("nowhere" if kind == "dangling" else "logs")
    done = learn(footage, *flags, "--steps=1")
    assert done.returncode == 2
    assert "logs cannot be written to" in done.stderr.splitlines()[-1]
    assert not list(footage.glob("*.npy")), "before frames are read"


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "-x", "a b'c", "\udce9", "[x]*", "\u202egnp.exe"])
def test_hints_are_one_line_that_a_shell_takes(name):
    hint = files.quoted(name)
    assert hint.isprintable()
    echoed = subprocess.run(["bash", "-c", f"printf %s {hint}"], capture_output=True, check=True).stdout
    assert os.path.normpath(echoed) == os.fsencode(name)


@pytest.mark.parametrize("flags", [["--data_dir=a\nb\x1b[31m"], ["--mode=video", "--weights=a\nb"], ["--a\nb"],
                                   ["--mode=prepare", "--video=a\nb"], ["--resume=a\nb"], ["--mode=a\nb"],
                                   ["--mode=video", f"--weights={'n' * 300}"], [f"--resume={'n' * 300}"],
                                   [f"--data_dir={'n' * 300}"], ["--mode=prepare", f"--video={'n' * 300}"]])
def test_one_error_is_one_line(tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(tmp_path)
    assert program.main(flags) == 2
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert line.startswith("learn.py: ")
    assert line.isprintable()
    assert not captured.out


@pytest.mark.parametrize("name", ["n" * 255, "\u00e9" * 127 + "n", "\U0001f30b" * 63 + "abc", "short"])
def test_a_file_of_the_longest_name_is_written_whole(tmp_path, name):
    left = tmp_path / f".{name[-40:]}.{2**22 + 1}.part"  # of a process that no longer is: numbers end at 2**22
    left.touch()
    os.utime(left, (0, 0))
    with files.replacing(tmp_path / name) as part:
        part.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_weights_are_played_from_beside_the_program_where_there_are_no_logs(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "SHIPPED", run.parent)
    assert checkpoints.find_weights() == run / "weights.10"
    (tmp_path / "logs").mkdir()
    with pytest.raises(UserError, match="logs holds no trained weights"):
        checkpoints.find_weights()


def test_odd_folders_among_the_runs_are_passed_over(run, tmp_path):
    logs = tmp_path / "logs"
    shutil.copytree(run, logs / "1")
    (logs / "2" / "weights.7.weights.h5").mkdir(parents=True)
    (logs / "3").symlink_to("nowhere")
    (logs / "4").symlink_to("4")
    (logs / "5").touch()
    (logs / "6").mkdir()
    (logs / "6" / f"weights.{'9' * 200}.weights.h5").symlink_to("nowhere")
    assert checkpoints.find_weights(None, logs) == logs / "1" / "weights.10"


def test_damaged_weights_are_told_with_the_older_ones(run, small, tmp_path):
    from models import VideoModel

    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "weights.10.weights.h5").write_bytes(b"")
    with pytest.raises(UserError, match=r"weights\.10\.weights\.h5 is damaged .*; take older ones with --weights "
                                        r".*weights\.9\.5\.weights\.h5"):
        checkpoints.load_weights(VideoModel(Config(**small)), copy / "weights.10")
