"""The simulated lava lamp: frames for whoever has no footage.

Blobs of wax ride a cycle of heat: warmed on the floor of the glass they let go of the pool and rise, cooled under
the lid they let go of it and sink. Lengths are in heights of the glass, times in seconds, temperatures go from
0 (coldest) to 1 (hottest); x is 0 on the axis of the glass, y is 0 on its floor and 1 at its lid.
"""

import itertools

import numpy as np

FPS = 30  # frames per second, as footage has
WARM_UP = 60.0  # s: a round trip of a blob; frames 10 s apart are no more alike than any two

# The wax and its glass.
RADII = np.geomspace(0.125, 0.035, 15)  # of the blobs: several sizes; more would close the gaps between them
POOL = 0.36, 0.085  # half width and height of the wax that always lies over the heater
FLOOR, LID = 0.40, 0.24  # half the width of the glass at its ends: it tapers

# Heat.
REACH = 0.16  # of the heater below and of the cool lid above; in between wax keeps its temperature
EXCHANGE = 0.018  # 1/s for a blob of radius 1; a small one has more surface for its volume and is quicker
NEUTRAL = 0.5  # temperature at which wax weighs as much as the liquid

# Motion. Forces are accelerations: per s^2.
BUOYANCY = 1.0  # for each degree above NEUTRAL
GRIP = 0.25  # of pool and lid; less than half of BUOYANCY, so that heat or cold always frees a blob in the end
DRAG = 5.0  # 1/s, for a blob of radius 0.1: large against 1/s, so that nothing swings
STIFFNESS = 6.0  # for each unit of overlap between blobs: so soft that they merge and squeeze past each other
CLOSE = 0.9  # distance at which two blobs start to push, over the sum of their radii: they touch before
WALL = 12.0  # for each unit that a blob leans into the glass
STIR = 0.10  # of the currents in the liquid, as a standard deviation: what makes every trip another
STIR_TIME = 2.5  # s: how long a current lasts; long, so that nothing trembles
STRETCH = 12.0  # s^2: how much longer a blob grows with the square of its vertical speed

# The picture. Places are in sides of the frame, from below; colours are RGB, 0 to 255.
FOOT, HEAD = 0.10, 0.93  # where the glass begins and ends: there is room for the stand and the cap
BLEND = 2.6  # sharpness of the union of blobs: lower, and they flow together from farther off
WAX = np.array([[70, 0, 22], [200, 12, 20], [252, 60, 18], [255, 150, 26], [255, 236, 112]])  # by light, 0 to 1
LIQUID, GLOW = (62, 14, 92), (70, 6, 30)  # violet, and what the wax adds to it close by
ROOM, HALO, METAL = (4, 3, 7), (24, 5, 20), (62, 54, 62)  # dark, what the lamp adds to it close by, its stand


