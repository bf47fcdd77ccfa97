"""A run from the command line: what it leaves in its folder, and that no interruption costs more than it must."""

import json
import math
import re
import signal
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import checkpoints
import data
import losses
import sample
import training
from config import Config
from data import Lights
from files import UserError
from helpers import learn, start, until
from models import own_speeds
from trainer import METRICS, Trainer, lags, to_float
from training import epoch_name, new_run


def only_run(folder):
    [run] = (folder / "logs").iterdir()
    return run


def names(run):
    return sorted(path.name for path in run.iterdir() if "tfevents" not in path.name)


def pair(prefix):
    return [f"{prefix}.data-00000-of-00001", f"{prefix}.index"]


def test_a_run_leaves_what_playing_and_resuming_need(footage, flags):
    done = learn(footage, *flags, "--epochs=3", "--save_every=2", "--seed=5")
    assert done.returncode == 0, done.stderr
    run = only_run(footage)
    assert re.fullmatch(r"\d{8}-\d{6}", run.name)
    assert names(run) == sorted(["config.json", *pair("state.6"), *pair("weights.2"), *pair("weights.3")])
    saved = json.loads((run / "config.json").read_text())
    assert saved["seed"] == 5
    assert saved["chains"] == 8
    assert f"--weights {run.relative_to(footage)} --mode live" in done.stdout
    assert re.search(r"generator [\d,]+, transition [\d,]+, discriminator [\d,]+ weights", done.stdout)
    assert "epoch 3" in done.stderr
    assert "steps/s" in done.stderr
    assert "kurt" in done.stderr
    assert "absl" not in done.stderr


def test_tensorboard_shows_curves_pictures_and_histograms(footage, flags):
    assert learn(footage, *flags, "--epochs=5").returncode == 0
    events = EventAccumulator(str(only_run(footage)), size_guidance=dict(tensors=0))
    events.Reload()
    tags = set(events.Tags()["tensors"])
    shown = ["1_first", "2_second", "3_third", "4_middle", "5_last"]
    assert tags == {*METRICS, "learning_rate", *(f"{kind}/{name}" for kind in ("frames", "latents") for name in shown)}
    assert [event.step for event in events.Tensors("learning_rate")] == [10]
    _, _, png, *_ = tf.make_ndarray(events.Tensors("frames/5_last")[-1].tensor_proto)
    assert tf.io.decode_png(png).shape == (16, 16, 3)


def test_stopped_and_resumed_is_as_if_never_stopped(footage, flags):
    """Bit for bit: a run in one go, and one stopped by Ctrl-C, stopped by the system, and resumed twice."""
    flags += ["--epochs=60", "--save_every=20", "--r1_gamma=0.1"]
    straight = start(footage, *flags)
    until(lambda: list(footage.glob("logs/*/config.json")), straight)
    reference = only_run(footage)
    stopped = start(footage, *flags)
    until(lambda: len(list(footage.glob("logs/*/config.json"))) == 2, stopped)
    [run] = set((footage / "logs").iterdir()) - {reference}
    until(lambda: list(run.glob("weights.20.index")), stopped)
    stopped.send_signal(signal.SIGINT)
    output, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert f"--resume {run.relative_to(footage)}" in output
    assert epoch_of(run) < 60

    stopped = start(footage, "--resume", run)
    until(lambda: list(run.glob("weights.40.index")), stopped)
    stopped.send_signal(signal.SIGTERM)
    stopped.communicate(timeout=60)
    assert stopped.returncode == 143
    assert learn(footage, "--resume", run).returncode == 0

    straight.communicate(timeout=120)
    assert straight.returncode == 0
    for epoch in 20, 40, 60:
        ours, theirs = (checkpoints.arrays(folder / f"weights.{epoch}.weights.h5") for folder in (run, reference))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours), epoch


def test_a_trial_stopped_at_once_leaves_no_weights_that_pass_for_a_lamp(footage, flags):
    process = start(footage, *flags, "--batch_size=1", "--epochs=100000")
    until(lambda: list(footage.glob("logs/*/events.*")), process)  # from here on a step may be under way
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "stopping as soon as this step is done and saved" in errors
    assert process.returncode == 130
    run = only_run(footage)
    assert checkpoints.find_state(run), "it can go on"
    assert not list(run.glob("weights.*"))


