"""Shapes, sizes and the promises the networks make: states on the sphere, chains that do not depend on each other."""

import dataclasses

import keras
import numpy as np
import pytest

from config import PRESETS, Config
from models import Background, Discriminator, Generator, Transition, interpolate, standardise

numpy = keras.ops.convert_to_numpy
SMALL = Config(img_size=16, width=4, chains=8, batch_size=4, latent_size=16, rnn_units=12)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def assert_on_sphere(z):
    np.testing.assert_allclose(numpy(z).mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(numpy(z).std(-1), 1, atol=1e-5)


@pytest.fixture(scope="module")
def transition():
    keras.utils.set_random_seed(0)
    return Transition(SMALL)


def test_generator_has_the_original_size():
    assert Generator(Config(**PRESETS["original"])).count_params() == 953_731


@pytest.mark.parametrize("img_size", [8, 16, 32, 128])
def test_generator_draws_frames_of_any_size(img_size):
    frames = numpy(Generator(Config(img_size=img_size, width=2))(normal(3, 64)))
    assert frames.shape == (3, img_size, img_size, 3)
    assert 0 <= frames.min() < frames.max() <= 1


@pytest.mark.parametrize("values", [{}, dict(arch="original", gamma=0.0), dict(background=False)])
def test_generators_of_every_kind_are_smooth_functions_of_the_latent(values):
    keras.utils.set_random_seed(0)
    generator, latent = Generator(dataclasses.replace(SMALL, **values)), normal(1, 16)
    here, near, far = (numpy(generator(latent + shift)) for shift in (0, 1e-3, 1))
    assert 0 < np.abs(near - here).max() < 0.01 < np.abs(far - here).max()


def test_a_background_is_drawn_on_where_mask_and_gate_say():
    layer, x = Background(), normal(2, 8, 8, 4)
    mean = np.random.default_rng(0).uniform(0.1, 0.9, (8, 8, 3))
    mask = np.zeros((8, 8, 1))
    mask[4:] = 1
    x[:, 4:, :2, 3], x[:, 4:, 6:, 3] = -50, 50
    layer(x)
    layer.init_from_stats(mean, mask)
    added = numpy(layer(x)) - np.log(mean / (1 - mean))
    np.testing.assert_allclose(added[:, :4], 0, atol=1e-5)
    np.testing.assert_allclose(added[:, 4:, :2], 0, atol=1e-5)
    np.testing.assert_allclose(added[:, 4:, 6:], x[:, 4:, 6:, :3], atol=1e-5)
    np.testing.assert_allclose(added[:, 4:], (x[..., :3] / (1 + np.exp(-x[..., 3:])))[:, 4:], atol=1e-5)


def test_black_and_white_that_never_change_are_drawn_so():
    layer, x = Background(), normal(1, 1, 3, 4)
    layer(x)
    layer.init_from_stats(np.array([[[0, 0, 0], [1, 1, 1], [0, 0.5, 1]]]), np.zeros((1, 3, 1)))
    drawn = 255 / (1 + np.exp(-numpy(layer(x))))
    np.testing.assert_array_equal(np.round(drawn[0, 0]), [[0, 0, 0], [255, 255, 255], [0, 128, 255]])


def test_a_frame_is_drawn_alone_as_among_others_also_in_training():
    generator, latents = Generator(SMALL), normal(6, 16)
    np.testing.assert_allclose(numpy(generator(latents, training=True))[2:3], numpy(generator(latents[2:3])), atol=1e-5)


@pytest.mark.parametrize("arch, logits", [("modern", 9), ("original", 5)])
def test_discriminator_judges_frames_and_motion(arch, logits):
    clips = np.random.default_rng(0).uniform(0, 1, (4, 5, 16, 16, 3)).astype("float32")
    assert Discriminator(Config(img_size=16, width=4, arch=arch, gamma=0.0))(clips).shape == (4, logits)


@pytest.mark.parametrize("arch, before_step_3", [("modern", [0, 1, 2, 5, 6]), ("original", [0, 1, 2])])
def test_discriminator_depends_on_the_past_but_not_on_the_future(arch, before_step_3):
    discriminator = Discriminator(Config(img_size=16, width=4, arch=arch, gamma=0.0))
    clips = np.random.default_rng(0).uniform(0, 1, (2, 5, 16, 16, 3)).astype("float32")
    if arch == "original":  # whose batch norm is over all frames: with its statistics fixed
        discriminator.backbone.trainable = False
    before = numpy(discriminator(clips))
    clips[:, 3] = 0
    changed = np.abs(numpy(discriminator(clips)) - before).min(axis=0) > 1e-6
    assert [step for step in range(before.shape[1]) if not changed[step]] == before_step_3


def test_states_stay_on_the_sphere(transition):
    z, memory = transition.initial(normal(5, 16))
    assert_on_sphere(z)
    assert not numpy(memory).any()
    latents, outputs, (z, memory) = transition.roll(normal(5, 7, 16, seed=1), (z, memory))
    assert latents.shape == outputs.shape == (5, 7, 16)
    assert z.shape == (5, 16)
    assert memory.shape == (5, 12 + 16)
    assert_on_sphere(latents)
    assert_on_sphere(z)


def test_roll_is_step_after_step(transition):
    normals = normal(5, 4, 16, seed=1)
    state = transition.initial(normal(5, 16))
    latents, outputs, last = transition.roll(normals, state)
    for t in range(4):
        np.testing.assert_allclose(numpy(latents)[:, t], numpy(state[0]), atol=1e-5)
        output, state = transition(normals[:, t], state)
        np.testing.assert_allclose(numpy(outputs)[:, t], numpy(output), atol=1e-5)
    for ours, theirs in zip(state, last, strict=True):
        np.testing.assert_allclose(numpy(ours), numpy(theirs), atol=1e-5)


def test_a_chain_does_not_depend_on_others(transition):
    first, normals = normal(6, 16), normal(6, 20, 16, seed=1)
    together = transition.roll(normals, transition.initial(first))[0]
    alone = transition.roll(normals[2:3], transition.initial(first[2:3]))[0]
    np.testing.assert_allclose(numpy(together)[2:3], numpy(alone), atol=1e-5)


def test_without_noise_the_future_is_certain():
    transition = Transition(Config(noise=0.0, latent_size=16))
    state = transition.initial(normal(2, 16))
    np.testing.assert_array_equal(numpy(transition(normal(2, 16, seed=1), state)[0]),
                                  numpy(transition(normal(2, 16, seed=2), state)[0]))


def test_noise_of_one_step_fades_and_moves_the_latent_as_far_as_if_it_came_at_once():
    transition = Transition(Config(noise=0.01, latent_size=16))
    for variable in transition.change.variables:
        variable.assign(np.zeros(variable.shape))
    pulse, nothing = standardise(normal(1, 16)), np.zeros((1, 16), np.float32)
    still = standardise(normal(1, 16, seed=1))
    state, moved = (still, transition.initial(still)[1]), []
    for normals in pulse, *[nothing] * 99:
        z = state[0]
        output, state = transition(normals, state)
        moved.append(numpy(output - np.sqrt(1 - 0.01**2) * z)[0] / 0.01)
    moved, pulse = np.array(moved), numpy(pulse)[0]
    np.testing.assert_allclose(moved[:3], [0.1 * pulse, 0.09 * pulse, 0.081 * pulse], atol=1e-3)
    np.testing.assert_allclose(moved.sum(0), pulse, atol=0.01)


def test_interpolation_goes_evenly_along_the_sphere():
    start, end = standardise(normal(3, 64)), standardise(normal(3, 64, seed=1))
    path = numpy(interpolate(start, end, 6))
    assert path.shape == (3, 6, 64)
    assert_on_sphere(path)
    np.testing.assert_allclose(path[:, 0], numpy(start), atol=1e-5)
    whole = np.concatenate([path, numpy(end)[:, None]], axis=1)
    cosines = (whole[:, 1:] * whole[:, :-1]).mean(-1)
    np.testing.assert_allclose(cosines, cosines[:, :1].repeat(6, 1), atol=1e-5)


def test_interpolation_stands_still_where_nothing_moves():
    z = standardise(normal(2, 64))
    np.testing.assert_allclose(numpy(interpolate(z, z, 6)), numpy(z)[:, None].repeat(6, 1), atol=1e-3)
