"""The figures: each planted fault is flagged by the figure meant for it, and real frames by none."""

import json
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tensorflow as tf

import data
import evaluate
import learn as program
import metrics
from evaluate import FIGURES, VIDEOS, Reference, Rollout, figure, is_good, latent_figures
from files import UserError
from helpers import PATIENCE, ROOT, discs, hear_signals, learn, write_frames

pytestmark = pytest.mark.slow
EVERY_NTH = 6


@pytest.fixture(scope="module")
def halves():
    """Every other 20 seconds of footage, and those between, three minutes each: uint8 [2, 6000, 32, 32, 3]."""
    return discs(12_000, 32).reshape(10, 2, 600, 32, 32, 3).swapaxes(0, 1).reshape(2, 6000, 32, 32, 3)


@pytest.fixture(scope="module")
def footage(halves):
    """What samples are compared with: fewer clips and patches than by default, to save time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "PATCHES", 32)
        patch.setattr(metrics, "FLOW_CLIPS", 256)
        patch.setattr(evaluate, "CLIPS", 768)
        yield Reference(halves[0], EVERY_NTH, 0, 0)


@pytest.fixture(scope="module")
def clips(halves):
    """What a perfect network would draw: [stretches, n, frames, H, W, 3], the frames a step apart."""
    starts = np.arange(0, 120 - 4 * EVERY_NTH, 6)
    return halves[1].reshape(50, 120, 32, 32, 3)[:, starts[:, None] + np.arange(5) * EVERY_NTH]


@pytest.fixture(scope="module")
def fast():
    """Twenty seconds of footage that moves fast, and what is compared with every other frame of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "PATCHES", 128)
        frames = discs(4800, 32)[::8]
        return frames, Reference(frames[::2], 1, 10, 0)


@pytest.fixture
def ten_seconds(fast, monkeypatch):
    """Ten seconds of footage that moves fast, and clips of the frames between its frames: what was not trained on."""
    monkeypatch.setattr(metrics, "PATCHES", 128)
    frames, reference = fast
    return reference, frames[1 + np.arange(0, 560, 2).reshape(14, 20)[..., None] + 2 * np.arange(5)]


def flagged(footage, sample):
    """The names of the figures that call a sample bad."""
    [figures] = footage.compare([np.ascontiguousarray(sample)])
    return {name for name, value in figures.items() if not is_good(figure(name, [value], 1))}


def test_footage_not_trained_on_is_not_flagged(footage, clips):
    assert not flagged(footage, clips[:, :, :3])


def blurred(clips):
    return np.stack([cv2.GaussianBlur(frame, (5, 5), 1) for frame in clips[:, :, :3].reshape(-1, 32, 32, 3)]) \
        .reshape(clips[:, :, :3].shape)


def frozen(clips):
    return clips[:, :, [0, 0, 0]]


def shuffled(clips):
    orders = [np.random.default_rng(i).permutation(clips.shape[1]) for i in range(2)]
    return np.stack([clips[:, :, 0], *(clips[:, order, 0] for order in orders)], axis=2)


def at_double_speed(clips):
    return clips[:, :, ::2]


def alike(clips):
    return np.repeat(clips[:1, :, :3], len(clips), axis=0)


def discoloured(clips):
    return np.clip(clips[:, :, :3] * [0.95, 1, 1.2], 0, 255).astype(np.uint8)


FAULTS = [
    (blurred, {"swd_frame"}), (frozen, {"speed", "swd_difference", "flow"}),
    (shuffled, {"speed", "jitter", "swd_difference", "flow"}), (at_double_speed, {"speed", "flow"}),
    (alike, {"diversity"}), (discoloured, {"colour"}),
]


@pytest.mark.parametrize(("fault", "names"), FAULTS)
def test_planted_faults_are_flagged(footage, clips, fault, names):
    assert names <= flagged(footage, fault(clips))


@pytest.mark.parametrize(("fault", "names"), FAULTS)
def test_planted_faults_are_flagged_in_ten_seconds(ten_seconds, fault, names):
    reference, held_out = ten_seconds
    assert names <= flagged(reference, fault(held_out))


def test_held_out_frames_of_ten_seconds_are_not_flagged(ten_seconds):
    reference, held_out = ten_seconds
    assert flagged(reference, held_out[:, :, :3]) <= {"nearest_neighbour_ratio"}  # a sixtieth of a second away


def test_steps_of_uneven_length_are_flagged(footage, halves):
    starts = np.arange(0, 120 - 2 * EVERY_NTH, 7)
    uneven = halves[1].reshape(50, 120, 32, 32, 3)[:, starts[:, None] + np.array([[0, 5, 12], [0, 7, 12]] * 8)]
    assert flagged(footage, uneven) == {"jitter"}


