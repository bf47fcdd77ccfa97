"""The training step: the same on TensorFlow and on JAX, in parts and on several devices; each penalty does its work."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import backend
import checkpoints
import losses
from config import Config
from files import UserError
from gan import GAN, METRICS, SAMPLES, TERMS, shift, to_numpy
from models import UNROLL
from steps import clips, flat, start, step, trained

STEPS = 3
pytestmark = pytest.mark.slow
eagerly = pytest.mark.usefixtures("eagerly")
needs_jax = pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="JAX is not installed")


def run(folder, task, config, *args, backend="tensorflow", devices=()):
    """What tests/steps.py finds in a process of its own, by name."""
    # XLA's optimisations take most of the time here, and change nothing but the speed.
    env = os.environ | dict(KERAS_BACKEND=backend, JAX_DISABLE_MOST_OPTIMIZATIONS="1", JAX_PLATFORMS="cpu",
                            TF_CPP_MIN_LOG_LEVEL="3")
    if devices:
        env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices[0]}"
    subprocess.run([sys.executable, str(Path(__file__).with_name("steps.py")), task, json.dumps(config),
                    str(folder / "out.npz"), *map(str, (*args, *devices))], check=True, env=env)
    return dict(np.load(folder / "out.npz"))


def assert_same(ours, theirs, tolerance):
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=tolerance, atol=tolerance, err_msg=name)


@eagerly
@needs_jax
@pytest.mark.parametrize("values", [dict(augment=True, accumulate=2, gamma=1.0, normality_weight=1.0), dict(
    arch="original", loss="standard", normality="pooled", background=False, clip_len=4, noise=0.0, gamma=0.0)])
def test_one_step_on_jax_is_that_on_tensorflow(small, tmp_path, values):
    values = small | values
    config = Config(**values)
    begun = start(config)
    checkpoints.save_state(begun, tmp_path, 1)
    ours = step(config, begun)
    theirs = run(tmp_path, "step", values, tmp_path / "state.1.h5", backend="jax")
    assert not theirs.pop("tensorflow"), "JAX needs no TensorFlow"
    assert set(ours) == set(theirs)
    for name in ours:
        assert np.linalg.norm(ours[name] - theirs[name]) <= 1e-4 * np.linalg.norm(ours[name]), name
    np.testing.assert_allclose(theirs["metrics"], ours["metrics"], rtol=1e-4, atol=1e-6)
    found = dict(zip(METRICS, ours["metrics"], strict=False))
    assert all(found[f"loss/{name}"] > 1e-6 for name in TERMS if name != "gradient_penalty" or config.gamma), \
        "a term that is 0 proves nothing"


@eagerly
def test_accumulated_gradients_are_the_mean_of_those_of_the_parts(small):
    config = Config(**small, accumulate=2)
    begun, gan = start(config), GAN(config)
    gan.restore(begun)
    real = clips(config)[0]

    def gradients(i):
        def objectives(g, d):
            return gan.objectives(**gan.loss_terms(g, d, gan.state, real, begun["numbers"], i)[0]), ()

        return map(flat, to_numpy(gan.backend.gradients(objectives, gan.state["g"], gan.state["d"])[0]))

    found = step(config, begun)
    for network, one, two in zip("gd", gradients(0), gradients(1), strict=True):
        np.testing.assert_allclose(found[network], (one + two) / 2, rtol=2e-5, atol=2e-5)
    assert np.abs(one - two).max() > 1e-3


@eagerly
def test_two_devices_on_tensorflow_are_two_parts(small, tmp_path):
    values = small | dict(augment=True, gamma=0.0)
    found = run(tmp_path, "train", values | dict(distribute="mirrored"), STEPS, devices=[2])
    del found["tensorflow"]
    assert_same(found, trained(Config(**values, accumulate=2), STEPS), 2e-5)


@needs_jax
def test_two_devices_on_jax_are_one(small, tmp_path):
    values = small | dict(augment=True, gamma=0.0, img_size=8, seq_len=UNROLL + 1, clip_len=2)
    one = run(tmp_path, "train", values, STEPS, backend="jax")
    two = run(tmp_path, "train", values | dict(distribute="mirrored"), STEPS, backend="jax", devices=[2])
    assert not one["tensorflow"]
    assert_same(two, one, 2e-5)


def test_a_batch_has_to_divide_among_parts(small):
    engine = backend.make_backend()
    engine.devices = 3
    with pytest.raises(UserError, match="--batch_size 4 does not divide into 3 devices x --accumulate 2"):
        GAN(Config(**small, accumulate=2), engine)


@eagerly
@pytest.mark.parametrize("values", [dict(img_size=32), dict(img_size=128, batch_size=2, chains=2, width=4),
                                    dict(seq_len=200), dict(rnn_units=512), dict(batch_size=16, chains=16,
                                                                                accumulate=8)])
def test_larger_models_train(small, values):
    config = Config(**(small | values))
    gan = GAN(config)
    before = to_numpy(gan.state["g"])
    metrics, _ = gan.train(clips(config), [1e-3])
    assert np.isfinite(metrics).all()
    assert any((old != new).any() for old, new in zip(before, to_numpy(gan.state["g"]), strict=True))


@eagerly
def test_bfloat16_learns_nearly_the_same(small):
    config = Config(**small, precision="bfloat16")
    ours, theirs = (GAN(c).train(clips(c, 2), [1e-3, 1e-3])[0] for c in (config, Config(**small)))
    np.testing.assert_allclose(ours, theirs, rtol=0.03, atol=0.03)
    gan = GAN(config)
    assert {weight.dtype for network in (gan.video, gan.discriminator) for weight in network.weights} == {"float32"}
    for network in gan.video.generator, gan.discriminator.backbone:
        assert "bfloat16" in {layer.compute_dtype for layer in network.layers}
    assert {layer.compute_dtype for layer in gan.average.generator.layers} == {"float32"}


def test_shifts_move_a_whole_clip_and_mirror_at_the_edge():
    clip = np.zeros((2, 3, 16, 16, 3), "float32")
    clip[:, :, 6:10, 6:10] = 0.2, 0.5, 0.7
    clip[:, :, 0] = 1
    first, second = to_numpy(shift(clip, np.int32([[0, 4], [2, 1]])))
    np.testing.assert_array_equal(first, first[:1].repeat(3, 0))
    np.testing.assert_allclose(first[0, 8:12, 6:10], clip[0, 0, 6:10, 6:10])
    np.testing.assert_allclose(second[0, 4:8, 7:11], clip[0, 0, 6:10, 6:10])
    np.testing.assert_array_equal(first[0, :4, 0, 0], [0, 1, 1, 0])  # rows 1 0 0 1: mirrored


@eagerly
def test_the_average_follows_the_weights(small):
    gan = GAN(Config(**small, ema=0.9))
    for done, decay in (0, 1 / 11), (1000, 0.9):
        moved = to_numpy(gan.move_average([np.float32(3)], [np.float32(1)], np.int32(done + 1)))
        np.testing.assert_allclose(moved, 1 + 2 * decay, rtol=1e-6)
    without = GAN(Config(**small, ema=0.0))
    without.train(clips(without.config), [1e-2])
    for mean, weight in zip(*(to_numpy(without.state[name]) for name in ("average", "g")), strict=True):
        np.testing.assert_array_equal(mean, weight)


def test_adam_is_that_of_keras(small):
    gan, rng = GAN(Config(**small)), np.random.default_rng(0)
    ours, moments = [np.float32([1, -2, 3])], [np.zeros(3, np.float32)]
    theirs = keras.Variable(ours[0])
    optimizer = keras.optimizers.Adam(0.01, beta_1=0.0, beta_2=0.99)
    for count in 1, 2, 3:
        gradient = rng.standard_normal(3).astype("float32")
        ours, moments = gan.optimise(ours, [gradient], moments, np.int32(count), 0.01)
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [theirs])
    np.testing.assert_allclose(ours[0], to_numpy(theirs.value), rtol=1e-5)


def test_gradient_penalties_flatten_the_discriminator(small):
    def penalty(gamma):
        config = Config(**small, gamma=gamma)
        gan = GAN(config)
        gan.train(clips(config, 20), np.full(20, 1e-3))
        real = clips(config)[0].astype("float32") / 255
        for variable, value in zip(gan.discriminator.trainable_variables, to_numpy(gan.state["d"]), strict=True):
            variable.assign(value)
        return float(losses.gradient_penalty(gan.backend.input_gradient(gan.discriminator,
                                                                        keras.ops.convert_to_tensor(real))))

    assert penalty(5.0) < 0.8 * penalty(0.0)


@pytest.mark.parametrize("img_size, weight", [(64, 0.005), (128, 0.02), (16, 0.0003125)])
def test_gradient_penalties_weigh_as_much_as_there_are_pixels(img_size, weight):
    terms = dict.fromkeys(TERMS, 0.0) | dict(gradient_penalty=1.0)
    assert GAN.objectives(SimpleNamespace(config=Config(img_size=img_size)), **terms) == (0, pytest.approx(weight))


def test_a_new_run_draws_on_the_background_where_the_mask_is_set(small):
    gan = GAN(Config(**small))
    mean = np.random.default_rng(0).uniform(0.1, 0.9, (16, 16, 3))
    mask = np.zeros((16, 16, 1))
    mask[4:] = 1
    gan.init_from_stats(mean, mask)
    for model in gan.video, gan.average:
        drawn = to_numpy(model.generator(np.random.default_rng(1).standard_normal((64, 8), np.float32)))
        np.testing.assert_allclose(drawn[:, :4], np.broadcast_to(mean, drawn.shape)[:, :4], atol=1e-5)
        assert (drawn[:, 4:].std(0) > 1e-5).all(), "what moves is drawn"


@eagerly
def test_chains_go_on_some_start_anew_and_all_are_shuffled(small):
    gan = GAN(Config(**(small | dict(chains=512)), reset_probability=0.25))
    z = np.random.default_rng(0).standard_normal((512, 8), np.float32)
    end = z, np.ones((512, gan.video.transition.state_size[1]), np.float32)
    numbers = to_numpy(gan.random_numbers(gan.state["step"]))
    new_z, h = to_numpy(gan.carry(end, numbers))
    fresh = ~h.any(axis=1)  # a new chain has no hidden state
    np.testing.assert_array_equal(fresh, numbers["reset"][numbers["order"], 0])
    assert 0.15 < fresh.mean() < 0.35
    old = numbers["order"]
    np.testing.assert_array_equal(new_z[~fresh], z[old][~fresh])
    assert sorted(old) == list(range(512))
    assert (old != np.arange(512)).mean() > 0.9


def test_refreshed_statistics_are_those_of_the_averaged_generator(small):
    gan = GAN(Config(**small | dict(chains=64, arch="original", gamma=0.0), seed=3))
    gan.init_from_stats(np.full((16, 16, 3), 0.2), np.full((16, 16, 1), 0.5))
    gan.train(clips(gan.config).repeat(20, 0), np.full(20, 1e-2))
    gan.samples([0])
    generator = gan.average.generator
    norm = next(layer for layer in generator.layers if isinstance(layer, keras.layers.BatchNormalization))
    below = keras.Sequential(generator.layers[:generator.layers.index(norm)])
    normals = np.random.default_rng(0).standard_normal((512, 50, 8), np.float32)
    seen = to_numpy(below(gan.compiled_rollout(normals)[:, -1]))
    np.testing.assert_allclose(norm.moving_variance, seen.var((0, 1, 2)), rtol=0.5)
    assert not np.allclose(norm.moving_variance, 1, rtol=0.1), "still as it was made"
    assert (generator.get_layer("background").mask.numpy() == 0.5).all()
    once = norm.moving_variance.numpy()
    gan.samples([0])
    np.testing.assert_array_equal(norm.moving_variance, once)


def test_samples_are_the_same_chains_each_time(small):
    gan = GAN(Config(**small))
    (latents, frames), (again, _) = gan.samples([0, 3]), gan.samples([0, 3])
    assert latents.shape == (8, 2, 8)
    assert frames.shape == (min(SAMPLES, 8), 2, 16, 16, 3)
    np.testing.assert_array_equal(latents, again)


@eagerly
def test_a_number_that_is_not_finite_is_named(small):
    gan = GAN(Config(**small))
    with pytest.raises(FloatingPointError, match=r"(loss|gradient)/\w+ became"):
        gan.train(clips(gan.config, 3), np.full(3, 1e30))
