"""The simulated lamp: the same for the same seed, a lamp to the eye, and neither fading nor repeating."""

import itertools

import cv2
import numpy as np
import pytest

from lamp import frames


def film(n, img_size=64, seed=0):
    return np.stack(list(itertools.islice(frames(img_size, seed), n)))


def is_wax(clip):
    """Where the picture glows: red far above blue."""
    clip = clip.astype(np.int16)
    return (clip[..., 0] > 130) & (clip[..., 0] > clip[..., 2] + 60)


def bodies(mask):
    """The number of separate bodies of wax in a mask [H, W], single pixels aside."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return int((stats[1:, cv2.CC_STAT_AREA] >= 4).sum())


@pytest.fixture(scope="module")
def minutes():
    """Every 6th frame of 4 minutes, as the model sees them: [1200, 64, 64, 3]."""
    return np.stack(list(itertools.islice(frames(), 0, 7200, 6)))


@pytest.fixture(scope="module")
def starts():
    """The first frames of 10 lamps: [10, 64, 64, 3]."""
    return np.stack([film(1, seed=seed)[0] for seed in range(10)])


def test_frames_are_images_of_the_size_asked_for():
    for size in (16, 50):
        clip = film(2, size)
        assert clip.shape == (2, size, size, 3) and clip.dtype == np.uint8


def test_same_seed_same_frames_however_many_are_taken():
    long = film(70)  # more than two of the chunks frames are painted in
    np.testing.assert_array_equal(film(33), long[:33])


def test_seeds_differ_from_the_first_frame_on(starts):
    for a, b in itertools.combinations(starts.astype(float), 2):
        assert np.abs(a - b).mean() > 10


def test_other_size_draws_the_same_scene():
    small = film(40)
    large = np.stack([cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA) for frame in film(40, 128)])
    assert np.abs(small - large.astype(float)).mean((1, 2, 3)).max() < 1


def test_wax_is_yellow_below_and_red_above(minutes):
    wax = is_wax(minutes)
    below = minutes[:, 50:57][wax[:, 50:57]].mean(0)
    above = minutes[:, 6:13][wax[:, 6:13]].mean(0)
    assert below[0] > 230 and 130 < below[1] < 230 and below[2] < 100
    assert above[0] > 180 and above[1] < 80 and above[2] < 60


def test_liquid_is_violet_and_the_room_dark(minutes):
    glass = minutes[:, 12:50, 26:38].reshape(-1, 3).astype(int)
    liquid = np.median(glass[glass[:, 0] < 80], axis=0)
    assert liquid[2] > liquid[0] > 2 * liquid[1]
    for corner in (minutes[:, :6, :6], minutes[:, :6, -6:], minutes[:, -6:, :6], minutes[:, -6:, -6:]):
        assert corner.max() < 25


def test_only_the_inside_of_the_glass_moves(minutes):
    moving = (minutes.max(0) != minutes.min(0)).any(-1)
    assert not moving[:4].any() and not moving[-6:].any() and not moving[:, :10].any() and not moving[:, -10:].any()
    assert moving[6:56, 26:38].all()


def test_movement_is_slow_and_smooth(minutes):
    change = np.abs(np.diff(minutes.astype(int), axis=0)).mean((1, 2, 3))
    assert 1.5 < change.mean() < 2.5
    assert change.max() < 3 * change.mean() and change.min() > 0.2 * change.mean()  # no jumps, no standstill
    # Without jitter six small steps go one way: together nearly as far as their sum.
    clip = film(301).astype(int)
    steps = np.abs(np.diff(clip, axis=0)).mean()
    assert np.abs(clip[6:] - clip[:-6]).mean() > 0.8 * 6 * steps


def test_several_bodies_that_merge_and_part(minutes):
    counts = np.array([bodies(mask) for mask in is_wax(minutes)])
    assert (counts >= 3).mean() > 0.85 and (counts <= 1).mean() < 0.02
    change = np.diff(counts)
    assert (change < 0).sum() > 60 and (change > 0).sum() > 60  # one of each in 4 s, at least


def test_stationary(minutes):
    wax = is_wax(minutes)
    for part in np.array_split(np.arange(len(minutes)), 3):
        assert minutes[part].mean() == pytest.approx(minutes.mean(), rel=0.05)
        assert wax[part].mean() == pytest.approx(wax.mean(), rel=0.05)
        rows = wax[part].mean((0, 2)) / wax[part].mean() / 64
        columns = wax[part].mean((0, 1)) / wax[part].mean() / 64
        quarters = [rows[low:low + 13].sum() for low in (6, 19, 32, 45)]
        assert min(quarters) > 0.1 and max(quarters) < 0.5  # not all under the lid, nor all on the floor
        assert 0.3 < columns[:32].sum() < 0.7  # nor along one wall


def test_start_is_like_any_other_time(minutes, starts):
    assert starts.mean() == pytest.approx(minutes.mean(), rel=0.05)
    assert is_wax(starts).mean() == pytest.approx(is_wax(minutes).mean(), rel=0.1)
    rows, later = is_wax(starts).mean((0, 2)), is_wax(minutes).mean((0, 2))
    assert rows[:32].sum() / rows.sum() == pytest.approx(later[:32].sum() / later.sum(), abs=0.1)


def test_never_repeats(minutes):
    small = np.stack([cv2.resize(frame, (16, 16), interpolation=cv2.INTER_AREA) for frame in minutes])
    states = small.reshape(len(small), -1).astype(float)
    states -= states.mean(0)
    power = (states**2).sum(1).mean()
    likeness = states @ states.T / power
    lags = range(75, len(states) // 2)  # 15 s and more
    assert max(abs(np.diagonal(likeness, lag).mean()) for lag in lags) < 0.3
    # Nor does any single frame come again: the nearest one 15 s off is much farther than the next step.
    distance = np.sqrt(np.maximum(np.diag(likeness)[:, None] + np.diag(likeness) - 2 * likeness, 0))
    step = np.diagonal(distance, 1).mean()
    assert distance[np.triu_indices(len(states), 75)].min() > 2 * step