def test_frames_of_short_footage_in_any_order_are_less_diverse_than_those_far_apart_in_time(monkeypatch):
    monkeypatch.setattr(evaluate, "CLIPS", 768)  # as in `footage`, whether or not another test has set that up
    monkeypatch.setattr(metrics, "distances", lambda *_: [{}])  # of which frames as plain as these have none

    def mixed(light):
        frames = np.broadcast_to(light.astype(np.uint8)[:, None, None, None], (len(light), 16, 16, 3))
        return Reference(frames, EVERY_NTH, 0, 0).best_diversity()

    # Any two places of a ramp of length 1 are 1/3 apart; two that are s of it apart, or 1 - s, are 2 s (1 - s).
    far = np.linspace(1 / 4, 3 / 4, 1000)
    assert mixed(np.linspace(0, 255, 3000)) == pytest.approx(1 / 3 / np.mean(2 * far * (1 - far)), abs=0.03)
    assert mixed(np.random.default_rng(1).integers(256, size=3000)) == pytest.approx(1, abs=0.03)


def test_copies_of_the_footage_are_flagged(footage, halves):
    whole = halves[0].reshape(10, 600, 32, 32, 3)[:, :594]  # no clip reaches over a cut
    copies = np.stack([whole[:, start:start + 13:6] for start in range(0, 580, 5)], axis=1)
    assert flagged(footage, copies) == {"nearest_neighbour_ratio"}


class Planted:
    """A transition whose latent goes wrong in a way that is known."""

    state_size = (64, 64)

    def __init__(self, step):
        self.step = step

    def initial(self, normal):
        return normal, tf.zeros_like(normal)

    def roll(self, normals, state):
        def move(state, normal):
            z, age = state
            return self.step(z, age, normal), age + 1

        z, age = tf.scan(move, tf.transpose(normals, (1, 0, 2)), state)
        latents = tf.concat([state[0][:, None], tf.transpose(z, (1, 0, 2))[:, :-1]], axis=1)
        return latents, latents, (z[-1], age[-1])


def healthy(z, _age, normal):
    return 0.95 * z + (1 - 0.95**2) ** 0.5 * normal


def standing_still(z, _age, _normal):
    return z


def looping(_z, age, _normal):
    """A loop of 500 frames, a chain apart from the others in phase."""
    own = tf.range(VIDEOS, dtype=tf.float32)[:, None]
    turn = 2 * np.pi * (age + own) / (500 / EVERY_NTH)
    return 2**0.5 * tf.sin(turn * tf.range(1.0, 65.0) + tf.range(64.0))


def falling_into_step(z, age, normal):
    """Chains that forget where they began, and are stirred alike."""
    return healthy(z, age, tf.broadcast_to(normal[:1], normal.shape))


def drifting(z, age, normal):
    return healthy(z, age, normal) + tf.minimum(age / 1e6, 0.05)


def narrowing(z, age, normal):
    """One coordinate has half the range of the others."""
    return healthy(z, age, normal * tf.constant([0.5] + 63 * [1.0]))


@pytest.mark.parametrize(("step", "names"), [
    (healthy, set()), (standing_still, {"autocorrelation_1000"}),
    (looping, {"autocorrelation_1000"}),
    (falling_into_step, {"latent_distance_mean", "latent_distance_least"}), (drifting, {"latent_mean"}),
    (narrowing, {"latent_deviation"}),
])
def test_planted_latents_are_flagged(step, names, monkeypatch):
    monkeypatch.setattr(evaluate, "PER_SAMPLE", 1)
    found = {figure["name"] for figure in latent_figures(Rollout(Planted(step), 0, 20)) if not is_good(figure)}
    assert found >= names if names else not found


def test_samples_are_of_videos_and_times_of_their_own():
    rollout = Rollout(Planted(healthy), 0, 24)
    for samples in rollout.early, rollout.late:
        assert [sample.shape for sample in samples] == 3 * [(4 * VIDEOS, 1000, 64)]
        assert len(np.unique(np.concatenate(samples)[:, 0], axis=0)) == 12 * VIDEOS
    last = list(rollout.latents([0, 0, 3], 24))[-12:]
    begun = [sample[i, 0, 0] for sample in rollout.late for i in range(4)]  # the first video's in a row
    assert sorted(begun) == sorted(latents[0, 0, 0] for latents in last)


@pytest.mark.parametrize("stretches", [3, 14])
def test_what_is_late_is_of_the_second_half(stretches):
    rollout = Rollout(Planted(lambda _, age, normal: 0 * normal + age + 1), 0, stretches)
    assert [sample[..., 0].min() >= stretches * 500 for sample in rollout.late] == 3 * [True]


