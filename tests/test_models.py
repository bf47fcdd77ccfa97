"""Shapes, sizes and the promises the networks make: states on the sphere, lamps that do not know of each other."""

import dataclasses

import keras
import numpy as np
import pytest

import models
from config import PRESETS, Config
from data import Lights
from models import (
    FADED,
    FULLER,
    OWN,
    WAVER,
    Background,
    Blobs,
    Coordinates,
    Discriminator,
    Scene,
    Splat,
    Transition,
    interpolate,
    make_generator,
    spread,
    standardise,
)

SMALL = Config(img_size=16, width=4, chains=8, batch_size=4, latent_size=16, rnn_units=12, features=10)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def assert_on_sphere(z):
    np.testing.assert_allclose(numpy(z).mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(numpy(z).std(-1), 1, atol=1e-5)


@pytest.fixture(scope="module")
def transition():
    keras.utils.set_random_seed(0)
    return Transition(SMALL)


def test_generator_has_the_original_size():
    assert make_generator(Config(**PRESETS["original"])).count_params() == 953_731


@pytest.mark.parametrize("img_size", [8, 16, 32, 128])
@pytest.mark.parametrize("blobs", [0, 5])
def test_generator_draws_frames_of_any_size(img_size, blobs):
    frames = numpy(make_generator(Config(img_size=img_size, width=2, blobs=blobs))(normal(3, 64)))
    assert frames.shape == (3, img_size, img_size, 3)
    assert 0 <= frames.min() < frames.max() <= 1


@pytest.mark.parametrize("values", [{}, dict(upsampling="transposed"), dict(generator_norm="batch"),
                                    dict(background=False), dict(coordinates=False), dict(blobs=5),
                                    dict(blobs=5, background=False)])
def test_generators_of_every_kind_are_smooth_functions_of_the_latent(values):
    keras.utils.set_random_seed(0)
    generator, latent = make_generator(dataclasses.replace(SMALL, **values)), normal(1, 16)
    here, near, far = (numpy(generator(latent + shift)) for shift in (0, 1e-3, 1))
    assert 0 < np.abs(near - here).max() < 0.01 < np.abs(far - here).max()


def splat(*blobs, size=32):
    """What blobs (x, y, across, down) are to pixels: height and cover [H, W], where they face, own features."""
    keras.utils.set_random_seed(0)
    cover, shape = (numpy(part)[0] for part in Splat(size)(np.float32(blobs).T[None]))
    assert cover.shape == (size, size, 1) and shape.shape == (size, size, 4 + OWN)
    return shape[..., 0], cover[..., 0], shape[..., 1:4], shape[..., 4:]


def test_a_blob_is_moved_by_a_number():
    here, there = splat((-0.25, 0.125, 0.3, 0.2)), splat((-0.25 + 3 / 16, 0.125 - 2 / 16, 0.3, 0.2))
    for before, after in zip(here, there, strict=True):
        np.testing.assert_allclose(after[:-2, 3:], before[2:, :-3], atol=1e-4)  # 3 pixels to the right, 2 up


def test_a_blob_is_as_large_as_it_says():
    height, cover, *_ = splat((1 / 32, 1 / 32, 0.5, 0.25))  # in the middle of pixel 16, 16
    assert height[16, 16] == pytest.approx(1, abs=0.1)
    assert height[0, 0] < -1.9
    assert (height[16] > 0).sum() == pytest.approx(0.5 * 32, abs=2)
    assert (height[:, 16] > 0).sum() == pytest.approx(0.25 * 32, abs=2)
    np.testing.assert_array_equal(cover > 0.5, height > 0)


@pytest.mark.parametrize("radius", [0.15, 0.3, 0.6])
def test_the_edge_of_a_blob_is_sharp_whatever_its_size(radius):
    cover = splat((0, 0, radius, radius), size=64)[1]
    assert 1 <= (np.abs(cover[32] - 0.5) < 0.35).sum() / 2 <= 2, "pixels on either side"
    assert cover[32, 32] > 0.975 and cover[0, 0] < 0.025


def test_a_blob_faces_away_from_its_centre_and_in_its_middle_the_camera():
    _, cover, facing, _ = splat((0, 0, 0.5, 0.25))
    inside, (right, down, toward) = cover > 0.75, np.moveaxis(facing, -1, 0)
    y, x = np.mgrid[:32, :32] - 15.5
    assert (np.sign(right) == np.sign(x))[inside].all() and (np.sign(down) == np.sign(y))[inside].all()
    assert right[16, 23] == pytest.approx(-right[16, 8], abs=1e-4)
    assert right[16, 22] == pytest.approx(down[19, 16], rel=0.15), "as far from the middle, in radii"
    np.testing.assert_allclose((facing**2).sum(-1)[inside], 1, atol=0.02)
    assert toward[16, 16] > 0.97 > 0.6 > toward[inside].min()
    assert facing[0, 0] == pytest.approx([0, 0, 1], abs=0.02), "where there is no thing"


def test_blobs_that_are_close_are_one_and_those_too_small_to_see_are_none():
    far, close = (splat((-x, 0, 0.3, 0.3), (x, 0, 0.3, 0.3))[1] for x in (0.5, 0.29))
    assert far[16, 16] < 0.5 < close[16, 16]
    assert splat((1 / 32, 1 / 32, 0.005, 0.005))[1].max() < 0.5


def test_before_training_there_is_light_where_the_latent_leads_a_blob():
    keras.utils.set_random_seed(0)
    generator, latents = make_generator(Config(blobs=32, width=4, background=False)), normal(4, 64)
    blobs = numpy(generator.get_layer("blobs")(latents))
    frames, covered = numpy(generator(latents)).mean(-1), numpy(Splat(64)(blobs)[0])[..., 0]
    assert 0.05 < (covered > 0.5).mean() < 0.6
    assert frames[covered > 0.95].min() > frames[covered < 0.05].max()


def test_an_edge_has_the_light_of_both_sides_and_what_never_moves_none_of_either():
    scene, background = Scene(still=True), Background(still=True)
    pictures, cover = normal(2, 2, 8, 8, 3), np.zeros((2, 8, 8, 1), "float32")
    cover[:, :, 2:5], cover[:, :, 5:] = 0.75, 1
    scene.build((*(picture.shape for picture in pictures), cover.shape))
    background.build((None, 8, 8, 3))
    moving = np.ones((8, 8, 1))
    moving[:4] = 0
    mean, dark, bright = np.random.default_rng(0).uniform(0.1, 0.9, (3, 8, 8, 3))
    dark[:4] = bright[:4] = mean[:4]
    scene.begin_with(Lights(mean, dark, bright, moving, 1))

    def drawn(light, picture):
        background.begin_with(Lights(light, dark, bright, moving, 1))
        return numpy(keras.ops.sigmoid(background(picture)))

    behind, front = drawn(dark, pictures[0]), drawn(bright, pictures[1])
    front += np.minimum(FADED - along(dark - bright, front - bright), 0) * (dark - bright)
    frames, hidden = (numpy(part) for part in scene([*pictures, cover]))
    np.testing.assert_allclose(frames[:, :, :2], behind[:, :, :2], atol=1e-6)
    np.testing.assert_allclose(frames[:, :, 2:5], (behind + 3 * front)[:, :, 2:5] / 4, atol=1e-6)
    np.testing.assert_allclose(frames[:, :, 5:], front[:, :, 5:], atol=1e-6)
    np.testing.assert_allclose(frames[:, :4], np.broadcast_to(mean[:4], (2, 4, 8, 3)), atol=1e-6)
    np.testing.assert_array_equal(frames[0, :4], frames[1, :4])
    np.testing.assert_allclose(hidden, ((1 - cover) * (front - bright) ** 2).mean((1, 2, 3)), rtol=1e-4)


def test_things_do_not_turn_to_what_is_behind():
    scene, picture = Scene(still=False), np.zeros((1, 8, 8, 3), "float32")
    scene.build((picture.shape, picture.shape, (1, 8, 8, 1)))
    dark, bright = np.float32([0.2, 0.1, 0.3]), np.float32([0.9, 0.5, 0.2])
    scene.begin_with(Lights(None, dark + 0 * picture[0], bright + 0 * picture[0], None, 1))
    wanted = np.float32([dark, bright, 0.8 * bright + 0.2 * dark, bright.clip(0, 1) * [1, 0.9, 1.2]])
    logits = (np.log(wanted / (1 - wanted)) - np.log(bright / (1 - bright)))[:, None, None] + picture
    front = numpy(scene.light([picture, logits])[1])[:, 0, 0]
    np.testing.assert_allclose(front[1:], wanted[1:], atol=1e-5, err_msg="that of a thing, in whatever light")
    np.testing.assert_allclose(front[0], bright + FADED * (dark - bright), atol=1e-5)
    assert along(dark - bright, front - bright).max() == pytest.approx(FADED, abs=1e-4)


def along(way, difference):
    """How far a difference goes along a way, as a share of it; 0 where there is none."""
    return (difference * way).sum(-1, keepdims=True) / ((way**2).sum(-1, keepdims=True) + 1e-6)


def test_what_is_behind_a_thing_is_not_known():
    keras.utils.set_random_seed(0)
    generator, latents = make_generator(dataclasses.replace(SMALL, img_size=32)), normal(40, 16)
    scene = generator.get_layer("background")
    behind, front, cover = (numpy(part) for part in keras.Model(generator.input, scene.input)(latents))
    y, x = np.nonzero((cover[..., 0] == 1).mean(0) > 0.2)
    covered = [cover[:, i, j, 0] == 1 for i, j in zip(y, x, strict=True)]
    assert max(np.ptp(behind[some, i, j], axis=0).max() for some, i, j in zip(covered, y, x, strict=True)) < 1e-5
    assert min(np.ptp(front[some, i, j], axis=0).max() for some, i, j in zip(covered, y, x, strict=True)) > 1e-4
    assert np.ptp(behind, axis=0).max() > 1e-3, "where nothing covers it, it is lit by what is near"


def test_blobs_begin_with_the_area_of_what_moves_and_ride_two_hands_each():
    keras.utils.set_random_seed(0)
    layer = Blobs(5)
    layer.build((None, 20))
    layer.begin_with(Lights(None, None, None, None, 0.5))
    _, _, across, down = numpy(layer(normal(1, 20)))[0, :, :5]
    assert (np.pi * across * down).sum() == pytest.approx(0.5 / FULLER)
    latents = normal(512, 20)

    def moved_by(hand):
        other = latents.copy()
        other[:, [hand, hand + 10]] = normal(512, 2, seed=1)
        return np.abs(numpy(layer(other) - layer(latents))).max(0)

    sideways, upright = moved_by(4), moved_by(5)  # of ten hands those which the third blob of five rides
    assert np.argwhere(sideways > 1e-4).tolist() == [[0, 2]] and sideways.max() > 0.3
    assert np.argwhere(upright > 1e-4).tolist() == [[1, 2]] and upright.max() > 0.7


def test_blobs_that_share_hands_do_not_share_a_way():
    keras.utils.set_random_seed(0)
    x, y = np.moveaxis(numpy(Blobs(8)(normal(2000, 16)))[:, :2, :8], 1, 0)  # on 8 hands
    alike = np.abs(np.corrcoef(x.T, y.T))
    np.testing.assert_array_less(alike[:8, :8] + alike[8:, 8:] - 2 * np.eye(8), 0.2)
    assert alike[:8, 8:].diagonal().max() < 0.1, "not along a slope"


def test_the_glass_pushes_back_what_leans_on_it():
    layer = Blobs(3)
    layer.build((None, 12))
    layer.begin_with(Lights(None, None, None, None, 0.1, (-0.8, 0.8, -0.4, -0.6, 0.4, 0.6)))
    layer.log_radius.assign(np.log(np.full((2, 3), 0.2)))
    within, beyond = np.float32([[0.1, 0.45, -0.47], [-0.65, 0.6, 0.65]]), np.float32([[0, 0.9, -1], [-0.9, 0, 0.8]])
    np.testing.assert_allclose(layer.within(within[None])[0], within, atol=1e-6)
    x, y = numpy(layer.within(beyond[None]))[0]
    np.testing.assert_allclose(y, [-0.7 - 0.3 * 0.2, 0, 0.7 + 0.3 * 0.1], atol=1e-6)
    np.testing.assert_allclose(x[:2], [0, 0.4 + 0.3 * 0.5], atol=1e-6)
    assert -0.65 < x[2] < -0.6, "wider below"


def test_sharpness_says_how_thick_a_neck_between_two_blobs_is(monkeypatch):
    def neck(sharpness):
        layer, blobs = Splat(64), np.float32([(-0.4, 0, 0.4, 0.4), (0.4, 0, 0.4, 0.4)]).T[None]
        layer.build(blobs.shape)
        monkeypatch.setattr(models, "SHARPNESS", sharpness)
        cover = numpy(layer(blobs)[0])[0, ..., 0]
        return (cover[:, 32] > 0.5).sum(), (cover[:, 45] > 0.5).sum()

    (thick, high), (thin, as_high) = neck(2), neck(8)
    assert thin < thick / 1.5 and as_high == pytest.approx(high, abs=1), "the middle of a blob is as it was"


def test_two_more_blobs_lie_at_rest_where_the_footage_has_them():
    layer, rest = Blobs(5), np.float32([[0.1, 0], [0.9, -0.8], [0.6, 0.01], [0.2, 0.01]])
    layer.build((None, 20))
    layer.begin_with(Lights(None, None, None, None, 0.5, rest=rest))
    arrangement = numpy(layer(normal(100, 20)))
    assert arrangement.shape == (100, 4, 7)
    np.testing.assert_allclose(arrangement[..., 5:], rest[None].repeat(100, 0), atol=1e-6)


def test_what_lies_at_rest_swells_and_shrinks_led_by_a_slow_hand_each():
    layer, latents = Blobs(5), normal(50, 20)
    before = numpy(layer(latents))
    breath = np.zeros((2, 4, 2), np.float32)
    breath[1, 3, 1] = 0.1 / models.BREATH  # how high the second one is, by the second number of the second hand
    layer.breath.assign(breath)
    after = numpy(layer(latents))
    grown = np.log(after[:, 3, 6] / before[:, 3, 6])
    first, second = latents[:, 1], latents[:, 11]
    np.testing.assert_allclose(grown, 0.1 * second / np.sqrt((1 + first**2 + second**2) / 2), atol=1e-5)
    after[:, 3, 6] = before[:, 3, 6]
    np.testing.assert_array_equal(after, before)


def test_coordinates_are_two_channels_more_of_a_convolution():
    x, located = normal(2, 5, 7, 4), Coordinates(6)
    places = np.stack(np.meshgrid(np.linspace(-1, 1, 7), np.linspace(-1, 1, 5)), axis=-1)
    plain = keras.layers.Conv2D(6, 3, padding="same")
    added = numpy(located(plain(x)))
    more = keras.layers.Conv2D(6, 3, padding="same")
    more.build((2, 5, 7, 6))
    more.set_weights([np.concatenate([plain.get_weights()[0], located.get_weights()[0]], axis=2), np.zeros(6)])
    with_places = np.concatenate([x, np.broadcast_to(places, (2, 5, 7, 2))], axis=-1)
    np.testing.assert_allclose(numpy(more(with_places)), added, atol=1e-5)
    assert np.abs(added - numpy(plain(x))).max() > 0.1


@pytest.mark.parametrize("blobs", [0, 5])
def test_a_frame_is_drawn_alone_as_among_others_also_in_training(blobs):
    generator, latents = make_generator(dataclasses.replace(SMALL, blobs=blobs)), normal(6, 16)
    np.testing.assert_allclose(numpy(generator(latents, training=True))[2:3], numpy(generator(latents[2:3])), atol=1e-5)


@pytest.mark.parametrize("values, logits", [({}, 9), (dict(frame_logits=False), 5), (dict(differences=False), 9),
                                            (dict(minibatch_std=False), 9), (dict(batch_norm=True), 9)])
def test_discriminator_judges_frames_and_motion(values, logits):
    config = Config(img_size=16, width=4, **values)
    clips = np.random.default_rng(0).uniform(0, 1, (4, 5, 16, 16, 3)).astype("float32")
    assert Discriminator(config)(clips).shape == (4, logits)


def test_discriminator_hears_the_past_but_not_the_future():
    judge = Discriminator(Config(img_size=16, width=4, minibatch_std=False, frame_logits=False))
    clips = np.random.default_rng(0).uniform(0, 1, (2, 5, 16, 16, 3)).astype("float32")
    before = numpy(judge(clips))
    clips[:, 3] = 0
    after = numpy(judge(clips))
    np.testing.assert_allclose(after[:, :3], before[:, :3], atol=1e-6)
    assert np.abs(after[:, 3:] - before[:, 3:]).min() > 1e-6


def test_spread_tells_alike_from_different():
    same = np.repeat(normal(1, 3, 10), 6, axis=0)
    assert spread(same).shape == (6, 3, 1)
    assert numpy(spread(same)).max() < 1e-3
    assert numpy(spread(normal(6, 3, 10))).min() > 0.3


def test_states_stay_on_the_sphere(transition):
    z, h = transition.initial(normal(5, 16))
    assert_on_sphere(z)
    assert not numpy(h).any()
    latents, outputs, (z, h) = transition.roll(normal(5, 7, 16, seed=1), (z, h))
    assert latents.shape == outputs.shape == (5, 7, 16)
    assert z.shape == (5, 16)
    assert h.shape == (5, 12 + 8)  # and how the hands waver
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


def test_a_lamp_does_not_know_of_others(transition):
    first, normals = normal(6, 16), normal(6, 20, 16, seed=1)
    together = transition.roll(normals, transition.initial(first))[0]
    alone = transition.roll(normals[2:3], transition.initial(first[2:3]))[0]
    np.testing.assert_allclose(numpy(together)[2:3], numpy(alone), atol=1e-5)


def test_hands_turn_at_speeds_of_their_own():
    keras.utils.set_random_seed(0)
    transition = Transition(Config(noise=0.0, latent_size=16))
    transition.begin_with(0.1)
    transition.change.kernel.assign(0 * transition.change.kernel)
    start = standardise(normal(5, 16))
    end = numpy(transition(normal(5, 16, seed=1), transition.initial(start))[0])
    before, after = (np.asarray(z)[:, :8] + 1j * np.asarray(z)[:, 8:] for z in (start, end))
    angles = np.angle(after / before)
    np.testing.assert_allclose(angles, angles[:1].repeat(5, 0), atol=1e-5)
    assert (np.diff(angles[0]) > 0.001).all(), "all different"
    assert np.sqrt(np.mean(1 - np.cos(angles))) == pytest.approx(0.1, rel=0.15), "the pace of the footage"


def test_hands_waver_each_in_its_own_way_for_about_a_radian():
    keras.utils.set_random_seed(0)
    transition = Transition(Config(latent_size=128, noise=1e-6))
    transition.begin_with(0.1)  # 0.14 radians a step
    transition.change.kernel.assign(0 * transition.change.kernel)
    latents = numpy(transition.roll(normal(20, 120, 128, seed=1), transition.initial(normal(20, 128)))[0])
    hands = latents[:, 40:, :64] + 1j * latents[:, 40:, 64:]
    angles = np.angle(hands[:, 1:] / hands[:, :-1])
    waver = angles / angles.mean((0, 1)) - 1
    waver = waver.transpose(0, 2, 1)[np.abs(hands).min(1) > 0.5]  # on a short hand all lamps' mean being 0 tells
    assert waver.std() == pytest.approx(WAVER, rel=0.1)
    assert np.mean(waver[:, 7:] * waver[:, :-7]) / waver.var() == pytest.approx(np.exp(-1), abs=0.1)


def test_a_blob_keeps_its_size_and_is_led_by_a_hand_up_and_down():
    keras.utils.set_random_seed(0)
    lead = Blobs(4)
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    latents = 0.01 * normal(60, 16)
    latents[:, 3], latents[:, 11] = (1.2 * wave for wave in (np.cos(angle), np.sin(angle)))
    x, y, across, down = np.moveaxis(numpy(lead(latents))[..., :4], 1, 0)
    assert (across == across[:1]).all() and (down == down[:1]).all()
    assert [round(float(np.ptp(blob)), 1) for blob in y.T] == pytest.approx([0.1, 1.6, 0.1, 0.1], abs=0.11)
    assert np.ptp(x, axis=0).max() < 0.5
    quick, slow = (np.abs(np.diff(numpy(lead(np.float32(length) * latents))[:, 1, 1])).max() for length in (1, 0.5))
    assert slow > 0.6 * quick, "a hand half as long is nearly as quick"
    lead.room.assign([-0.5, 0.3, -1, -1, 1, 1])
    lead.log_radius.assign(np.full((2, 4), -9))
    reach = np.abs(numpy(lead(latents))[:, 1, 1]).max()
    assert 0.9 * 0.4 < reach < 1.2 * 0.4, "through as much of a small glass"


@pytest.mark.parametrize("pace", [0.0, 0.25])
def test_without_noise_the_future_is_certain(pace):
    transition = Transition(Config(noise=0.0, latent_size=16, pace=pace))
    state = transition.initial(normal(2, 16))
    np.testing.assert_array_equal(numpy(transition(normal(2, 16, seed=1), state)[0]),
                                  numpy(transition(normal(2, 16, seed=2), state)[0]))


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