def epoch_of(run):
    return float(checkpoints.newest(run, "weights").name.removeprefix("weights."))


def test_a_killed_run_keeps_every_checkpoint_and_goes_on(footage, flags):
    run = None
    for kill in range(3):
        process = start(footage, *(["--resume", run] if run else [*flags, "--epochs=100000", "--save_every=1"]))
        until(lambda: list(footage.glob("logs/*/state.*.index")), process)
        run = only_run(footage)
        goal = run / f"weights.{int(epoch_of(run)) + 5 + kill}.index"
        until(goal.exists, process)
        process.kill()
        process.communicate()
        for index in run.glob("weights.*.index"):
            sample.load(index.with_suffix(""))
    done = learn(footage, "--resume", run, f"--epochs={int(epoch_of(run)) + 3}")
    assert done.returncode == 0, done.stderr
    assert not list(run.glob(".*part*")), "what the killed runs were writing is swept away"
    assert len(list(run.glob("state.*.index"))) == 1


def test_a_long_epoch_is_not_lost(footage, small, monkeypatch):
    """The state is written every few minutes, here at each step, and not only with the weights."""
    monkeypatch.chdir(footage)
    monkeypatch.setattr(training, "STATE_SECONDS", 0)

    def fail(step, *_):
        raise MemoryError(step)

    monkeypatch.setattr(training, "log_scalars", fail)  # at step 10
    with pytest.raises(MemoryError):
        training.train(Config(**small, save_every=10), data.load("frames", 16))
    assert names(only_run(footage)) == ["config.json", *pair("state.9")]


def test_max_minutes_ends_a_run_in_time(footage, flags):
    begun = time.monotonic()
    done = learn(footage, *flags, "--max_minutes=0.5")
    assert done.returncode == 0, done.stderr
    assert 30 < time.monotonic() - begun < 110
    run = only_run(footage)
    assert epoch_of(run) > 0
    assert "100%" in done.stderr
    events = EventAccumulator(str(run), size_guidance=dict(tensors=0))
    events.Reload()
    rates = [float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors("learning_rate")]
    assert rates[0] <= Config().learning_rate * training.LOG_EVERY / training.WARM_UP, "it warms up"
    falling = rates[training.WARM_UP // training.LOG_EVERY:]
    assert falling == sorted(falling, reverse=True)
    assert rates[-1] < 0.1 * Config().learning_rate


def test_a_diverging_run_stops_and_keeps_its_checkpoint(footage, flags):
    assert learn(footage, *flags, "--epochs=2").returncode == 0
    run = only_run(footage)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | dict(learning_rate=1e30, epochs=10, optimizer="adam")))
    before = names(run)
    done = learn(footage, "--resume", run)
    assert done.returncode == 2
    assert "diverged" in done.stderr.splitlines()[-1]
    assert f"--resume {run}" in done.stderr.splitlines()[-1]
    assert names(run) == before


