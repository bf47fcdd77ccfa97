"""A run is safe from what surrounds it: streams, signals, disks, folders, other processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.record_writer import RecordWriter

import checkpoints
import data
import files
import learn as program
import train
from config import Config
from files import UserError
from helpers import ROOT, command, learn, run_of, start, until


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["{} >&- 2>&-", "{} >/dev/full 2>&1", "{} 2>&1 | true"])
def test_no_broken_stream_ends_a_training(footage, flags, shell):
    line = shell.format(" ".join(command(*flags, "--steps=3")))
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=footage, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert checkpoints.find_state(run_of(footage)).name == "state.3.h5"


@pytest.mark.slow
def test_a_closed_terminal_saves_unless_its_signal_is_ignored(footage, flags):
    process = start(footage, *flags, "--steps=100000")
    until(lambda: list(footage.glob("logs/*/config.json")), process)
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait() == 129
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


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("fails, step", [((os, "fsync"), 1), ((os, "fsync"), 2), ((RecordWriter, "write"), 10)])
def test_a_full_disk_is_told_and_leaves_the_last_state(footage, small, monkeypatch, fails, step):
    monkeypatch.chdir(footage)
    run, _ = train.train(Config(**small, steps=1), train.data.load("frames", 16))

    def full(*_):
        raise OSError(28, "No space left on device")

    def fill(*_):
        monkeypatch.setattr(*fails, full)

    if step == 1:  # where the run goes on
        fill()
    monkeypatch.setattr(train, "show", fill)  # once a step is done
    with pytest.raises(UserError, match=rf"step {step} could not be saved in {run} \(No space left on device\); make "
                                        rf"room there, then go on from state.1.h5 with: --resume {run}"):
        train.train(Config(**small, steps=max(step, 2)), train.data.load("frames", 16), run)
    monkeypatch.undo()
    monkeypatch.chdir(footage)
    assert not list(run.glob(".*"))
    train.train(Config(**small, steps=2), train.data.load("frames", 16), run)


@pytest.mark.parametrize("error", [
    OSError(28, "No space left on device"), OSError("Can't write data (file write failed: errno = 28, error message"),
    RuntimeError("Unable to flush file (errno = 28, buf = 0x1)")])
def test_the_reason_that_nothing_can_be_saved_is_told_in_words(tmp_path, error):
    with pytest.raises(UserError, match=r"step 3 could not be saved in .* \(No space left on device\); make room"), \
            train.saving(tmp_path, 3):
        raise error


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_a_resumed_run_wants_the_frames_it_was_trained_on(footage, flags, monkeypatch, capsys):
    monkeypatch.chdir(footage)
    assert program.main([*flags, "--steps=1"]) == 0
    run = run_of(Path())
    config = Config.load(run / "config.json")
    assert (config.every_nth, config.augment) == (2, True), "as the flag says, and as suits short footage"
    shutil.move("frames", "elsewhere")
    assert program.main([f"--resume={run}", "--steps=2"]) == 2
    told = f"frames holds none of the frames that {run} was trained on; name their folder"
    assert told in capsys.readouterr().err
    assert not Path("frames").exists(), "nothing is simulated"
    shutil.copytree("elsewhere", "frames")
    Path("frames/image0000001.png").unlink()
    assert program.main([f"--resume={run}", "--steps=2"]) == 2
    assert f"the frames in frames are not those that {run} was trained on" in capsys.readouterr().err
    assert program.main([f"--resume={run}", "--steps=2", "--data_dir=elsewhere"]) == 0
    assert json.loads((run / "config.json").read_text())["data_dir"] == "elsewhere"


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_a_run_is_resumed_by_one_process_at_a_time(footage, small, monkeypatch):
    monkeypatch.chdir(footage)
    frames = train.data.load("frames", 16)
    run, _ = train.train(Config(**small, steps=1), frames)
    before, part = (run / "config.json").read_bytes(), run / ".weights.2.weights.h5.1.part"
    part.touch()
    with files.lock(run, "training in"), pytest.raises(UserError, match=f"another process is training in {run}"):
        train.train(Config(**small, steps=2), frames, run)
    assert part.exists()
    assert (run / "config.json").read_bytes() == before, "what the other process has written"
    train.train(Config(**small, steps=2), frames, run)


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


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    with files.replacing(tmp_path / "file") as slow:
        slow.write_text("slow")
        with files.replacing(tmp_path / "file") as fast:
            fast.write_text("fast")
        assert (tmp_path / "file").read_text() == "fast"
    assert (tmp_path / "file").read_text() == "slow"


def test_weights_are_played_from_beside_the_program_where_there_are_none(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "SHIPPED", run.parent)
    assert checkpoints.find_weights() == run / "weights.10"
    (tmp_path / "logs" / "20220106-000000").mkdir(parents=True)  # of a run that was stopped early
    assert checkpoints.find_weights() == run / "weights.10"
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path / "logs")
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
                                        r".*weights\.9\.weights\.h5"):
        checkpoints.load_weights(VideoModel(Config(**small)), copy / "weights.10")


@pytest.mark.parametrize("flags", [
    "--mode=video --duration=1e7", "--mode=video --duration=1e7 --loop", "--mode=video --grid=65x1",
    "--mode=live --fps=1e6",
    "--mode=live --grid=99999x99999", "--mode=simulate --n_frames=10000000", "--steps=1000000000000", "--gamma=inf",
    "--mode=eval --steps=1000000000000", "--width=99999", "--img_size=2048",
    "--save_every=9999999999", "--accumulate=9999999", "--batch_size=9999999",
    "--seq_len=99999", "--max_minutes=1e9", "--every_nth=99999", "--learning_rate=2", "--seed=9999999999"])
def test_every_number_has_bounds(tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(tmp_path)
    assert program.main(flags.split()) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert flags.split("--")[-1 if "loop" not in flags else -2].partition("=")[0] in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [MemoryError(), np._core._exceptions._ArrayMemoryError((9,), np.dtype("u1")),
                                   RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
                                   OSError(12, "Cannot allocate memory"), "tensorflow", "opencv"])
def test_out_of_memory_is_told_with_what_to_lower(tmp_path, monkeypatch, capsys, error):
    import cv2
    import tensorflow as tf

    error = {"tensorflow": tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"),
             "opencv": cv2.error("(-4:Insufficient memory) Failed to allocate 9 bytes")}.get(str(error), error)

    def fail(*_):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, "load_sampler", fail)
    assert program.main(["--mode=video"]) == 2
    assert capsys.readouterr().err == "learn.py: out of memory; lower --grid, --scale or --duration\n"


@pytest.mark.parametrize("flags, advice", [
    ("--img_size=64 --width=1024 --batch_size=99999", "lower --batch_size"),
    ("--batch_size=90000 --seq_len=9999", "lower --batch_size, --seq_len"),
    ("--mode=video --grid=64x64", "lower --grid")])
def test_what_no_memory_holds_is_refused(footage, run, small, monkeypatch, capsys, flags, advice):
    monkeypatch.chdir(footage)
    shutil.copytree(run.parent, "logs")
    Config(**small | dict(img_size=1024, width=1024)).save(footage / "logs" / run.name / "config.json")
    if "--img_size" not in flags:
        flags = f"--img_size=16 {flags}" if "mode" not in flags else flags
    assert program.main(flags.split()) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "that takes more than" in error
    assert advice in error


def test_an_evaluation_that_no_memory_holds_is_refused(footage, run, monkeypatch, capsys):
    monkeypatch.chdir(footage)
    monkeypatch.setattr(os, "sysconf", lambda _: 2**10)
    assert program.main(["--mode=eval", f"--weights={run}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "that takes more than" in error and "smaller --img_size" in error


def test_what_is_no_fault_of_the_user_is_a_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, "load_sampler", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        program.main(["--mode=video"])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "\ufeff{}", '{"data_dir": "a\\u0000b"}',
                                  '{"data_dir": "\\ud800"}', '{"width": 1e400}', '{"width": ' + "9" * 5000 + "}"])
def test_an_odd_config_is_refused_in_a_sentence(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        Config.load(tmp_path / "config.json")


def odd_caches(whole):
    header, n = whole[:128], len(whole)
    yield from (b"", b"\x93NUMPY", whole[:-1], whole + b"x", header.replace(b"|u1", b"|i1") + whole[128:],
                header.replace(b"False", b"True ") + whole[128:], b"PK\x03\x04" + whole, b"\x80\x04." + whole,
                whole[:8] + b"\x75" + whole[9:], whole[:10] + b"(" * 100 + whole[110:], bytes(n),
                header.replace(b"(40, 16", b"(16, 40") + whole[128:])


def test_an_odd_cache_is_made_anew(footage, monkeypatch):
    monkeypatch.chdir(footage)
    cache = data.load("frames", 16)
    whole = cache.read_bytes()
    for odd in odd_caches(whole):
        cache.write_bytes(odd)
        assert data.load("frames", 16) == cache
        assert cache.read_bytes() == whole
    cache.unlink()
    os.mkfifo(cache)
    assert data.load("frames", 16).read_bytes() == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_the_imports_ends_in_silence(run, number):
    process = start(run.parents[1], "--mode=video", "--out=o.png")
    for line in process.stdout:
        if line.startswith("playing"):
            break
    process.send_signal(number)
    assert process.communicate() == ("", "")
    assert process.returncode == 128 + number


def test_make_wants_a_python_that_the_requirements_take(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").touch()
    (tmp_path / "python").write_text(f'#!/bin/sh\n{sys.executable} -c "import sys; sys.version_info = 3, 10; $2"\n')
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(["make", "train", "PYTHON=./python"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("./python is not Python 3.11, 3.12 or 3.13; name one: make train PYTHON=")
    assert not (tmp_path / ".venv").exists()
