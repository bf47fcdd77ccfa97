"""Hyper-parameters: saved and loaded whole, refused where they make no sense."""

import dataclasses
import json

import pytest

from config import PRESETS, Config
from files import UserError


def test_saved_and_loaded_whole(tmp_path):
    config = Config(learning_rate=1e-4, background=False, normality="pooled")
    config.save(tmp_path / "config.json")
    assert Config.load(tmp_path / "config.json") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_reads_a_file_from_before_a_hyper_parameter_was_added(tmp_path):
    older = {name: value for name, value in json.loads(values_of(width=16)).items() if name != "precision"}
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert Config.load(tmp_path / "config.json") == Config(width=16)


def test_the_original_preset_is_the_original():
    config = Config(**PRESETS["original"])
    assert (config.img_size, config.clip_len, config.every_nth, config.batch_size) == (64, 20, 6, 32)
    assert (config.arch, config.loss, config.learning_rate) == ("original", "standard", 1e-3)
    assert (config.reset_probability, config.normality, config.normality_weight) == (0.5, "pooled", 0.1)


def test_each_clip_of_a_batch_has_a_chain_of_its_own():
    assert Config(chains=8, batch_size=40).n_chains == 40
    assert Config(chains=80, batch_size=40).n_chains == 80


@pytest.mark.parametrize("values, named", [
    (dict(img_size=48), "img_size"), (dict(img_size=4), "img_size"), (dict(noise=1.5), "noise"),
    (dict(learning_rate=float("nan")), "learning_rate"), (dict(clip_len=21), "clip_len"), (dict(chains=1), "chains"),
    (dict(accumulate=7), "batch_size"), (dict(precision="double"), "precision"),
    (dict(steps=0), "steps"), (dict(loss="none"), "loss"), (dict(batch_size=2.5), "batch_size"),
    (dict(arch="original"), "gamma 0.005"), (dict(background=1), "background"), (dict(batch_size=True), "batch_size")])
def test_refuses_what_makes_no_sense(values, named):
    with pytest.raises(UserError, match=f"--{named} "):
        Config(**values)


def values_of(**changes):
    return json.dumps(dataclasses.asdict(Config()) | changes)


@pytest.mark.parametrize("text, complaint", [
    ("", "JSON"), ("[1, 2]", "no hyper-parameters"), ("{}", "no hyper-parameters"), (values_of(glow=1), "glow"),
    (values_of(noise=-1), "noise"), (values_of(width="wide"), "width"), ("\xff", "JSON")])
def test_refuses_a_file_of_another_kind(tmp_path, text, complaint):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=f"{path}.*{complaint}"):
        Config.load(path)


def test_names_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="missing"):
        Config.load(tmp_path / "config.json")
