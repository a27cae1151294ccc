"""The convex prior against a slow reading of its definition, and its mistakes."""

import dataclasses
import math

import numpy as np
import pytest

from unsup3d_jax.gan2shape import prior
from unsup3d_jax.gan2shape.prior import PriorOptions

OPTIONS = PriorOptions("ellipsoid", 0.91, 1.02, 0.4, "none", True)


def mask_of(size, height=0.6, width=0.4, top=0.1, left=0.25):
    mask = np.zeros((size, size), np.float32)
    y, x = int(top * size), int(left * size)
    mask[y : y + int(height * size), x : x + int(width * size)] = 1.0
    mask[0, 0] = 0.5  # below the threshold
    return mask


def slow(mask, options):
    """Pixel by pixel, as the definition reads."""
    h, w = mask.shape
    inside = [(i, j) for i in range(h) for j in range(w) if mask[i, j] >= 0.7]
    y0, y1 = min(i for i, _ in inside), max(i for i, _ in inside)
    x0, x1 = min(j for _, j in inside), max(j for _, j in inside)
    wide, tall = x1 - x0, y1 - y0
    if options.category == "synface":
        y0 = y0 - tall / 6
    elif options.category == "face":
        y1, x0, x1 = h - 1, x0 + wide / 12, x1 - wide / 12
    elif options.category == "car":
        y1 = y1 + tall / 6
    near, far, big = options.near, options.far, options.radius
    if options.shape == "weak":
        near = far - (far - near) / 2
    cx, cy, r = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2
    if options.shape == "shift6":
        cx += (x1 - x0) / 6
    if options.shape == "shift4":
        cx += (x1 - x0) / 4
    chord = math.sqrt(big**2 - (big - (far - near)) ** 2)
    out = np.full((h, w), far)
    if options.shape == "flat":
        return out
    for i in range(h):
        for j in range(w):
            ratio = options.stretch * (y1 - y0) / (x1 - x0)
            if options.shape == "asymmetric" and j > cx:
                ratio = 1.0
            about = h / 2 if options.compat else cy
            row = (i - about) / ratio + about
            rho = math.hypot(row - cy, j - cx)
            if rho <= r:
                out[i, j] = near + big - math.sqrt(abs(big**2 - (rho / r * chord) ** 2))
    return out


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("category", prior.CATEGORIES)
@pytest.mark.parametrize("compat", [True, False])
def test_categories_follow_the_definition(size, category, compat):
    options = dataclasses.replace(OPTIONS, category=category, compat=compat)
    mask = mask_of(size)
    found = prior.prior_depth(mask, options)
    np.testing.assert_allclose(found, slow(mask, options), atol=1e-5)
    assert found.dtype == np.float32


@pytest.mark.parametrize("shape", prior.SHAPES)
def test_shapes_follow_the_definition(shape):
    options = dataclasses.replace(OPTIONS, shape=shape)
    mask = mask_of(64)
    found = prior.prior_depth(mask, options)
    np.testing.assert_allclose(found, slow(mask, options), atol=1e-5)


@pytest.mark.parametrize("shape", ["ellipsoid", "asymmetric", "shift4"])
@pytest.mark.parametrize("category", ["none", "face"])
def test_a_stretched_cap_follows_the_definition(shape, category):
    options = dataclasses.replace(OPTIONS, shape=shape, category=category, stretch=1.5)
    mask = mask_of(64)
    found = prior.prior_depth(mask, options)
    np.testing.assert_allclose(found, slow(mask, options), atol=1e-5)


def test_a_stretched_cap_bends_less_from_top_to_bottom_and_as_much_across():
    options = dataclasses.replace(OPTIONS, compat=False)
    mask = mask_of(65, height=0.6, width=0.6, top=0.2, left=0.2)
    plain, tall = (
        prior.prior_depth(mask, dataclasses.replace(options, stretch=s))
        for s in (1.0, 2.0)
    )
    middle = 32
    np.testing.assert_allclose(tall[middle], plain[middle], atol=1e-6)
    # Twice as high: what lay 8 rows off the middle now lies 16 rows off.
    np.testing.assert_allclose(
        tall[middle + 16, middle], plain[middle + 8, middle], atol=1e-6
    )


def test_the_cap_is_near_in_the_middle_and_far_on_the_rim():
    mask = mask_of(65, height=1.0, width=1.0, top=0.0, left=0.0)
    depth = prior.prior_depth(mask, dataclasses.replace(OPTIONS, compat=False))
    assert depth[32, 32] == pytest.approx(0.91, abs=1e-6)
    np.testing.assert_allclose(depth[32, [0, -1]], 1.02, atol=1e-6)
    np.testing.assert_allclose(depth[0, 0], 1.02)
    np.testing.assert_allclose(depth, depth[:, ::-1], atol=1e-6)


def test_the_shifted_cap_is_the_cap_shifted():
    mask = np.zeros((64, 64), np.float32)
    mask[10:54, 8:33] = 1.0  # 24 between the outermost columns
    plain = prior.prior_depth(mask, OPTIONS)
    shifted = prior.prior_depth(mask, dataclasses.replace(OPTIONS, shape="shift6"))
    np.testing.assert_allclose(shifted[:, 4:], plain[:, :-4], atol=1e-6)


def test_what_is_no_mask_is_refused():
    with pytest.raises(ValueError, match="empty"):
        prior.prior_depth(np.zeros((8, 8), np.float32), OPTIONS)
    thin = np.zeros((8, 8), np.float32)
    thin[:, 3] = 1.0
    with pytest.raises(ValueError, match="one pixel"):
        prior.prior_depth(thin, OPTIONS)
    with pytest.raises(ValueError, match="radius"):
        prior.prior_depth(mask_of(32), dataclasses.replace(OPTIONS, radius=0.05))
    with pytest.raises(ValueError, match="shape must be one of"):
        prior.prior_depth(mask_of(32), dataclasses.replace(OPTIONS, shape="box"))


def test_the_fixed_ellipse_lies_in_the_middle():
    mask = prior.fixed_ellipse(64)
    np.testing.assert_array_equal(mask, mask[::-1, ::-1])
    assert mask.mean() == pytest.approx(math.pi * 0.34 * 0.42, rel=0.02)
