"""The simulated lamp: its equations against known results, its footage to the eye and over time."""

import itertools

import cv2
import numpy as np
import pytest
from scipy.fft import dctn, idctn

from simulator import COLUMNS, FPS, ROWS, Fluids, Painter, Physics, frames, states

pytestmark = pytest.mark.slow

STILL = dict(buoyancy=0.0, heater=0.0, lid=0.0, loss=0.0)
STEPS, EVERY = 10_000, 10


def simulated(n, img_size=64, seed=0):
    return np.stack(list(itertools.islice(frames(img_size, seed), n)))


def drop(fluids, x=0.3, y=0.5, across=0.15, up=0.15):
    """Wax [rows, columns] in the shape of an ellipse with these half axes."""
    place = np.hypot((fluids.x - x) / across, (fluids.y - y) / up)
    return 1 / (1 + np.exp((place - 1) * np.sqrt(across * up) / fluids.physics.width))


def at_rest(fluids, c, steps):
    """The wax after `steps` steps without heat."""
    state = np.stack([c, 0 * c]).astype(np.float32)
    for _ in range(steps):
        state = fluids.step(state, 0 * fluids.x)
    return state


def axes(fluids, c):
    """The larger and the smaller half axis of an ellipse with the second moments of the wax c."""
    y, x = np.nonzero(c > 0.5)
    moments = np.cov(np.stack([x, y]) * fluids.cell)
    return 2 * np.sqrt(np.linalg.eigvalsh(moments)[::-1])


def wax_of(clip):
    """Where the picture shows wax: red far above blue."""
    clip = clip.astype(np.int16)
    return (clip[..., 0] > 120) & (clip[..., 0] > clip[..., 2] + 60)


@pytest.fixture(scope="module")
def minutes():
    """Every 10th state of 10,000 steps: [1000, 2, ROWS, COLUMNS]."""
    return np.stack(list(itertools.islice(states(0), 0, STEPS, EVERY)))


@pytest.fixture(scope="module")
def clip():
    """The first 5 seconds of footage: [150, 64, 64, 3]."""
    return simulated(150)


@pytest.fixture(scope="module")
def pictures(minutes):
    """The frames of these states: [1000, 64, 64, 3]."""
    painter = Painter(64)
    return np.stack([painter.paint(state) for state in minutes])


