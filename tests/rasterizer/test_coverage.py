"""The exact arithmetic under the rasterizer, against Python's integers."""

import jax.numpy as jnp
import numpy as np
import pytest

import rasterizer
from rasterizer import coverage, worklist


def random_triangles(span: int, count: int = 500):
    """Corners and samples (4 points) of two int32 coordinates within +-span / 2."""
    rng = np.random.default_rng(span)
    points = rng.integers(-(span // 2), span // 2 + 1, (4, 2, count))
    # Extremes, and samples on an edge or a corner, are where an error would hide.
    points[:3, 0, :8] = (span // 2) * np.array([[-1], [1], [1]])
    points[:3, 1, :8] = (span // 2) * np.array([[-1], [-1], [1]])
    points[3, :, 8:60] = points[0, :, 8:60]
    points[:, :, 60:99] //= 3
    points[1, :, 60:99] = 2 * points[3, :, 60:99] - points[0, :, 60:99]
    return points


def crosses(points):
    """The three edge functions by Python's integers."""
    p = points.astype(object)
    out = []
    for i, j in ((1, 2), (2, 0), (0, 1)):
        e, d = p[j] - p[i], p[3] - p[i]
        out.append(e[0] * d[1] - e[1] * d[0])
    return out


def edges(points, function):
    p = jnp.asarray(points, jnp.int32)
    return [function(*p[i], *p[j], *p[3]) for i, j in ((1, 2), (2, 0), (0, 1))]


def test_wide_edges_are_exact():
    points = random_triangles(coverage.MAX_SPAN)
    wide = edges(points, coverage.wide_edge)
    for (hi, lo), expected in zip(wide, crosses(points), strict=True):
        got = np.asarray(hi).astype(object) * 1024 + np.asarray(lo).astype(object)
        np.testing.assert_array_equal(got, expected)
        assert (np.asarray(lo) >= 0).all() and (np.asarray(lo) < 1024).all()


def test_narrow_edges_are_exact_and_agree_with_wide_ones():
    points = random_triangles(coverage.SMALL_SPAN - 1)
    narrow = edges(points, coverage.edge)
    for got, expected in zip(narrow, crosses(points), strict=True):
        np.testing.assert_array_equal(np.asarray(got).astype(object), expected)
    inverse = list(np.random.default_rng(0).uniform(0.2, 5.0, (3, points.shape[2])))
    inverse = [jnp.asarray(v, jnp.float32) for v in inverse]
    key = coverage.nearness(narrow, inverse)
    assert (np.asarray(key) > 0).sum() > 20
    assert (np.asarray(key) & 7 == 0).all()
    wide = coverage.wide_nearness(edges(points, coverage.wide_edge), inverse)
    np.testing.assert_array_equal(key, wide)


def test_nearness_at_a_corner_is_the_corners_own_in_every_triangle():
    rng = np.random.default_rng(0)
    points = rng.integers(-9999, 9999, (4, 2, 300))
    points[3] = points[0]
    inverse = [jnp.full(300, 0.7, jnp.float32)]
    inverse += [jnp.asarray(v, jnp.float32) for v in rng.uniform(0.5, 2, (2, 300))]
    keys = np.asarray(coverage.nearness(edges(points, coverage.edge), inverse))
    assert len(np.unique(keys)) == 1 and keys[0] > 0


@pytest.mark.parametrize("side", [64, 1000])
def test_float_division_of_items_is_exact(side):
    grid = coverage.SampleGrid(side, side)
    width = np.arange(1, side + 1, max(1, side // 97), dtype=np.int32)
    for rows in (1, side // 2, side - 1):
        k = (width[:, None] * rows + np.array([-1, 0, 1])).ravel()
        w = np.repeat(width, 3)
        got = worklist._divide(jnp.asarray(k, jnp.int32), jnp.asarray(w), grid)
        np.testing.assert_array_equal(got, np.maximum(k, 0) // w)


def test_many_blocks_draw_what_one_does(monkeypatch):
    rng = np.random.default_rng(0)
    vertices = np.concatenate(
        [rng.uniform(-3, 11, (60, 2)), rng.uniform(1, 2, (60, 1))], -1
    ).astype(np.float32)
    faces = np.arange(60, dtype=np.int32).reshape(20, 3)
    whole = rasterizer.rasterize(vertices, faces, (9, 7)).face_index
    # As if seven faces could overflow the list: the last block overlaps the one before.
    monkeypatch.setattr(worklist, "_LIST_LIMIT", 7 * 63)
    pieces = rasterizer.rasterize(vertices, faces, (9, 7), near=1e-9).face_index
    np.testing.assert_array_equal(whole, pieces)


@pytest.mark.parametrize("off", range(-2, 3))
def test_division_by_remainder_is_rounded_once(off):
    rng = np.random.default_rng(0)
    a = (2.0 ** rng.uniform(-20, 40, 200_000)).astype(np.float32)
    b = (2.0 ** rng.uniform(-20, 40, 200_000)).astype(np.float32)
    b[:1000] = 2.0 ** np.round(np.log2(b[:1000]))
    b[1000:2000] = a[1000:2000]
    # Quotients about powers of two, where last places change their length.
    near = np.arange(-5, 6, dtype=np.int32)[:, None] + np.float32(3.0).view(np.int32)
    a[2000:2121] = np.broadcast_to(near, (11, 11)).ravel().view(np.float32)
    b[2000:2121] = np.broadcast_to(near.T, (11, 11)).ravel().view(np.float32)

    def estimate(a, b):
        quotient = np.asarray(a) / np.asarray(b)
        return jnp.asarray((quotient.view(np.int32) + off).view(np.float32))

    got = coverage.divide_by_remainder(jnp.asarray(a), jnp.asarray(b), estimate)
    np.testing.assert_array_equal(got, a / b)
    zero = coverage.divide_by_remainder(jnp.zeros(3), jnp.asarray(b[:3]), estimate)
    np.testing.assert_array_equal(zero, 0.0)