def test_the_last_row_of_clips_is_the_end_of_the_rollout(tmp_path):
    drawn = []
    evaluate.plot_clips(tmp_path / "clips.png", np.zeros((400, 8, 8, 3), np.uint8), EVERY_NTH,
                        Rollout(Planted(lambda _, age, normal: 0 * normal + age + 1), 0, 4),
                        lambda latents: drawn.append(latents[:, 0]) or np.zeros((len(latents), 8, 8, 3), np.uint8))
    ends = evaluate.BURN_IN_STEPS + np.arange(4000)[-24::2]
    np.testing.assert_array_equal(drawn, [*3 * [evaluate.BURN_IN_STEPS + np.arange(24)[::2]], *3 * [ends]])


def test_footage_that_repeats_itself_has_a_finite_nearest_neighbour_ratio():
    reference = Reference(np.tile(discs(80, 16), (10, 1, 1, 1)), 1, 30, 0)
    [figures] = reference.compare([discs(600, 16, 1).reshape(4, 50, 3, 16, 16, 3)])
    assert np.isfinite([*figures.values()]).all()


def test_a_model_that_draws_one_frame_only_is_compared_too():
    latents = np.random.default_rng(0).standard_normal((8, 40, 8), np.float32)
    figures = evaluate.frame_figures([Reference(discs(400, 16), 2, 0, 0)],
                                     SimpleNamespace(early=[latents], late=[latents]),
                                     lambda z: np.full((len(z), 16, 16, 3), 30, np.uint8), 0)
    assert np.isfinite([figure["value"] for figure in figures]).all()
    assert not any(is_good(figure) for figure in figures if figure["name"].endswith("diversity"))


def test_autocorrelation_is_that_of_the_definition():
    states = np.random.default_rng(0).standard_normal((300, 4)).cumsum(0)
    expected = [np.mean((states[lag:] * states[:300 - lag]).sum(1)) for lag in range(100)]
    np.testing.assert_allclose(metrics.autocorrelation(states, 99), np.array(expected) / expected[0], rtol=1e-6)


def test_sliced_wasserstein_of_equal_sets_is_small(footage):
    frames = footage.sample[:, :, 0].reshape(-1, 32, 32, 3)
    [same] = metrics.sliced_wasserstein([frames], frames[::-1], 0)
    noise = np.random.default_rng(0).normal(0, 20, frames.shape)
    [[fine, coarse]] = metrics.sliced_wasserstein([np.clip(frames + noise, 0, 255)], frames, 0)
    assert same[0] < fine / 3
    assert same[1] < coarse


def test_frames_of_eight_pixels_can_be_compared(halves):
    small = np.stack([cv2.resize(frame, (8, 8), interpolation=cv2.INTER_AREA) for frame in halves[0, :1200]])
    reference = Reference(small, EVERY_NTH, 0, 0)
    [figures] = reference.compare([reference.halves[0]])
    assert all(np.isfinite(value) for value in figures.values())
    assert "swd_frame_8" in figures


def test_flow_is_in_pixels_at_any_size():
    """A pattern that moves by one pixel a step, at 32 and at 8 pixels."""
    for size in 32, 8:
        wave = 127 + 100 * np.sin(np.pi / 4 * (np.arange(size + 2)[:, None] + np.arange(size)) / (size / 8))
        clip = np.stack([wave[2 - i:2 - i + size] for i in range(3)]).astype(np.uint8)[..., None].repeat(3, -1)
        assert 0.5 < np.median(metrics.flow(clip[None])) < 1.5, size


def test_eval_from_the_command_line(run, tmp_path):
    frames = tmp_path / "frames"
    write_frames(frames, discs(400, 16))
    done = learn(tmp_path, "--mode", "eval", "--weights", run, "--data_dir", frames, "--steps", 3000)
    assert done.returncode == 0, done.stderr
    entry = json.loads((run / "eval.json").read_text())["weights.10"]
    assert entry["steps"] == 3000
    assert all(np.isfinite(figure["value"]) for figure in entry["figures"])
    lines = done.stdout.splitlines()
    for name in FIGURES:
        assert any(line.startswith(f"{name} ") for line in lines), name
        assert any(line.startswith(f"{name}: ") for line in lines), f"{name} is explained"
    for picture in "weights.10.clips.png", "weights.10.endurance.png":
        assert cv2.imread(str(run / picture)).std() > 0