def test_stream_function_of_a_known_flow():
    """s(t) = t - 2 t^3 + t^4 vanishes at walls, and so does its curvature: it is no wave of the sine transform."""
    def error(rows):
        fluids = Fluids(shape=(rows, rows * COLUMNS // ROWS))
        x = np.arange(fluids.columns + 1) / fluids.columns
        y = np.arange(rows + 1)[:, None] / rows
        wide = COLUMNS / ROWS

        def s(t):
            return t - 2 * t**3 + t**4

        def bend(t):
            return 12 * (t**2 - t)

        curl = 24 / wide**4 * s(y) + 2 * bend(x) * bend(y) / wide**2 + 24 * s(x)
        expected = s(x) * s(y)
        return np.abs(fluids.stokes(curl[1:-1, 1:-1]) - expected).max() / expected.max()

    assert error(ROWS) < 1e-3
    assert error(ROWS) < 0.3 * error(ROWS // 2)  # of second order


def test_flow_has_no_divergence_and_carries_what_is_even_nowhere(minutes):
    fluids, rest = Fluids(), np.ones((2, ROWS, COLUMNS), np.float32)
    for state in minutes[::200]:
        u, v = fluids.flow(state)
        divergence = np.diff(np.pad(u, ((0, 0), (1, 1))), axis=1) + np.diff(np.pad(v, ((1, 1), (0, 0))), axis=0)
        assert np.abs(divergence).max() < 1e-5 * np.abs(v).max()
        np.testing.assert_allclose(fluids.carry(rest, u, v), 1, atol=1e-5)


def energy(fluids, c):
    """E, walls included: falls where nothing heats and nothing lifts."""
    p, c = fluids.physics, c.astype(float)
    slopes2 = (np.diff(c, axis=0) ** 2).sum() + (np.diff(c, axis=1) ** 2).sum()
    inside = (3 * p.tension / p.width * (c * (1 - c)) ** 2).sum() * fluids.cell**2 + 3 * p.tension * p.width * slopes2
    s = c * c * (3 - 2 * c)
    walls = s[-1].sum() + s[:, 0].sum() + s[:, -1].sum()
    return inside + p.tension * p.repulsion * fluids.cell * walls


def test_free_energy_falls_without_heat():
    fluids = Fluids(Physics(**STILL))
    state = np.stack([np.maximum(drop(fluids, 0.2, 0.4, 0.15, 0.05), drop(fluids, 0.4, 0.55, 0.07, 0.2)),
                      np.zeros((ROWS, COLUMNS))]).astype(np.float32)
    energies = [energy(fluids, state[0])]
    for _ in range(300):
        state = fluids.step(state, 0 * fluids.x)
        energies.append(energy(fluids, state[0]))
    assert np.diff(energies).max() <= 1e-6 * energies[0]
    assert energies[-1] < 0.95 * energies[0]


def test_energy_of_a_flat_interface_is_its_tension():
    fluids = Fluids(Physics(repulsion=0.0))
    c = 1 / (1 + np.exp((fluids.y - 0.5) / fluids.physics.width)) + 0 * fluids.x
    assert energy(fluids, c) == pytest.approx(fluids.physics.tension * COLUMNS / ROWS, rel=0.03)


def test_drop_becomes_round_and_stays_so():
    fluids = Fluids(Physics(**STILL | dict(tension=0.3)))
    oval = drop(fluids, across=0.15, up=0.1)
    long, short = axes(fluids, oval)
    assert long / short > 1.4
    long, short = axes(fluids, at_rest(fluids, oval, 300)[0])
    assert long / short < 1.02


def test_pressure_in_a_drop_is_that_of_laplace():
    for radius in (0.12, 0.18):
        fluids = Fluids(Physics(**STILL))
        state = at_rest(fluids, drop(fluids, across=radius, up=radius), 300)
        right, up = (np.pad(force, pad) for force, pad in zip(
            fluids.forces(state), (((0, 0), (1, 1)), ((1, 1), (0, 0))), strict=True))
        divergence = (np.diff(right, axis=1) + np.diff(up, axis=0)) / fluids.cell
        waves = [2 * (np.cos(np.pi * np.arange(n) / n) - 1) / fluids.cell**2 for n in (ROWS, COLUMNS)]
        laplacian = waves[0][:, None] + waves[1]
        laplacian[0, 0] = np.inf  # a pressure is known but for a constant
        pressure = idctn(dctn(divergence) / laplacian)
        size = np.sqrt((state[0] > 0.5).sum() / np.pi) * fluids.cell
        jump = pressure[ROWS // 2, COLUMNS // 2] - pressure[2, 2]
        assert jump == pytest.approx(fluids.physics.tension / size, rel=0.1)
        assert max(np.abs(w).max() for w in fluids.flow(state)) < 0.01 * fluids.physics.tension  # it rests


def test_heat_stays_without_heater_and_losses(minutes):
    fluids = Fluids(Physics(heater=0.0, lid=0.0, loss=0.0))
    state = minutes[0]
    for _ in range(300):
        state = fluids.step(state, 0 * fluids.x)
    assert state[1].mean(dtype=float) == pytest.approx(minutes[0, 1].mean(dtype=float), rel=1e-4)
    assert np.abs(state[1] - minutes[0, 1]).mean() > 0.01  # though it went elsewhere


def test_wax_stays(minutes):
    wax = minutes[:, 0].mean((1, 2), dtype=float)
    assert wax == pytest.approx(Physics().share, rel=1e-3)
    assert minutes[:, 0].min() > -0.2 and minutes[:, 0].max() < 1.2


def test_frames_are_images_of_the_size_asked_for(minutes):
    for size in (16, 50, 200):
        frame = Painter(size).paint(minutes[0])
        assert frame.shape == (size, size, 3) and frame.dtype == np.uint8


def test_same_seed_same_frames(clip):
    np.testing.assert_array_equal(simulated(3), clip[:3])


def test_other_size_draws_the_same_scene(clip):
    large = np.stack([cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA) for frame in simulated(40, 128)])
    assert np.abs(clip[:40] - large.astype(float)).mean((1, 2, 3)).max() < 1


def test_edges_are_antialiased(minutes):
    """A small frame is nearly the mean of what a large one shows in each of its pixels."""
    small, large = Painter(64), Painter(512)
    for state in minutes[::250]:
        fine = cv2.resize(large.paint(state), (64, 64), interpolation=cv2.INTER_AREA).astype(float)
        coarse = large.paint(state)[4::8, 4::8]  # without antialiasing
        assert np.abs(small.paint(state) - fine).mean() < 0.5 * np.abs(coarse - fine).mean()


def test_only_the_inside_of_the_glass_moves(pictures):
    moving = (pictures.max(0) != pictures.min(0)).any(-1)
    assert not moving[:4].any() and not moving[-6:].any() and not moving[:, :10].any() and not moving[:, -10:].any()
    assert moving[6:56, 26:38].all()
    for corner in (pictures[:, :6, :6], pictures[:, :6, -6:], pictures[:, -6:, :6], pictures[:, -6:, -6:]):
        assert corner.max() < 25


def test_wax_is_yellow_below_and_red_above(pictures):
    wax = wax_of(pictures)
    below = pictures[:, 50:57][wax[:, 50:57]].mean(0)
    above = pictures[:, 6:13][wax[:, 6:13]].mean(0)
    assert below[0] > 220 and below[1] > 110 > above[1] and above[0] > 180


def test_drops_merge_and_part(minutes):
    counts, largest = [], []
    for wax in minutes[:, 0] > 0.5:
        _, _, found, _ = cv2.connectedComponentsWithStats(wax.astype(np.uint8))
        areas = np.sort(found[1:, cv2.CC_STAT_AREA])
        counts.append((areas >= 12).sum())
        largest.append(areas[-1] / areas.sum())
    counts, one = np.array(counts), np.array(largest) > 0.93
    assert counts.min() >= 1 and counts.mean() > 2
    assert one.mean() < 0.2
    assert max([0, *(sum(1 for _ in run) for lump, run in itertools.groupby(one) if lump)]) < 40 * FPS / EVERY
    assert (np.diff(counts) < 0).sum() > 30 and (np.diff(counts) > 0).sum() > 30


def test_two_halves_are_alike(minutes, pictures):
    """Each is a hundred and sixty seconds: some fifteen trips of the wax."""
    seen = wax_of(pictures)
    for half in (slice(None, len(minutes) // 2), slice(len(minutes) // 2, None)):
        assert pictures[half].mean() == pytest.approx(pictures.mean(), rel=0.05)
        assert seen[half].mean() == pytest.approx(seen.mean(), rel=0.15)
        assert minutes[half, 1].mean() == pytest.approx(minutes[:, 1].mean(), rel=0.1)
        rows = seen[half].mean((0, 2)) / seen[half].mean() / 64
        assert [rows[low:low + 17].sum() for low in (6, 23, 40)] == pytest.approx(
            [(seen.mean((0, 2)) / seen.mean() / 64)[low:low + 17].sum() for low in (6, 23, 40)], abs=0.15)
        columns = seen[half].mean((0, 1)) / seen[half].mean() / 64
        assert 0.3 < columns[:32].sum() < 0.7
        motion = np.abs(np.diff(pictures[half].astype(int), axis=0)).mean()
        assert motion == pytest.approx(np.abs(np.diff(pictures.astype(int), axis=0)).mean(), rel=0.2)


def test_start_is_like_any_other_time(minutes):
    """Of three lamps, each another."""
    painter = Painter(64)
    first = [next(states(seed)) for seed in (1, 2)] + [minutes[0]]
    seen = wax_of(np.stack([painter.paint(state) for state in first])).mean((1, 2))
    later = wax_of(np.stack([painter.paint(state) for state in minutes[::20]])).mean((1, 2))
    assert abs(seen.mean() - later.mean()) < 2 * later.std()
    heat, warmth = np.mean([state[1].mean() for state in first]), minutes[:, 1].mean((1, 2))
    assert abs(heat - warmth.mean()) < 2 * warmth.std()


def test_movement_is_slow_and_smooth(minutes, clip):
    # Without jitter six small steps go one way: together nearly as far as their sum.
    clip = clip.astype(int)
    steps = np.abs(np.diff(clip, axis=0)).mean()
    assert np.abs(clip[6:] - clip[:-6]).mean() > 0.8 * 6 * steps
    change = np.abs(np.diff(minutes[:, 0], axis=0)).mean((1, 2))
    assert change.max() < 5 * change.mean() and change.min() > 0.1 * change.mean()  # no jumps, no standstill


def test_never_repeats(minutes):
    small = minutes[:, 0].reshape(len(minutes), 10, ROWS // 10, 6, COLUMNS // 6).mean((2, 4)).reshape(len(minutes), -1)
    small -= small.mean(0)
    likeness = small @ small.T / (small**2).sum(1).mean()
    lags = range(20 * FPS // EVERY, len(small) // 2)
    assert max(abs(np.diagonal(likeness, lag).mean()) for lag in lags) < 0.35
    # Nor does any single state come again: the nearest one 20 s off is much farther than the next step.
    distance = np.sqrt(np.maximum(np.diag(likeness)[:, None] + np.diag(likeness) - 2 * likeness, 0))
    step = np.diagonal(distance, 1).mean()
    assert distance[np.triu_indices(len(small), lags[0])].min() > 2 * step
