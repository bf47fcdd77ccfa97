"""Two fluids in a lamp that is heated from below, simulated and drawn: frames for whoever has no footage.

Wax, c = 1, and liquid, c = 0, fill a box; T is the temperature. Per unit of viscosity, with forces F on the flow u:

    dc/dt + u.grad c = M lap(mu),  mu = dE/dc,  E = integral of A c^2 (1 - c)^2 + K/2 |grad c|^2
    0 = -grad p + lap u + F,  div u = 0,  F = mu grad c + B c (T - N) y
    dT/dt + u.grad T = D lap T + heater (hot - T) - lid T - loss T

The first line is the equation of Cahn and Hilliard (1958, https://doi.org/10.1063/1.1744102), carried along by a flow
on which the surface acts with the force mu grad c, as in Jacqmin (1999, https://doi.org/10.1006/jcph.1999.6332). An
interface at rest is c = 1 / (1 + exp(-d / xi)), d being the distance from it, its tension is sigma, where K = 6 sigma
xi and A = 3 sigma / xi. The flow is slow, without inertia; it glides along the walls without friction.

Lengths are in heights of the glass, times in seconds, temperatures in the mean temperature of the heater. Arrays are
[y, x], y up from the floor. Densities lie at the centres of square cells, velocities on their faces (Harlow and Welch,
1965), the stream function at their corners, so that no flow has a divergence and what leaves a cell enters the next.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.fft import dctn, dstn, idctn, idstn
from scipy.sparse import csr_array

FPS = 30  # frames per second, one step each
WARM_UP = 60  # s, several times round the lamp: wax, heat and stirring have come to a balance
ROWS, COLUMNS = 80, 48  # cells; a drop that can still be seen is six across

# The picture. Places are in sides of the frame, from below; lengths in heights of the glass; colours are RGB, 0 to 255.
FOOT, HEAD = 0.10, 0.93  # where the glass begins and ends: there is room for the stand and the cap
BASE, TOP = 0.37, 0.22  # half the width of the glass at its ends: it tapers, and the box is drawn as wide
ROUND, RELIEF = 0.055, 9.0  # how far the wax is rounded from its edges on, and how steeply
GLOW = 0.13  # how far wax lights the liquid
WAX = np.array([[46, 0, 30], [150, 4, 30], [226, 30, 16], [255, 98, 14], [255, 172, 40], [255, 240, 150]])  # by light
LIQUID, LIT = (52, 14, 96), (120, 16, 60)  # violet, and what the wax adds to it close by
ROOM, HALO, METAL = (4, 3, 7), (26, 6, 24), (62, 54, 62)  # dark, what the lamp adds to it close by, its stand


@dataclass(frozen=True)
class Physics:
    """The constants of the equations."""
    share: float = 0.25  # of wax in the box: 15% to be seen, in several bodies, the rest dissolved or in fine threads
    width: float = 0.85 / ROWS  # xi, heights: four cells from 10% to 90% of wax, the least that moves smoothly
    tension: float = 0.06  # sigma, heights/s: wax 0.1 warmer than neutral holds together in drops a tenth across
    diffusion: float = 2.5e-4  # M d^2E/dc^2 in pure wax, heights^2/s: a torn interface heals in xi^2 / this, half a
    # second, and a drop of radius 0.04 dissolves in 6 radius^3 / (xi this), two minutes
    repulsion: float = 1.0  # of wax by lid and sides, in sigma: liquid stays between; the floor takes both alike
    buoyancy: float = 220.0  # B, 1/(height s): a drop of radius 0.1, 0.2 warmer than neutral, rises 0.5 in ten seconds
    neutral: float = 0.5  # N: warmer wax rises, cooler wax sinks
    conduction: float = 2e-4  # D, heights^2/s: a drop of radius 0.1 has cooled in radius^2 / (5.8 D), nine seconds
    heater: float = 0.5  # 1/s at the floor: wax on it is warm in some seconds
    lid: float = 0.25  # 1/s at the lid: wax that has flattened there sinks in some seconds
    reach: float = 0.05  # heights: of heater and lid into the lamp, less than the depth of the pool
    loss: float = 0.035  # 1/s everywhere, through the glass: what does not reach the lid sinks in half a minute
    middle: float = 0.2  # how much hotter than the mean the heater is in its middle: not all plumes rise at the walls
    wander: float = 0.8  # standard deviation of each of four waves in the heater's pattern: no lump lasts, no cycle
    wander_time: float = 8.0  # s that a pattern lasts: about as long as a plume


class Fluids:
    """Wax and heat in a box of cells, and the flow that carries them.

    State: float32 [2, rows, columns], the share c of wax in each cell and the temperature T.
    """

    def __init__(self, physics=None, shape=(ROWS, COLUMNS)):
        self.physics = p = physics or Physics()
        self.rows, self.columns = shape
        self.cell = 1 / self.rows
        waves2, walls2 = (  # -lap, of five points, in cosine and in sine space
            np.add.outer(*(2 * (1 - np.cos(np.pi * np.arange(first, n) / n)) * self.rows**2 for n in shape))
            for first in (0, 1))
        self.biharmonic = np.float32(walls2**2)
        spread = p.diffusion * waves2 / FPS
        self.unmixing = np.float32(spread / (1 + spread * (1 + p.width**2 * waves2)))
        self.stiffness = np.float32(p.width**2 * waves2)
        cooling = (p.conduction * waves2 + p.loss) / FPS
        self.cooling = np.float32(cooling / (1 + cooling))
        self.y = np.float32(np.arange(self.rows) + 0.5)[:, None] * self.cell
        self.x = np.float32(np.arange(self.columns) + 0.5) * self.cell
        self.floor, self.lid = np.exp(-self.y / p.reach), np.exp(-(1 - self.y) / p.reach)

    def step(self, state, hot):
        """The state 1/30 s later; `hot` [columns] is the temperature of the heater."""
        p = self.physics
        c, heat = self.carry(state, *self.flow(state))
        heat = heat + (p.heater / FPS * self.floor * (hot - heat) - p.lid / FPS * self.lid * heat)
        # Diffusion, linearly implicit in cosine space; as changes, of which that of wax has no mean: none is lost.
        waves, heat_waves, well = dctn(np.stack([c, heat, self.well(c)]), axes=(1, 2))
        change = np.stack([self.unmixing * (well + self.stiffness * waves), self.cooling * heat_waves])
        return np.stack([c, heat]) - idctn(change, axes=(1, 2))

    def well(self, c):
        """The local part of dE/dc, in 6 sigma / xi: of the double well, and of the walls that repel wax."""
        well = c * (1 - c) * (1 - 2 * c)
        wall = np.float32(self.physics.repulsion * self.physics.width / self.cell) * c * (1 - c)
        well[-1] += wall[-1]
        well[:, 0] += wall[:, 0]
        well[:, -1] += wall[:, -1]
        return well

    def potential(self, c):
        """mu = dE/dc [rows, columns] of the wax c."""
        p = self.physics
        wide = np.concatenate([c[:, :1], c, c[:, -1:]], 1)
        high = np.concatenate([c[:1], c, c[-1:]])
        laplacian = (wide[:, 2:] + wide[:, :-2] + high[2:] + high[:-2] - 4 * c) / self.cell**2
        return 6 * p.tension / p.width * (self.well(c) - p.width**2 * laplacian)

    def forces(self, state):
        """F on the faces between cells: [rows, columns - 1] to the right, [rows - 1, columns] up."""
        p, (c, heat) = self.physics, state
        mu, lift = self.potential(c), p.buoyancy * c * (heat - p.neutral)
        right = (mu[:, 1:] + mu[:, :-1]) * (c[:, 1:] - c[:, :-1]) / (2 * self.cell)
        up = (mu[1:] + mu[:-1]) * (c[1:] - c[:-1]) / (2 * self.cell) + (lift[1:] + lift[:-1]) / 2
        return right, up

    def flow(self, state):
        """The velocities u [rows, columns - 1] and v [rows - 1, columns] on the faces between cells, in heights/s."""
        right, up = self.forces(state)
        stream = self.stokes((np.diff(up, axis=1) - np.diff(right, axis=0)) / self.cell)
        return np.diff(stream[:, 1:-1], axis=0) / self.cell, -np.diff(stream[1:-1], axis=1) / self.cell

    def stokes(self, curl):
        """The stream function [rows + 1, columns + 1] of a force with this curl [rows - 1, columns - 1] at the corners.

        It solves lap^2 stream = curl, u = d stream/dy, v = -d stream/dx, with free-slip walls: stream = lap stream = 0.
        """
        stream = np.zeros((self.rows + 1, self.columns + 1), curl.dtype)
        stream[1:-1, 1:-1] = idstn(dstn(curl, type=1) / self.biharmonic, type=1)
        return stream

    def carry(self, state, u, v):
        """The state that the velocities u, v carry on for 1/30 s (three stages: Wicker and Skamarock, 2002)."""
        courant = (np.abs(u).max() + np.abs(v).max()) / FPS / self.cell
        parts = max(1, int(np.ceil(courant / 1.4)))  # of the step, each below the limit of stability, 1.6
        across, up = (upwind(w / np.float32(FPS * self.cell * parts)) for w in (u, v))
        for _ in range(parts):
            later = state + self.inflow(state, across, up) / np.float32(3)
            later = state + self.inflow(later, across, up) / np.float32(2)
            state = state + self.inflow(later, across, up)
        return state

    def inflow(self, state, across, up):
        """What flows into each cell [2, rows, columns], by the weights `across` and `up` of `upwind`."""
        gain = np.zeros_like(state)
        wide = np.concatenate([state[..., :1], state, state[..., -1:]], 2)
        flux = sum(w * wide[..., k:self.columns - 1 + k] for k, w in enumerate(across))
        gain[..., :-1] -= flux
        gain[..., 1:] += flux
        high = np.concatenate([state[:, :1], state, state[:, -1:]], 1)
        flux = sum(w * high[:, k:self.rows - 1 + k] for k, w in enumerate(up))
        gain[:, :-1] -= flux
        gain[:, 1:] += flux
        return gain


def upwind(w):
    """The weights of four cells in a row in the flux, of third order, through the middle of them at w cells a step."""
    size = np.abs(w)
    return -(w + size) / 12, (7 * w + 3 * size) / 12, (7 * w - 3 * size) / 12, -(w - size) / 12


def states(seed):
    """Yield the states [2, ROWS, COLUMNS] of a lamp, 30 to the second, for ever."""
    rng, fluids = np.random.default_rng(seed), Fluids()
    p = fluids.physics
    inside = np.full((ROWS, COLUMNS), -np.inf)  # distance from the nearest edge of wax
    while (inside > 0).mean() < 0.5 * p.share:  # the rest is dissolved or in threads, once the lamp is stirred
        radius, x, y = rng.uniform(0.04, 0.1), rng.uniform(0, fluids.x[-1]), rng.uniform(0, 1)
        inside = np.maximum(inside, radius - np.hypot(fluids.x - x, fluids.y - y))
    c = 1 / (1 + np.exp(-np.maximum(inside, -1) / p.width))
    c = 1 - (1 - c) * (1 - p.share) / (1 - c.mean())
    state = np.stack([c, np.broadcast_to(0.5 - 0.35 * fluids.y, c.shape)]).astype(np.float32)
    angle = np.pi * fluids.x / (COLUMNS * fluids.cell)
    shapes = np.sin(np.arange(1, 5)[:, None] * angle)  # of the heater's pattern
    mean, keep = 1 - p.middle * np.cos(2 * angle), np.exp(-1 / FPS / p.wander_time)
    waves = rng.standard_normal(4)
    for step in itertools.count():
        if step >= WARM_UP * FPS:
            yield state
        waves = keep * waves + np.sqrt(1 - keep**2) * rng.standard_normal(4)
        hot = np.maximum(mean + p.wander * (waves @ shapes), 0).astype(np.float32)
        state = fluids.step(state, hot)


class Painter:
    """Draws states as frames of one size; what never moves is drawn once."""

    def __init__(self, img_size):
        self.scene, inside, x, y = still_life(img_size)
        self.pixel = 1 / (HEAD - FOOT) / img_size  # in heights
        self.box = box = tuple(slice(at.min(), at.max() + 1) for at in np.nonzero(inside))  # rows, columns of the glass
        self.inside, self.liquid, y = inside[box][..., None], self.scene[box], y[box[0]]
        half = BASE + (TOP - BASE) * y
        self.sampling = cubic(y * ROWS - 0.5, (x[:, box[1]] / half + 1) * COLUMNS / 2 - 0.5)
        self.gloss = gloss(x[:, box[1]] / half, y) * self.inside
        self.light = np.float32(0.42 - 0.32 * y)  # of the lamp below
        waves2 = ((np.arange(ROWS) * np.pi) ** 2)[:, None] + (np.arange(COLUMNS) * np.pi * ROWS / COLUMNS) ** 2
        self.blur = np.float32(1 / (1 + np.array([ROUND, GLOW])[:, None, None] ** 2 * waves2))
        levels = np.linspace(0, len(WAX) - 1, 256)
        self.ramp = np.stack([np.interp(levels, range(len(WAX)), c) for c in WAX.T], axis=1).astype(np.float32)

    def paint(self, state):
        """The frame uint8 [img_size, img_size, 3] of a state."""
        edge, light, glow = self.sample(state)
        cover = np.clip(edge / self.pixel + 0.5, 0, 1)[..., None] * self.inside
        wax = self.ramp[np.clip(255 * (self.light + light), 0, 255).astype(np.uint8)]
        liquid = self.liquid + (glow[..., None] * self.inside) * np.float32(LIT)
        frame = self.scene.copy()
        frame[self.box] = liquid + cover * (wax - liquid) + self.gloss
        return np.clip(frame + 0.5, 0, 255).astype(np.uint8)

    def sample(self, state):
        """[3, h, w], at each pixel of the box: distance from the edge of the wax (heights, negative outside), light on
        the wax, light on the liquid.
        """
        c, heat = state
        share = np.clip(c, 0.02, 0.98)
        edge = np.float32(Physics.width) * np.log(share / (1 - share))
        up, right = slopes(edge * ROWS)
        edge /= np.maximum(np.sqrt(up * up + right * right), 0.4)  # a flow may have made the interface wider than xi
        relief, glow = idctn(dctn(c) * self.blur, axes=(1, 2))
        up, right = slopes(RELIEF * relief)
        toward = 1 / np.sqrt(1 + up * up + right * right)  # part of the normal that points at the eye; up of it, down
        light = (0.30 * up + 0.36) * toward + 0.30 * (heat - 0.45)  # lit from below, and hot wax glows
        fields = self.sampling @ np.stack([edge, light, glow], axis=-1).reshape(-1, 3)
        return fields.T.reshape(3, *self.inside.shape[:2])


def slopes(field):
    """How a field rises from cell to cell, up and to the right."""
    up, right = np.zeros_like(field), np.zeros_like(field)
    up[1:-1] = (field[2:] - field[:-2]) / 2
    right[:, 1:-1] = (field[:, 2:] - field[:, :-2]) / 2
    return up, right


def cubic(up, across):
    """The matrix [h w, ROWS COLUMNS] that interpolates values at cells to pixels at up [h, 1], across [h, w], in cells.

    By the cubic of Keys (1981, https://doi.org/10.1109/TASSP.1981.1163711); beyond the walls the cells are mirrored.
    """
    def weights(place, n):
        first = np.floor(place) - 1
        places = first[..., None] + np.arange(4)
        t = np.abs(place[..., None] - places)
        weight = np.where(t < 1, 1 + t**2 * (1.5 * t - 2.5), 2 - 4 * t + t**2 * (2.5 - 0.5 * t))
        places = np.where(places < 0, -1 - places, places)
        return np.clip(np.where(places >= n, 2 * n - 1 - places, places), 0, n - 1).astype(int), weight

    (row, by_row), (column, by_column) = weights(up, ROWS), weights(across, COLUMNS)
    cells = (row[..., :, None] * COLUMNS + column[..., None, :]).reshape(-1)
    weight = np.float32(by_row[..., :, None] * by_column[..., None, :]).reshape(-1)
    return csr_array((weight, cells, np.arange(0, len(cells) + 1, 16)), shape=(len(cells) // 16, ROWS * COLUMNS))


def bell(z, width):
    """1 at z = 0, 0 some widths off."""
    return np.exp(-((z / width) ** 2))


def gloss(across, y):
    """What the glass reflects of the room, RGB [h, w, 3]; `across` is -1 at its left side, 1 at its right."""
    shine = 30 * bell(across + 0.72, 0.10) * bell(y - 0.62, 0.38) + 14 * bell(across - 0.80, 0.07) * bell(y - 0.5, 0.4)
    return np.float32(shine[..., None] * np.array([0.9, 0.8, 1.0]))


def still_life(size):
    """The lamp without its wax [size, size, 3], the share of each pixel inside the glass, and x [1, size], y [size, 1]
    of each pixel.
    """
    height, line = HEAD - FOOT, (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = (line[None] - 0.5) / height, (1 - line[:, None] - FOOT) / height
    half = BASE + (TOP - BASE) * y

    def within(low, high, wide):
        """Antialiased shape: y from `low` to `high`, |x| below `wide`."""
        edge = np.minimum(np.minimum(y - low, high - y), wide - np.abs(x))
        return np.clip(edge * height * size + 0.5, 0, 1)

    glass, stand, cap = within(0, 1, half), within(-1, 0, BASE + 0.015 + 0.25 * y), within(1, 1.055, 0.63 - 0.4 * y)
    halo = np.exp(-np.maximum(np.abs(x) - half, 0) / 0.08) * bell(y - 0.4, 0.7)
    shine = 0.25 + bell(x + 0.15, 0.08) + 0.5 * bell(x - 0.2, 0.05)
    rim = (0.55 + 0.6 * (x / half) ** 4) * (1.3 - 0.75 * y)  # liquid is brightest at the walls and below
    scene = np.float32(ROOM) + halo[..., None] * np.float32(HALO)
    for share, light, color in ((stand, shine, METAL), (cap, shine, METAL), (glass, rim, LIQUID)):
        scene += share[..., None] * ((light + 0 * y)[..., None] * np.float32(color) - scene)
    return scene, glass, x, y


def frames(img_size=64, seed=0):
    """Frames of the simulated lamp: smooth, stationary from the first frame on, and never the same again.

    Args:
        img_size: height and width of a frame in pixels; changes the drawing, never the motion.
        seed: of the start and of the heater. On one machine the same seed gives the same frames; another processor may
            round otherwise, and a lamp is chaotic.

    Returns:
        An endless iterator of uint8 RGB frames [img_size, img_size, 3], 30 to a second.
    """
    painter = Painter(img_size)
    for state in states(seed):
        yield painter.paint(state)
