"""SIDE, MAD and coverage of a depth map, against plain numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unsup3d_jax.evaluation.depth import depth_scores
from unsup3d_jax.evaluation.masks import erode

FOV = 10.0


def numpy_normals(depth, epsilon=0.0):
    """The authors' rule, written out: cross product of central differences."""
    h, w = depth.shape
    focal = (w - 1) / 2 / np.tan(np.radians(FOV / 2))
    point = np.zeros((h, w, 3))
    for v in range(h):
        for u in range(w):
            ray = np.array([(u - (w - 1) / 2) / focal, (v - (h - 1) / 2) / focal, 1.0])
            point[v, u] = depth[v, u] * ray
    normal = np.zeros((h, w, 3))
    normal[..., 2] = 1.0
    for v in range(1, h - 1):
        for u in range(1, w - 1):
            tu = point[v, u + 1] - point[v, u - 1]
            tv = point[v + 1, u] - point[v - 1, u]
            normal[v, u] = np.cross(tu, tv)
    return normal / (np.linalg.norm(normal, axis=-1, keepdims=True) + epsilon)


def numpy_erode(mask):
    padded = np.pad(mask.astype(float), 1)
    out = np.zeros(mask.shape, bool)
    for v in range(mask.shape[0]):
        for u in range(mask.shape[1]):
            out[v, u] = padded[v : v + 3, u : u + 3].mean() > 0.99
    return out


def numpy_scores(depth, true_depth, mask, true_mask):
    scored = numpy_erode(mask) & numpy_erode(true_mask)
    delta = (np.log(depth) - np.log(true_depth))[scored]
    angles = []
    for epsilon in (0.0, 1e-7):
        cosine = np.sum(
            numpy_normals(depth, epsilon) * numpy_normals(true_depth, epsilon), -1
        )
        angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        angles.append(angle[scored].mean())
    return {
        "side": np.sqrt(np.mean((delta - delta.mean()) ** 2)),
        "mad_deg": angles[0],
        "mad_authors_deg": angles[1],
        "mae": np.mean(np.abs(depth - true_depth)[scored]),
        "pearson": np.corrcoef(depth[scored], true_depth[scored])[0, 1],
        "coverage": scored.sum() / true_mask.sum(),
        "scored_pixels": scored.sum(),
    }


def smooth_depth(rng, size):
    v, u = np.mgrid[:size, :size] / size
    a, b, c, d = rng.uniform(2, 6, 4)
    return 1.0 + 0.02 * np.sin(a * u + b) + 0.03 * np.cos(c * v + d * u)


def blob(size, row, column, radius):
    v, u = np.mgrid[:size, :size]
    return (v - row) ** 2 + (u - column) ** 2 < radius**2


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    depth, true_depth = smooth_depth(rng, 24), smooth_depth(rng, 24)
    return depth, true_depth, blob(24, 12, 14, 9), blob(24, 11, 9, 10)


score = jax.jit(partial(depth_scores, fov_deg=FOV))


def test_scores_match_numpy_on_overlapping_masks(example):
    got, expected = score(*example), numpy_scores(*example)
    for name, value in expected.items():
        # float32 central differences of depths near one keep about 4 digits.
        np.testing.assert_allclose(getattr(got, name), value, rtol=2e-3, err_msg=name)
    assert expected["side"] > 0.01 and expected["mad_deg"] > 10  # not vacuous


def test_a_hollow_depth_correlates_negatively_and_a_constant_one_not(example):
    _, true_depth, mask, true_mask = example
    for depth, expected in (
        (true_depth, 1.0),
        (1.0 + 0.3 * true_depth, 1.0),
        (2.0 - true_depth, -1.0),
        (np.ones_like(true_depth), 0.0),
    ):
        got = score(depth, true_depth, mask, true_mask)
        np.testing.assert_allclose(got.pearson, expected, atol=1e-4)
    nothing = score(true_depth, true_depth, mask, np.zeros_like(mask))
    assert nothing.pearson == 0.0


def test_side_ignores_scale_but_not_offset(example):
    depth, _, mask, true_mask = example
    scaled = score(1.3 * depth, depth, mask, true_mask)
    np.testing.assert_allclose(scaled.side, 0.0, atol=1e-6)
    shifted = score(depth + 0.3, depth, mask, true_mask)
    assert shifted.side > 1e-3