@pytest.mark.parametrize("kept, steps, refused", [(4000, 3400, True), (4000, 3600, False), (3000, 1, False)])
def test_figures_of_a_longer_rollout_are_kept(copy, kept, steps, refused):
    np.save(copy.with_name("frames.npy"), discs(12, 16))
    text = json.dumps({copy.name: dict(steps=kept, footage=data.digest(copy.with_name("frames.npy")))})
    copy.with_name("eval.json").write_text(text)
    with pytest.raises(UserError, match="the figures of 4,000 steps; give --steps as many, or --overwrite" if refused
                       else "12 frames are too few"):  # which is found out after that
        evaluate.evaluate(copy, copy.with_name("frames.npy"), 0, steps)
    assert copy.with_name("eval.json").read_text() == text


@pytest.mark.parametrize("noted", [dict(footage="another"), {}])
def test_figures_of_other_footage_are_kept(copy, noted):
    text = json.dumps({copy.name: dict(steps=3000) | noted})
    copy.with_name("eval.json").write_text(text)
    np.save(copy.with_name("frames.npy"), discs(12, 16))
    with pytest.raises(UserError, match=r"the figures of other footage; .* --overwrite"):
        evaluate.evaluate(copy, copy.with_name("frames.npy"), 0, 3000)
    with pytest.raises(UserError, match="12 frames are too few"):
        evaluate.evaluate(copy, copy.with_name("frames.npy"), 0, 3000, overwrite=True)
    assert copy.with_name("eval.json").read_text() == text


COMPARE = """
import sys, time, numpy as np
from pathlib import Path
import evaluate

def compare(*_):
    print("comparing", flush=True)
    time.sleep(1000)

evaluate.Reference.compare = compare
evaluate.evaluate(Path(sys.argv[1]), sys.argv[2], 0, 3000)
"""


def test_a_comparison_ends_at_a_signal(copy):
    np.save(frames := copy.with_name("frames.npy"), discs(400, 16))
    with subprocess.Popen([sys.executable, "-c", COMPARE, copy, frames], env=os.environ | dict(PYTHONPATH=str(ROOT)),
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, preexec_fn=hear_signals) as process:
        assert process.stdout.readline() == b"comparing\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_a_folder_that_cannot_be_written_is_told_before_the_work(copy, monkeypatch):
    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"cannot be written to \(.*: Read-only file system\)"):
        evaluate.evaluate(copy, None, 0, 3000)


def test_figures_of_two_evaluations_at_once_are_both_kept(copy, monkeypatch):
    other = {"weights.9": {"steps": 3000}}
    monkeypatch.setattr(evaluate, "latent_figures",
                        lambda _: copy.with_name("eval.json").write_text(json.dumps(other)) and [])
    monkeypatch.setattr(evaluate, "frame_figures", lambda *_: [])
    np.save(copy.with_name("frames.npy"), discs(400, 16))
    entry = evaluate.evaluate(copy, copy.with_name("frames.npy"), 0, 3000)
    assert json.loads(copy.with_name("eval.json").read_text()) == other | {"weights.10": entry}


def test_footage_that_shows_nothing_or_was_not_trained_on_is_told(copy, monkeypatch, capsys):
    config = json.loads(copy.with_name("config.json").read_text())
    copy.with_name("config.json").write_text(json.dumps(config | dict(data_dir="frames", footage="another")))
    write_frames(copy.parent / "frames", np.zeros((100, 16, 16, 3), np.uint8))
    monkeypatch.chdir(copy.parent)
    assert program.main(["--mode=eval", f"--weights={copy}", "--steps=3000"]) == 2
    output, errors = capsys.readouterr()
    assert re.fullmatch("learn.py: the two halves of the footage have the same .* more", errors.splitlines()[-1])
    assert f"frames holds other frames than those that {copy} was trained on" in output
    assert "rolling" not in errors, "told before the long work"


def test_weights_are_compared_with_what_they_were_trained_on(copy):
    config = json.loads(copy.with_name("config.json").read_text())
    copy.with_name("config.json").write_text(json.dumps(config | dict(data_dir="elsewhere")))
    done = learn(copy.parent, "--mode", "eval", "--weights", copy)
    assert done.returncode == 2
    assert done.stderr.startswith("learn.py: elsewhere holds no PNG, JPEG or WebP images;")


@pytest.mark.parametrize("text", ["mine", "[" * 100_000, "[]", '{"weights.10": 1}', '{"weights.9": {}}',
                                  '{"weights.10": {"steps": "many"}}'])
def test_a_foreign_eval_json_is_left_alone(copy, text):
    copy.with_name("eval.json").write_text(text)
    with pytest.raises(UserError, match="move it away"):
        evaluate.evaluate(copy, None, 0, 3000)
    assert copy.with_name("eval.json").read_text() == text
