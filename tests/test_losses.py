"""Each term of the losses against its closed form, and what each penalty can and cannot see."""

import keras
import numpy as np
import pytest

import losses

NORMAL = np.random.default_rng(0).standard_normal((4096, 3, 8)).astype("float32")  # [B, T, Z]


value = keras.ops.convert_to_numpy


@pytest.mark.parametrize("name, d_adv", [("standard", 2 * np.log(2)), ("relativistic", np.log(2))])
def test_adversarial_losses_at_chance_and_of_certain_logits(name, d_adv):
    zeros, sure = np.zeros((4, 5), "float32"), np.full((1, 1), 1e4, "float32")
    assert [*map(value, losses.ADVERSARIAL[name](zeros, zeros))] == pytest.approx([d_adv, np.log(2)])
    d_adv, g_adv = map(value, losses.ADVERSARIAL[name](sure, -sure))
    assert d_adv == 0
    assert 1e4 <= g_adv < np.inf


def test_adversarial_losses_are_binary_cross_entropy():
    real, fake = np.float32([[2.0, -1.0]]), np.float32([[0.5, -3.0]])
    p_real, p_fake, p_first = (1 / (1 + np.exp(-logits)) for logits in (real, fake, real - fake))
    expected = -np.log(p_real).mean() - np.log(1 - p_fake).mean(), -np.log(p_fake).mean()
    np.testing.assert_allclose([*map(value, losses.standard(real, fake))], expected, rtol=1e-5)
    expected = -np.log(p_first).mean(), -np.log(1 - p_first).mean()
    np.testing.assert_allclose([*map(value, losses.relativistic(real, fake))], expected, rtol=1e-5)


def brightening(starts, change, steps=4):
    """Clips [B, T, 16, 16, 3] of plain frames that begin at `starts` and brighten by `change` a step."""
    return (starts[:, None] + change * np.arange(steps))[..., None, None, None] * np.ones((16, 16, 3), "float32")


def test_thumbnails_are_mean_colours_of_fields():
    clips = np.random.default_rng(0).random((2, 3, 64, 128, 3), "float32")
    fields = clips.reshape(2, 3, 32, 2, 32, 4, 3).mean((3, 5)).reshape(2, 3, -1)
    np.testing.assert_allclose(value(losses.thumbnails(clips)), fields, rtol=1e-5)
    small = clips[:, :, :16, :16]
    np.testing.assert_array_equal(value(losses.thumbnails(small)), small.reshape(2, 3, -1))


def test_distance_penalty_is_the_wasserstein_distance_of_each_kind():
    starts = np.random.default_rng(0).random(64).astype("float32")
    real, double, still, alike = (losses.thumbnails(brightening(*given)) for given in (
        (starts, 0.1), (starts, 0.2), (starts, 0.0), (np.zeros_like(starts), 0.1)))
    assert value(losses.distance_penalty(real, real)) == 0
    assert value(losses.distance_penalty(real[::-1], real)) == pytest.approx(0, abs=1e-5), "in whatever order"
    assert value(losses.distance_penalty(double, real)) == pytest.approx(2, rel=0.01), "twice as fast, as are fields"
    assert value(losses.distance_penalty(still, real)) == pytest.approx(2, rel=0.01), "at rest, as are fields"
    assert value(losses.distance_penalty(alike, real)) == pytest.approx(1, rel=0.01), "all clips the same"


def test_distance_penalty_sees_where_a_frame_changes():
    starts = np.random.default_rng(0).random(64).astype("float32")
    steady, local = brightening(starts, 0.1), brightening(starts, 0.0)
    local[:, :, :4] += 0.2 * np.arange(4)[:, None, None, None]  # a quarter of the frame, twice as fast
    steady, local = (losses.thumbnails(clips) for clips in (steady, local))
    whole, even = (value(next(losses.distances(clips))) for clips in (local, steady))
    np.testing.assert_allclose(whole, even, rtol=0.01)
    assert value(losses.distance_penalty(local, steady)) == pytest.approx(1, rel=0.05), "each field is 0.1 off"


