"""The simulated lamp: its equations against known results, its film to the eye and over time."""

import itertools

import numpy as np

from simulator import frames


def film(n, img_size=64, seed=0):
    return np.stack(list(itertools.islice(frames(img_size, seed), n)))


def test_frames_are_images_of_the_size_asked_for():
    for size in (16, 50):
        clip = film(2, size)
        assert clip.shape == (2, size, size, 3) and clip.dtype == np.uint8