def test_an_empty_folder_gets_a_simulated_lamp(tmp_path, flags):
    process = start(tmp_path, *flags, "--epochs=1")
    until(lambda: len(list(tmp_path.glob("frames/*.png"))) > 5, process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert "frames holds no frames: simulating a lava lamp" in output
    assert process.returncode == 130
    assert "Traceback" not in errors
    process = start(tmp_path, *flags, "--epochs=1")
    assert process.stdout.readline() == "frames holds only part of its frames: simulating a lava lamp\n"
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == 143


@pytest.mark.parametrize("extra, complaint", [
    (["--resume=."], ". holds no training state to resume from"),
    (["--every_nth=30"], "40 frames and a sequence takes 61"),
    (["--data_dir=image.png"], "image.png")])
def test_what_cannot_begin_is_told_in_a_sentence(footage, flags, extra, complaint):
    (footage / "image.png").write_bytes(b"")
    done = learn(footage, *(flags if "--resume" not in extra[0] else []), *extra)
    assert done.returncode == 2
    assert complaint in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (footage / "logs").exists()


def test_an_epoch_of_long_footage_ends_all_the_same(footage, small, monkeypatch):
    monkeypatch.chdir(footage)
    monkeypatch.setattr(training, "LONGEST_EPOCH", 1)  # the footage has two
    run, _ = training.train(Config(**small, epochs=3, save_every=1), data.load("frames", 16))
    assert names(run) == sorted(["config.json", *pair("state.3"), *pair("weights.1"), *pair("weights.2"),
                                 *pair("weights.3")])


def test_two_runs_of_one_second_have_folders_of_their_own(tmp_path):
    runs = {new_run(tmp_path) for _ in range(5)}
    assert len(runs) == 5
    assert all(run.is_dir() for run in runs)


@pytest.mark.parametrize("step, name", [(20, "2"), (25, "2.5"), (100, "10"), (1, "0.1")])
def test_epochs_in_file_names(step, name):
    assert epoch_name(step, 10) == name


@pytest.fixture(scope="module")
def trainer(small):
    return Trainer(Config(**small, blobs=0, generator_norm="batch"))


def real(config):
    shape = (config.batch_size, config.clip_len, config.img_size, config.img_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_each_function_is_traced_once(trainer):
    for _ in range(3):
        trainer.train_step(real(trainer.config), 1e-4)
    trainer.refresh_statistics()
    trainer.refresh_statistics()
    traced = {name: getattr(trainer, name).experimental_get_tracing_count()
              for name in ("update", "refresh_statistics")}
    assert traced == dict(update=1, refresh_statistics=1)


def test_augmentation_is_one_transform_of_a_whole_clip(small):
    trainer = Trainer(Config(**small, augment=True))
    clips = np.zeros((4, 3, 16, 16, 3), "float32")
    clips[:, :, 6:10, 6:10] = 0.2, 0.5, 0.7
    changed = trainer.augment(tf.constant(clips), [0, 1], tf.range(4)).numpy()
    assert changed.shape == clips.shape
    for clip in changed:
        np.testing.assert_array_equal(clip, clip[:1].repeat(3, 0))
        bright = np.argwhere(clip[0, ..., 0] > clip[0, ..., 0].mean())
        assert (np.ptp(bright, axis=0) == 3).all(), "still a square of 4x4"
        np.testing.assert_allclose(np.unique(clip.reshape(-1, 3), axis=0), [[0, 0, 0], [0.2, 0.5, 0.7]], atol=1e-6)
    corners = {tuple(np.argwhere(clip[0, ..., 0] > clip[0, ..., 0].mean())[0]) for clip in changed}
    assert len(corners) > 1
    two = trainer.augment(tf.constant(clips[2:]), [0, 1], tf.range(2, 4))
    np.testing.assert_array_equal(two, changed[2:])
    trainer.train_step(real(trainer.config), 1e-4)


def test_the_average_follows_the_weights(small):
    trainer = Trainer(Config(**small, ema=0.9))
    for _ in range(3):
        trainer.train_step(real(trainer.config), 1e-2)
        for name, network in trainer.average.items():
            trained = getattr(trainer, name).trainable_variables
            for mean, weight in zip(network.trainable_variables, trained, strict=True):
                assert mean.shape == weight.shape
    before = trainer.average["transition"].get_weights()
    trainer.step.assign(1_000)
    trainer.update_average()
    for old, mean, weight in zip(before, trainer.average["transition"].get_weights(),
                                 trainer.transition.get_weights(), strict=True):
        np.testing.assert_allclose(mean, 0.9 * old + 0.1 * weight, atol=1e-6)


@pytest.mark.parametrize(("name", "weight"), [("r1_gamma", 0.1), ("r2_gamma", 0.3)])
def test_gradient_penalties_flatten_the_discriminator(small, name, weight):
    """Each at its own clips, which it sees all of in a batch of four."""
    def penalty(gamma):
        trainer = Trainer(Config(**small, optimizer="sgd", **dict(r1_gamma=0.0, r2_gamma=0.0) | {name: gamma}))
        clips = real(trainer.config)
        judged = to_float(clips)
        if name == "r2_gamma":
            normals, stretch, *_ = trainer.seeds(7)
            normals = tf.random.stateless_normal((8, trainer.config.seq_len, 8), normals)
            judged, _ = trainer.decode(trainer.window(trainer.transition.roll(normals, trainer.state)[0], stretch))
        trainer.train_step(clips, 1e-3)
        with tf.GradientTape() as tape:
            tape.watch(judged)
            logits = trainer.discriminator(judged, training=True)
        return float(losses.gradient_penalty(tape.gradient(logits, judged)))

    assert penalty(weight) < 0.95 * penalty(0.0)


def test_without_an_average_the_weights_themselves_are_saved(small):
    trainer = Trainer(Config(**small, ema=0.0))
    trainer.train_step(real(trainer.config), 1e-2)
    for mean, weight in zip(trainer.average["generator"].trainable_variables, trainer.generator.trainable_variables,
                            strict=True):
        np.testing.assert_array_equal(mean, weight)


def test_refreshed_statistics_are_those_of_the_averaged_generator(small):
    keras.utils.set_random_seed(1)
    kind = dict(chains=64, blobs=0, generator_norm="batch", upsampling="transposed")
    trainer = Trainer(Config(**(small | kind), seed=3))
    for _ in range(20):
        trainer.train_step(real(trainer.config), 1e-3)
    trainer.refresh_statistics()
    generator = trainer.average["generator"]
    norm = next(layer for layer in generator.layers if isinstance(layer, keras.layers.BatchNormalization))
    below = keras.Sequential(generator.layers[:generator.layers.index(norm)])
    transition, normals = trainer.average["transition"], tf.random.stateless_normal((512, 50, 8), [0, 0])
    latents = transition.roll(normals, transition.initial(normals[:, 0]))[2][0]  # of lamps on their way
    seen = below(latents).numpy()
    np.testing.assert_allclose(norm.moving_variance, seen.var((0, 1, 2)), rtol=0.5)
    assert not np.allclose(norm.moving_variance, 1, rtol=0.1), "still as it was made"


def test_states_learn_to_move_at_the_pace_of_the_footage(small):
    trainer = Trainer(Config(**(small | dict(chains=64)), pace_weight=10.0))
    pace = {lag: min(0.1 * lag, 1) for lag in trainer.lags}
    grey = np.full((16, 16, 3), 0.5)
    trainer.begin_with(Lights(grey, grey, grey, np.ones((16, 16, 1)), 1), pace, 0.1)
    paces = [trainer.train_step(real(trainer.config), 3e-3)[0][METRICS.index("loss/pace")] for _ in range(40)]
    assert paces[0] > 0.5, "a new lamp is slow"
    assert np.mean(paces[-5:]) < 0.5 * paces[0]


def test_what_is_hidden_comes_to_look_as_if_it_were_seen(small):
    def astray(weight):
        trainer = Trainer(Config(**(small | dict(blobs=16)), hidden_weight=weight))
        grey = np.full((16, 16, 3), 0.3)
        lights = Lights(grey, grey, grey + 0.4, np.ones((16, 16, 1)), 1)
        trainer.begin_with(lights, dict.fromkeys(trainer.lags, 0.5), 0.1)
        clips = real(trainer.config)
        return [trainer.train_step(clips, 1e-2)[0][METRICS.index("loss/hidden")] for _ in range(30)][-1]

    assert astray(30.0) < 0.5 * astray(0.0)


@pytest.mark.parametrize("behind", [0.2, 0.8])
def test_playing_weights_are_as_light_as_the_footage_and_change_as_much(small, behind):
    trainer = Trainer(Config(**(small | dict(blobs=16, chains=64))))
    pictures = (np.full((16, 16, 3), light) for light in (0.5, behind, 1 - behind))
    trainer.begin_with(Lights(*pictures, np.ones((16, 16, 1)), 1), dict.fromkeys(trainer.lags, 0.1), 0.1)
    np.testing.assert_allclose(trainer.footage, [0.5, behind, 0.1], rtol=1e-3)
    light, change = trainer.measure().numpy()
    wanted = behind + 0.95 * (light - behind)
    trainer.footage.assign([wanted, behind, 1.06 * change])
    for _ in range(2):  # the second time it begins anew, and ends alike
        trainer.calibrate()
        np.testing.assert_allclose(trainer.measure(), [wanted, 1.06 * change], rtol=0.01)
    trainer.footage.assign([1 - behind, behind, 9.0])  # no lamp of this kind
    trainer.calibrate()
    sizes, own = (generator.get_layer("blobs").log_radius.numpy()
                  for generator in (trainer.generator, trainer.average["generator"]))
    np.testing.assert_allclose(own - sizes, np.log(1.1), rtol=1e-4, err_msg="twice a tenth more wax")
    assert float(trainer.average["transition"].pace) == pytest.approx(1.1**2 * float(trainer.transition.pace))


@pytest.mark.parametrize(("seq_len", "expected"), [(2, [1, 2, 32]), (16, [1, 2, 4, 8, 16, 256]),
                                                   (20, [1, 2, 4, 8, 16, 320])])
def test_lags_are_those_of_a_sequence_and_a_long_one(seq_len, expected):
    assert lags(seq_len) == expected


@pytest.mark.parametrize("blobs", [0, 16])
def test_a_new_run_begins_with_the_lights_of_the_footage_and_moves_what_moves(small, blobs):
    trainer = Trainer(Config(**small, blobs=blobs))
    behind = np.random.default_rng(0).uniform(0.1, 0.5, (16, 16, 3))
    moving = np.zeros((16, 16, 1))
    moving[4:] = 1
    front = behind + 0.4 * moving
    mean = (behind + front) / 2
    assert trainer.lags == [1, 2, 4, 64]  # of sequences of 4 steps
    trainer.begin_with(Lights(mean, behind, front, moving, 1), {lag: lag / 100 for lag in trainer.lags}, 0.1)
    own = own_speeds(4)  # of the four hands, each a pair of numbers
    np.testing.assert_allclose(trainer.pace[:3], 0.01 * np.float32([[1], [2], [4]]) * [*own, *own], rtol=1e-3)
    slowest, fastest = trainer.pace[3].numpy()[[0, 3]]
    assert 0.87 * 0.64 < slowest < 0.64 < fastest < 1.15 * 0.64, "in a long time all get to where they can be"
    for transition in trainer.transition, trainer.average["transition"]:
        assert float(transition.pace) == pytest.approx(0.01 * math.sqrt(2), rel=1e-3)
    for generator in trainer.generator, trainer.average["generator"]:
        drawn = generator(tf.random.stateless_normal((64, 8), [0, 0])).numpy()
        np.testing.assert_allclose(drawn[:, :4], np.broadcast_to(mean, drawn.shape)[:, :4], atol=1e-5)
        varied = drawn[:, 4:].std(0) > 1e-5
        if blobs:
            assert varied.mean() > 0.8, "what moves is drawn, but far from all blobs"
            share = ((drawn - behind) / 0.4)[:, 4:].mean(-1)
            assert (np.abs(share - np.round(share)) < 0.1).mean() > 0.5, "most pixels have one light or the other"
            assert 0.1 < share.mean() < 0.5
        else:
            assert varied.all(), "what moves is drawn"
            assert np.corrcoef(drawn.mean(0).ravel(), mean.ravel())[0, 1] > 0.8


def test_carried_states_start_the_next_step_some_anew(small):
    trainer = Trainer(Config(**(small | dict(chains=512)), reset_probability=0.25))
    before, latents = trainer.past.numpy(), tf.random.normal((512, 4, 8))
    state = (tf.random.normal((512, 8)), tf.ones((512, trainer.transition.state_size[1])))
    trainer.carry(latents, state, trainer.seeds(4))
    z, h = (part.numpy() for part in trainer.state)
    fresh = ~h.any(axis=1)  # a new chain has no memory
    assert 0.15 < fresh.mean() < 0.35
    chain = {tuple(row): i for i, row in enumerate(state[0].numpy())}
    came = [chain[tuple(row)] for row in z[~fresh]]
    past = trainer.past.numpy()
    np.testing.assert_array_equal(past[~fresh], np.concatenate([before[:, 4:], latents], axis=1)[came])
    assert past[fresh].std() == pytest.approx(1, abs=0.05)
    assert not {step.tobytes() for step in past[fresh].reshape(-1, 8)} & {
        step.tobytes() for step in past[~fresh].reshape(-1, 8)}, "a new chain has nothing of an old one's past"
    kept = {tuple(row) for row in z[~fresh]}
    given = [tuple(row) for row in state[0].numpy()]
    assert kept <= set(given)
    assert [row for row in given if row in kept] != [tuple(row) for row in z[~fresh]], "shuffled"


def test_a_state_of_other_networks_is_refused(tmp_path, small, trainer):
    trainer.save_state(tmp_path)
    other = Trainer(Config(**(small | dict(rnn_units=9)), blobs=0))
    with pytest.raises(UserError, match=r"state\.\d+ .*config.json"):
        other.restore(tmp_path)