def frames(img_size=64, seed=0):
    """Film the simulated lamp: smooth, stationary from the first frame on, and never the same again.

    Args:
        img_size: height and width of a frame in pixels; changes the drawing, never the motion.
        seed: of the start and of the currents. On one machine the same seed gives the same frames; another
            processor may round otherwise, and a lamp is chaotic.

    Returns:
        An endless iterator of uint8 RGB frames [img_size, img_size, 3], 30 to a second.
    """
    states, painter = simulate(np.random.default_rng(seed)), Painter(img_size)
    chunk = max(1, 32 * 64**2 // img_size**2)  # frames painted at once: no more than the processor's cache holds
    while True:
        yield from painter.paint(np.stack([next(states) for _ in range(chunk)]))


def simulate(rng):
    """Yield the wax, frame by frame: [blobs, 4] with the centre x, y and the half axes across and up of each."""
    n, dt, keep = len(RADII), 1 / FPS, np.exp(-1 / FPS / STIR_TIME)
    position = np.stack([rng.uniform(-LID, LID, n), rng.uniform(0, 1, n)])
    temperature = rng.uniform(0, 1, n)
    velocity, current = np.zeros((2, n)), np.zeros((2, n))
    for step in itertools.count():
        near_floor, near_lid = (np.exp(-((gap / REACH) ** 2)) for gap in (position[1], 1 - position[1]))
        exchange = near_floor * (1 - temperature) - near_lid * temperature
        temperature += dt * EXCHANGE / RADII * exchange
        current = keep * current + np.sqrt(1 - keep**2) * STIR * rng.standard_normal((2, n))
        force = current + push(position) - DRAG * np.sqrt(0.1 / RADII) * velocity
        force[1] += BUOYANCY * (temperature - NEUTRAL) + GRIP * (near_lid - near_floor)
        velocity += dt * force
        position += dt * velocity
        if step >= WARM_UP * FPS:
            longer = 1 + STRETCH * velocity[1] ** 2
            yield np.stack([*position, RADII / np.sqrt(longer), RADII * longer], axis=1)


def push(position):
    """The force [2, blobs] on blobs at `position` [2, blobs] from each other and from the glass."""
    apart = position[:, :, None] - position[:, None]
    distance = np.sqrt((apart**2).sum(0)) + 1e-6  # a blob is no distance from itself
    overlap = np.maximum(CLOSE * (RADII[:, None] + RADII) - distance, 0)
    room = FLOOR + (LID - FLOOR) * position[1] - 0.8 * RADII  # wax flattens where it leans: less than a radius
    low, high = np.stack([-room, 0.3 * RADII]), np.stack([room, 1 - 0.7 * RADII])
    return STIFFNESS * (apart * (overlap / distance)).sum(2) + WALL * (np.clip(position, low, high) - position)


class Painter:
    """Paints states of the wax as frames of one size; what never moves is painted once.

    Each blob i has the field w_i = exp(BLEND (1 - d^2)), d being the distance from its centre in radii. The wax is
    where the sum exceeds 1, a smooth union (Blinn, "A generalization of algebraic surface drawing", 1982).
    log(sum) / BLEND is the square of the height over the picture's plane, for a single blob exactly that of a
    sphere, and the mean of the blobs' normals, weighted by w_i, is the normal. A Gaussian being a product of a
    function of x and one of y, each sum over blobs is a product of two small matrices.
    """

    def __init__(self, img_size):
        self.scene, inside, x, y = still_life(img_size)
        half, self.pixel = FLOOR * (HEAD - FOOT), 1 / (HEAD - FOOT) / img_size
        margin = int((0.5 - half) * img_size)
        self.box = (slice(int((1 - HEAD) * img_size), img_size - int(FOOT * img_size)),
                    slice(margin, img_size - margin))  # rows and columns that hold the glass
        self.inside, self.liquid = inside[self.box], self.scene[self.box]
        self.y, self.x = y[self.box[0], 0], x[0, self.box[1]]
        levels = np.linspace(0, len(WAX) - 1, 256)
        self.ramp = np.stack([np.interp(levels, range(len(WAX)), c) for c in WAX.T], axis=1).astype(np.float32)

    def paint(self, states):
        """Return uint8 frames [T, img_size, img_size, 3] of the states [T, blobs, 4]."""
        liquid, wax, share = self.parts(states)
        out = np.repeat(self.scene[None], len(states), axis=0)
        out[:, *self.box] = liquid + share * (wax - liquid)
        return np.clip(out + 0.5, 0, 255).astype(np.uint8)

    def parts(self, states):
        """Return, within the box, colours of liquid and of wax [T, h, w, 3], and the share of wax [T, h, w, 1]."""
        height2, cover, (across, up) = self.surface(states)
        toward = np.sqrt(np.maximum(1 - across**2 - up**2, 0))  # the part of the normal that points at the camera
        light = 0.64 - 0.50 * self.y[:, None] - 0.22 * up + 0.28 * toward  # the lamp is lit from below
        wax = self.ramp[np.clip(255 * light, 0, 255).astype(np.uint8)]
        glow = self.inside * np.exp(0.8 * np.minimum(height2, 0))
        return self.liquid + glow[..., None] * np.float32(GLOW), wax, (self.inside * cover)[..., None]

    def surface(self, states):
        """Return height^2 (in radii, negative outside), share of the pixel covered, normal (x, y): [T, h, w] each."""
        pool = np.broadcast_to([0, 0, *POOL], (len(states), 1, 4))
        x, y, rx, ry = np.concatenate([states, pool], axis=1).astype(np.float32).transpose(2, 0, 1)[..., None]
        u, v = (self.x - x) / rx, (self.y - y) / ry  # [T, blobs, w], [T, blobs, h]
        fx, fy = np.exp(-BLEND * u**2), np.exp(BLEND * (1 - v**2))

        def total(over_y, over_x):
            return np.einsum("tby,tbx->tyx", over_y, over_x)  # @ would round by the number of threads

        field = total(fy, fx) + 1e-6  # above 0, for the logarithm
        height2 = np.log(field) / BLEND
        steepness = 2 * total(fy / np.sqrt(rx * ry), fx) / field  # of height^2 at an edge, per length
        cover = np.clip(height2 / (np.maximum(steepness, 1) * self.pixel) + 0.5, 0, 1)  # antialiased; 1: far from wax
        return height2, cover, (total(fy, fx * u) / field, total(fy * v, fx) / field)


def still_life(size):
    """Return the lamp without its wax [size, size, 3], the share of each pixel inside the glass, and its x, y."""
    height, line = HEAD - FOOT, (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = (line[None] - 0.5) / height, (1 - line[:, None] - FOOT) / height
    half = FLOOR + (LID - FLOOR) * y

    def within(low, high, wide):
        """Antialiased shape: y from `low` to `high`, |x| below `wide`."""
        edge = np.minimum(np.minimum(y - low, high - y), wide - np.abs(x))
        return np.clip(edge * height * size + 0.5, 0, 1)

    def bell(z, width):
        return np.exp(-((z / width) ** 2))

    glass, stand, cap = within(0, 1, half), within(-1, 0, FLOOR + 0.015 + 0.25 * y), within(1, 1.055, 0.65 - 0.4 * y)
    halo = np.exp(-np.maximum(np.abs(x) - half, 0) / 0.08) * bell(y - 0.4, 0.7)
    shine = 0.25 + bell(x + 0.15, 0.08) + 0.5 * bell(x - 0.2, 0.05)
    rim = (0.55 + 0.75 * (x / half) ** 4) * (1.3 - 0.65 * y)  # liquid is brightest at the walls and below
    scene = np.float32(ROOM) + halo[..., None] * np.float32(HALO)
    for share, light, color in ((stand, shine, METAL), (cap, shine, METAL), (glass, rim, LIQUID)):
        scene += share[..., None] * ((light + 0 * y)[..., None] * np.float32(color) - scene)
    return scene, glass, x, y
