"""The command line: quick help, flags where they belong, and errors in one sentence."""

import dataclasses
import os
import re
import resource

import pytest

from config import Config
from helpers import learn
from learn import MODES, flags, main


def test_help_answers_in_half_a_second_and_tells_every_hyper_parameter(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = learn(tmp_path, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5, "seconds of a processor"
    text = " ".join(done.stdout.split())
    for f in dataclasses.fields(Config):
        assert (f"--{f.name} " in text) == (f.metadata["flag"] or f.name == "fps"), f.name  # --fps is that of playing
        if not f.metadata["flag"]:
            continue
        if f.metadata["measured"]:
            assert re.search(rf"--{f.name}[ ,].*?\(default: measured on the footage\)", text), f.name
        elif f.type in (int, str):
            assert re.search(rf"--{f.name} .*?\(default: {f.default}[;)]", text), f.name
    for flag in "weights", "fps", "duration", "out", "video", "crop", "overwrite", "n_frames", "preset", "resume":
        assert f"--{flag}" in text


def test_help_names_every_mode_that_takes_a_flag(tmp_path):
    group = ""
    for line in re.split(r"\n(?=\S|  --)", learn(tmp_path, "--help").stdout):
        text = " ".join(line.split())
        if text.startswith("--"):
            name = re.match(r"--(\w+)", text)[1]
            told = set(re.findall(r"\w+", group + " " + text.partition("with --mode ")[2]))
            assert {mode for mode in MODES if name in flags(mode)} <= told, name
        else:
            group = "train" if text.startswith("training") else text


@pytest.mark.parametrize("flags, complaint", [
    (["--crop=1,2,3,4"], "--crop has no effect in --mode train; it is a flag of --mode prepare"),
    (["--mode=live", "--steps=3"], "--steps has no effect in --mode live; it is a flag of --mode train or --mode eval"),
    (["--mode=prepare", "--seed=1"], "--seed has no effect in --mode prepare"),
    (["--mode=video", "--out=lamp.avi"], ".png, .apng, .gif, .webp, .mp4, .webm"),
    (["--mode=dance"], "--mode"),
    (["--bogus"], "--bogus"),
    (["--resume="], "--resume takes a value, and was given an empty one"),
    (["--mode=video", "--duration=--"], "--duration takes a value, and was given --"),
    (["--epoch=3"], "--epoch"),
    (["--steps=3", "--max_minutes=1"], "--steps and --max_minutes both say when a run ends"),
    (["--img_size=48"], "--img_size 48 is not a power of two"),
    (["--img_size=big"], "--img_size"),
    (["--mode=live", "--fps=0"], "--fps: 0 is not a positive number"),
    (["--mode=eval", "--steps=0"], "--steps must be from 1 to 1000000000, not 0"),
    (["--mode=eval", "--steps=20"], "--steps 20 is too short a rollout to measure; take 3000 time steps or more"),
    (["--mode=--"], "--mode takes a value, and was given --"),
    (["--mode=prepare", "--data_dir=", "--overwrite"], "--data_dir takes a value, and was given an empty one"),
    (["--data-dir=x"], "--data-dir=x; perhaps --data_dir is meant"),
    (["--img_size=64.5"], "--img_size: 64.5 is not a whole number"),
    (["--gamma=x"], "--gamma: x is not a number"),
    (["--mode=video", "--duration=nan"], "--duration: nan is not a positive number"),
    (["--mode=video", "--seed=-1"], "--seed must be from 0"),
    (["--mode=video", "--grid=2"], "--grid: 2 is not rows x columns"),
    (["--mode=live", "--grid=0x2"], "--grid: 0x2 is not rows x columns"),
    (["--mode=video", "--scale=1.5"], "--scale: 1.5 is not a positive whole number"),
    (["--mode=prepare"], "--video FILE"),
    (["--mode=prepare", "--video=missing.mp4"], "missing.mp4"),
    (["--mode=prepare", "--video=x", "--crop=1,2,3"], "--crop: 1,2,3 is not four whole numbers"),
    (["--mode=simulate", "--n_frames=0"], "0 simulated frames"),
    (["--mode=simulate", "--img_size=100"], "--img_size 100"),
    (["--mode=video", "--weights=logs/none/weights.3"], "logs/none/weights.3"),
    (["--mode=video", "--out=lamp.gif", "--fps=60"], "--fps 60: a .gif shows at most 50"),
    (["--data_dir=typo"], "typo holds no PNG, JPEG or WebP images; name the folder that does"),
    (["--resume=logs/none"], "there is no run logs/none"),
])
def test_errors_are_one_sentence_and_exit_with_2(tmp_path, monkeypatch, capfd, flags, complaint):
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("learn.py: ")
    assert complaint in line
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_hint_names_the_backend(tmp_path):
    env = os.environ | dict(KERAS_BACKEND="jax")
    done = learn(tmp_path, "--mode=simulate", "--n_frames=2", "--img_size=8", env=env)
    assert "train on them with: KERAS_BACKEND=jax python learn.py --data_dir=frames" in done.stdout


def test_a_run_keeps_its_hyper_parameters_when_resumed(run):
    done = learn(run.parents[1], "--resume", run, "--width=8")
    assert done.returncode == 2
    assert "--width cannot change on --resume" in done.stderr


def test_explicit_flags_win_over_a_preset(tmp_path):
    done = learn(tmp_path, "--preset=original", "--clip_len=21")
    assert "--clip_len 21 is more than --seq_len 20" in done.stderr
    (tmp_path / "a file").touch()
    done = learn(tmp_path, "--preset=original", "--clip_len=21", "--seq_len=21", "--data_dir=a file")
    assert "a file is a file" in done.stderr, "the hyper-parameters were accepted"