def test_distance_penalty_sees_clips_that_rest_and_jump():
    starts = np.random.default_rng(0).random(64).astype("float32")
    real, jumping = brightening(starts, 0.1), brightening(starts, 0.0)
    jumping[::8, 2:] += 2.4  # eight clips of 64, of one step in three: as fast on average
    real, jumping = (losses.thumbnails(clips) for clips in (real, jumping))
    change, no_change = (np.mean(value(next(losses.distances(clips)))) for clips in (real, jumping))
    assert no_change == pytest.approx(change, rel=0.01)
    assert value(losses.distance_penalty(jumping, real)) > 1.5


def test_gradient_penalty_is_half_the_squared_length():
    gradients = np.zeros((2, 3, 4), "float32")
    gradients[0, 0, 0], gradients[1, 2, :2] = 3, 1  # squared lengths 9 and 2
    assert value(losses.gradient_penalty(gradients)) == pytest.approx(0.5 * (9 + 2) / 2)


def test_moments_of_known_numbers():
    x = np.float32([[1.0], [1.0], [1.0], [5.0]])
    mean, std, skewness, kurtosis = (value(m) for m in losses.moments(x, axis=0))
    assert mean == pytest.approx(2)
    assert std == pytest.approx(np.sqrt(3))
    assert skewness == pytest.approx(6 / 3**1.5)  # (-1 - 1 - 1 + 27) / 4
    assert kurtosis == pytest.approx(21 / 9)  # (1 + 1 + 1 + 81) / 4


def test_pooled_normality_is_the_sum_of_the_four_squared_errors():
    x = np.float32([1, 1, 1, 5]).reshape(2, 1, 2)
    expected = 2**2 + (np.sqrt(3) - 1) ** 2 + (6 / 3**1.5) ** 2 + (21 / 9 - 3) ** 2
    assert value(losses.pooled_normality(x)) == pytest.approx(expected, rel=1e-4)


def test_pooled_normality_takes_each_step_by_itself():
    shifted = np.concatenate([NORMAL - 1, NORMAL + 1], axis=1)  # over both steps the mean would be 0
    assert value(losses.pooled_normality(shifted)) == pytest.approx(1, abs=0.02)


def test_chains_normality_of_each_moment():
    assert value(losses.chains_normality(NORMAL)) == pytest.approx(0, abs=0.01)
    assert value(losses.chains_normality(NORMAL + 0.5)) == pytest.approx(0.25, abs=0.02)
    assert value(losses.chains_normality(NORMAL * 3)) == pytest.approx(4, abs=0.3)
    uniform = np.random.default_rng(1).uniform(-np.sqrt(3), np.sqrt(3), NORMAL.shape).astype("float32")
    assert value(losses.chains_normality(uniform)) == pytest.approx(0.01 * (1.8 - 3) ** 2, abs=0.005)
    skewed = np.random.default_rng(1).exponential(1, NORMAL.shape).astype("float32") - 1  # skewness 2, kurtosis 9
    assert value(losses.chains_normality(skewed)) == pytest.approx(0.1 * 4 + 0.01 * 36, rel=0.3)


def test_chains_normality_of_correlated_coordinates():
    alike = np.repeat(NORMAL[..., :1], 8, axis=-1)  # each correlation 1: seven others a row, a tenth each
    assert value(losses.chains_normality(alike)) == pytest.approx(0.7, abs=0.05)


def test_chains_normality_of_few_chains_is_least_at_a_deviation_of_1():
    few = np.random.default_rng(0).standard_normal((256, 20, 64), "float32")
    values = [value(losses.chains_normality(few * deviation)) for deviation in np.float32([0.95, 0.98, 1, 1.02, 1.05])]
    assert np.argmin(values) == 2


def test_only_chains_normality_sees_chains_at_the_same_state():
    together = np.repeat(np.random.default_rng(2).standard_normal((1, 20, 64)), 256, axis=0).astype("float32")
    assert value(losses.pooled_normality(together)) < 0.4
    assert value(losses.chains_normality(together)) > 1  # no spread: (0 - 1)^2 at least