def test_side_is_the_standard_deviation_of_the_log_ratio():
    # Half of the scored pixels a factor e^0.02 nearer: deviation +- 0.01.
    true_depth = np.ones((8, 10))
    depth = np.where(np.arange(10) < 5, 1.0, np.exp(-0.02)) * true_depth
    everything = np.ones((8, 10), bool)
    got = score(depth, true_depth, everything, everything)
    np.testing.assert_allclose(got.side, 0.01, rtol=1e-4)


def test_mad_of_a_tilted_plane_is_its_tilt():
    # A plane z = 1 / (1 - tan(a) x/z) through the optical axis, tilted by a.
    size, tilt = 33, np.radians(20.0)
    focal = (size - 1) / 2 / np.tan(np.radians(FOV / 2))
    x = (np.arange(size) - (size - 1) / 2) / focal
    depth = np.broadcast_to(1.0 / (1.0 - np.tan(tilt) * x), (size, size))
    flat = np.ones((size, size))
    everything = np.ones((size, size), bool)
    got = score(depth, flat, everything, everything)
    np.testing.assert_allclose(got.mad_deg, 20.0, atol=0.01)


def test_perfect_reconstruction_has_no_error_but_the_authors_code_sees_one():
    flat = np.ones((64, 64))
    everything = np.ones((64, 64), bool)
    got = score(flat, flat, everything, everything)
    assert got.side == 0.0
    assert got.mad_deg < 1e-3
    # acos((l / (l + 1e-7))^2), l = (2 * 0.1749773 / 63)^2 of the plane at depth 1.
    length = (4 * np.tan(np.radians(5)) / 63) ** 2
    floor = np.degrees(np.arccos((length / (length + 1e-7)) ** 2))
    np.testing.assert_allclose(got.mad_authors_deg, floor, rtol=1e-3)
    assert floor > 6.0


def test_erosion_drops_the_image_border_and_every_hole():
    mask = np.ones((7, 9), bool)
    mask[3, 6] = False
    np.testing.assert_array_equal(erode(jnp.asarray(mask)), numpy_erode(mask))
    assert numpy_erode(mask).sum() == 5 * 7 - 9


def test_coverage_is_the_scored_share_of_the_true_mask():
    flat = np.ones((20, 20))
    true_mask = np.zeros((20, 20), bool)
    true_mask[4:14, 4:14] = True
    got = score(flat, flat, np.ones((20, 20), bool), true_mask)
    assert got.scored_pixels == 64
    np.testing.assert_allclose(got.coverage, 0.64)


def test_what_lies_outside_the_masks_does_not_matter(example):
    depth, true_depth, mask, true_mask = example
    clean = score(*example)
    dirty = score(
        np.where(mask, depth, np.nan),
        np.where(true_mask, true_depth, -7.0),
        mask,
        true_mask,
    )
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_nan_depth_inside_the_mask_lowers_the_coverage(example):
    depth, true_depth, mask, true_mask = example
    depth = depth.copy()
    depth[12, 13] = np.nan
    got, clean = score(depth, true_depth, mask, true_mask), score(*example)
    assert got.scored_pixels == clean.scored_pixels - 9
    assert np.isfinite(got.side) and np.isfinite(got.mad_deg)


@pytest.mark.parametrize("which", [2, 3])
def test_empty_mask_is_finite_and_not_scored(example, which):
    arguments = list(example)
    arguments[which] = np.zeros_like(arguments[which])
    got = score(*arguments)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(got))
    assert got.scored_pixels == 0 and got.coverage == 0.0 and got.side == 0.0


def test_vmap_equals_a_loop(example):
    depth, true_depth, mask, true_mask = example
    stacked = [
        np.stack([a, np.roll(a, 2, 1)]) for a in (depth, true_depth, mask, true_mask)
    ]
    batched = jax.jit(jax.vmap(partial(depth_scores, fov_deg=FOV)))(*stacked)
    for i in range(2):
        single = score(*(a[i] for a in stacked))
        for a, b in zip(jax.tree.leaves(batched), jax.tree.leaves(single), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5)
