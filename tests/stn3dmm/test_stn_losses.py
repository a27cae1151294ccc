"""Losses by their definitions: ours, the paper's and the release's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stn_faces
from jax.test_util import check_grads

from unsup3d_jax.formation.losses import mean_share
from unsup3d_jax.stn3dmm import compat, layers, losses, visibility

pytestmark = pytest.mark.once

SIZE, GRID, COLUMNS = 24, 5, 2


def _data(seed=0, b=4):
    """Flattened faces and masks, float64."""
    rng = np.random.default_rng(seed)
    flat = rng.uniform(0.1, 1.0, (b, GRID, GRID, 3))
    mask = (rng.uniform(size=(b, GRID, GRID)) > 0.3).astype(float)
    return flat, mask


def _mean(loss, *args, **static):
    """One program: op by op it would compile for long."""
    return float(jax.jit(lambda *a: mean_share(loss(*a, **static)))(*args))


# --- ours -----------------------------------------------------------------------------


@pytest.mark.parametrize("huber", [None, 0.2])
def test_landmarks_are_a_mean_over_the_known(huber):
    rng = np.random.default_rng(0)
    seen, target = rng.uniform(0, SIZE, (2, 3, 4, 2))
    target[0, 1], target[2, 3, 0] = np.nan, np.nan
    confidence = rng.uniform(size=(3, 4))
    total = count = 0.0
    for i, k in np.ndindex(3, 4):
        if np.isnan(target[i, k]).any():
            continue
        d = np.linalg.norm(seen[i, k] - target[i, k]) / SIZE
        linear = huber is not None and d > huber
        total += confidence[i, k] * (huber * (2 * d - huber) if linear else d**2)
        count += confidence[i, k]

    def loss(seen, target, confidence):
        return mean_share(
            losses.landmark(
                seen, target, image_size=SIZE, confidence=confidence, huber=huber
            )
        )

    with jax.enable_x64(True):
        value, slope = jax.jit(jax.value_and_grad(loss))(
            *(jnp.asarray(a) for a in (seen, target, confidence))
        )
    assert float(value) == pytest.approx(total / count, rel=1e-12)
    assert np.isfinite(slope).all()
    unknown = np.isnan(target).any(-1)
    assert (np.asarray(slope)[unknown] == 0).all()
    assert (np.asarray(slope)[~unknown] != 0).all()


def test_symmetry_compares_texels_that_both_sides_show():
    flat, mask = _data()
    total = count = 0.0
    for b, i, j in np.ndindex(4, GRID, GRID):
        weight = mask[b, i, j] * mask[b, i, GRID - 1 - j]
        difference = flat[b, i, j] - flat[b, i, GRID - 1 - j]
        total += weight * (difference**2).mean()
        count += weight
    with jax.enable_x64(True):
        got = _mean(losses.symmetry, *map(jnp.asarray, (flat, mask)))
    assert got == pytest.approx(total / count, rel=1e-12)


@pytest.mark.parametrize("views", [2, 3])
def test_views_are_compared_in_all_pairs(views):
    flat, mask = _data(1, 2 * views)
    flat = flat.reshape(2, views, GRID, GRID, 3)
    mask = mask.reshape(2, views, GRID, GRID)
    total = count = 0.0
    for b, k, m in np.ndindex(2, views, views):
        if k < m:
            weight = mask[b, k] * mask[b, m]
            total += (weight * ((flat[b, k] - flat[b, m]) ** 2).mean(-1)).sum()
            count += weight.sum()
    with jax.enable_x64(True):
        got = _mean(losses.multi_view, *map(jnp.asarray, (flat, mask)))
    assert got == pytest.approx(total / count, rel=1e-12)


def test_no_gradient_flows_through_a_mask_but_where_it_is_judged():
    flat, mask = (jnp.asarray(a, jnp.float32) for a in _data())
    slope = jax.jit(jax.grad(lambda m: mean_share(losses.symmetry(flat, m))))
    assert (np.asarray(slope(mask)) == 0).all()
    judged = jax.jit(
        jax.grad(lambda m: mean_share(losses.visible_fraction(m, least=0.9)))
    )
    assert (np.asarray(judged(mask)) < 0).all()


@pytest.mark.parametrize("window", [3, 5])
def test_local_contrast_by_the_definition(window):
    flat, mask = _data()
    r = window // 2
    centred, expected = np.zeros_like(flat), np.zeros_like(flat)

    def patch(b, i, j):
        rows, columns = slice(max(i - r, 0), i + r + 1), slice(max(j - r, 0), j + r + 1)
        return b, rows, columns

    for at in np.ndindex(4, GRID, GRID):
        where = patch(*at)
        m = mask[where][..., None]
        total = max(m.sum(), 1e-3)
        centred[at] = flat[at] - (m * flat[where]).sum((0, 1)) / total
    for at in np.ndindex(4, GRID, GRID):
        where = patch(*at)
        total = max(mask[where].sum(), 1e-3)
        variance = (mask[where] * (centred[where] ** 2).mean(-1)).sum() / total
        expected[at] = centred[at] / (np.sqrt(variance + 1e-4) + 0.01)
    with jax.enable_x64(True):
        contrast = jax.jit(partial(losses.local_contrast, window=window))
        got = contrast(*map(jnp.asarray, (flat, mask)))
        check_grads(
            lambda f: contrast(f, jnp.asarray(mask)),
            (jnp.asarray(flat),),
            order=1,
            modes=["rev"],
        )
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_local_contrast_forgets_light():
    """A light that grows across the face hardly counts any more."""
    flat, mask = _data(2)
    flat = np.repeat(np.repeat(flat, 4, 1), 4, 2)
    mask = np.repeat(np.repeat(mask, 4, 1), 4, 2)
    lit = flat * (0.5 + 0.5 * np.linspace(0, 1, 4 * GRID)[:, None]) + 0.1
    contrast = jax.jit(partial(losses.local_contrast, window=9))
    one, other = (
        np.asarray(contrast(*(jnp.asarray(a, jnp.float32) for a in (f, mask))))
        for f in (flat, lit)
    )
    seen = mask > 0
    before = ((lit - flat)[seen] ** 2).mean() / flat[seen].var()
    after = ((one - other)[seen] ** 2).mean() / one[seen].var()
    assert after < 0.1 * before


def test_safeguards_are_hinges():
    pixels = jnp.array([[[0.0, 23.0], [34.5, 11.5], [-11.5, 34.5]]])
    got = losses.outside_image(pixels, image_size=SIZE)
    np.testing.assert_allclose(got.value, [[0.0, 1.0, 2.0]], atol=1e-6)
    got = losses.scale_range(jnp.array([0.5, -0.7, 1.0, -1.7]))
    np.testing.assert_allclose(got.value, [0.0, 0.0, 0.09, 1.0], atol=1e-6)
    mask = jnp.stack([jnp.ones((2, 2)), jnp.zeros((2, 2))])
    got = losses.visible_fraction(mask)
    np.testing.assert_allclose(got.value, [0.0, 0.09], atol=1e-6)


def test_shares_of_two_devices_add_up():
    flat, mask = (jnp.asarray(a, jnp.float32) for a in _data())
    target = jnp.full((4, 3, 2), 3.0).at[0].set(jnp.nan)

    def share(flat, mask, target, axis_name=None):
        terms = (
            losses.symmetry(flat, mask),
            losses.landmark(target * 0 + 1, target, image_size=SIZE),
            losses.multi_view(flat[:, None] * jnp.ones((1, 2, 1, 1, 1)), mask[:, None]
                              * jnp.ones((1, 2, 1, 1))),
            compat.symmetry_by_count(flat * mask[..., None]),
            compat.multi_view_by_count(flat * mask[..., None]),
        )  # fmt: skip
        return mean_share(terms, axis_name=axis_name)

    whole = jax.jit(share)(flat, mask, target)
    halves = (a.reshape(2, 2, *a.shape[1:]) for a in (flat, mask, target))
    split = jax.jit(jax.vmap(partial(share, axis_name="device"), axis_name="device"))
    assert float(split(*halves).sum()) == pytest.approx(float(whole), rel=1e-5)


# --- paper and release ----------------------------------------------------------------


def test_sums_of_the_paper():
    rng = np.random.default_rng(0)
    flat, mask = _data()
    points, labels = rng.normal(size=(2, 2, 5, 2)) * 30
    labels[0, 1] = np.nan
    confidence = rng.uniform(size=(2, 5))
    alpha = rng.normal(size=(2, 7))
    landmark, prior = np.zeros(2), np.zeros(2)
    for b in range(2):
        for i in range(5):
            if not np.isnan(labels[b, i]).any():
                square = ((points[b, i] - labels[b, i]) ** 2).sum()
                landmark[b] += confidence[b, i] * square
        prior[b] = sum(a * a for a in alpha[b])
    symmetry, views = np.zeros(4), np.zeros(2)
    for b, i, j, c in np.ndindex(4, GRID, GRID, 3):
        k = GRID - 1 - j
        symmetry[b] += (
            mask[b, i, j] * mask[b, i, k] * (flat[b, i, j, c] - flat[b, i, k, c]) ** 2
        )
        if b < 2:
            weight = mask[b, i, j] * mask[b + 2, i, j]
            views[b] += weight * (flat[b, i, j, c] - flat[b + 2, i, j, c]) ** 2

    @jax.jit
    def all_of(points, labels, confidence, alpha, flat, mask):
        return (
            compat.landmark_sum(points, labels, confidence),
            compat.prior_sum(alpha),
            compat.symmetry_sum(flat, mask),
            compat.multi_view_sum(flat[:2], flat[2:], mask[:2], mask[2:]),
        )

    with jax.enable_x64(True):
        got = all_of(*map(jnp.asarray, (points, labels, confidence, alpha, flat, mask)))
    for a, b in zip(got, (landmark, prior, symmetry, views), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_losses_of_the_release_are_divided_by_its_count():
    flat, mask = _data()
    flat = 255 * flat * mask[..., None]
    flat[0, 2, 3, 1] = flat[1, 1, 1, 2] = 0.0  # in one channel only
    # All differences where neither is 0, over all values that are not 0.
    symmetry = views = 0.0
    count = (flat != 0).sum()
    for b, i, j, c in np.ndindex(flat.shape):
        here, there = flat[b, i, j, c], flat[b, i, GRID - 1 - j, c]
        if here != 0 and there != 0:
            symmetry += (here - there) ** 2
        if b % 2 == 0:
            there = flat[b + 1, i, j, c]
            if here != 0 and there != 0:
                views += (here - there) ** 2
    with jax.enable_x64(True):
        given = jnp.asarray(flat)
        assert _mean(compat.symmetry_by_count, given) == pytest.approx(
            symmetry / count, rel=1e-12
        )
        assert _mean(compat.multi_view_by_count, given) == pytest.approx(
            views / count, rel=1e-12
        )
        # The derivatives are those of the value, which the release's are not.
        for loss in (compat.symmetry_by_count, compat.multi_view_by_count):
            slope = jax.jit(jax.grad(lambda f, loss=loss: mean_share(loss(f))))(given)
            step = np.zeros_like(flat)
            step[1, 2, 1, 0] = step[0, 2, 1, 0] = 1e-3
            step[1] *= 2.0
            step *= flat != 0
            numeric = (_mean(loss, given + step) - _mean(loss, given - step)) / 2
            assert float(np.sum(slope * step)) == pytest.approx(numeric, rel=1e-6)


def test_the_release_poses_in_pixels_and_samples_where_it_does():
    with jax.enable_x64(True):
        model = stn_faces.face(GRID, COLUMNS, dtype=np.float64)
        rng = np.random.default_rng(0)
        vector = np.concatenate(
            [0.3 * rng.normal(size=3), [110.0, 116.0], [-700.0], rng.normal(size=2)]
        )

        @jax.jit
        def both(vector):
            theta = layers.split(vector)
            camera = stn_faces.camera(0.0, (0.01, -0.02))
            ours = compat.to_default(theta, camera)
            return compat.posed(model, theta), layers.posed(
                model, ours, camera, image_size=compat.IMAGE_SIZE
            )

        theirs, ours = both(jnp.asarray(vector))
    s = 0.99 ** vector[5]
    assert s > 1000
    for points, pixels, label in (
        (theirs.vertices, theirs.pixels, False),
        (theirs.landmark_points, theirs.landmarks, True),
    ):
        y = s * np.asarray(points)[:, :2] + vector[3:5]
        if label:  # row 225 - y and column x, both from 1
            expected = np.stack([y[:, 0] - 1, 225 - y[:, 1] - 1], -1)
        else:  # row 223 - y 223/224 and column x 223/224, both from 0
            expected = np.stack([y[:, 0] * 223 / 224, 223 - y[:, 1] * 223 / 224], -1)
        np.testing.assert_allclose(pixels, expected, atol=1e-10)
        back = compat.label_points(compat.label_pixels(y))
        np.testing.assert_allclose(back, y, atol=1e-4)
    np.testing.assert_allclose(ours.pixels, theirs.pixels, atol=1e-9)
    assert np.abs(ours.landmarks - theirs.landmarks).max() <= 1.0


def test_landmarks_are_selected_by_their_index_on_the_grid():
    model = stn_faces.face(GRID, COLUMNS)
    chosen = compat.select(model, np.array([3, 12, 24]), np.array([0, 1, 2]))
    points, landmarks = layers.shape(chosen, jnp.array([0.5, -1.0]))
    np.testing.assert_allclose(landmarks, points[np.array([3, 12, 24])], atol=1e-6)


def test_odd_batches_windows_and_bounds_are_named(unchecked):
    flat, mask = _data(0, 3)
    with pytest.raises(ValueError, match="even batch, got 3"):
        compat.multi_view_by_count(flat)
    with pytest.raises(ValueError, match="window .* got 4"):
        losses.local_contrast(flat, mask, window=4)
    with pytest.raises(ValueError, match="2 views or more, got 1"):
        losses.multi_view(flat[:, None], mask[:, None])
    with pytest.raises(ValueError, match="Huber bound must be above 0"):
        losses.landmark(mask, mask, image_size=SIZE, huber=0.0)
    with pytest.raises(ValueError, match="orthographic"):
        compat.to_default(layers.split(jnp.zeros(6)), stn_faces.camera(0.1))


# --- all together ---------------------------------------------------------------------


def _total(vectors, images, target, model, camera):
    """Every term, of images and their thetas."""

    def pose(vector):
        theta = layers.split(vector)
        posed = layers.posed(model, theta, camera, image_size=SIZE)
        seen = visibility.facing(posed.vertices, GRID)
        return posed, seen & visibility.inside(posed.pixels, GRID, SIZE)

    posed, mask = jax.vmap(pose)(vectors)
    flat = layers.flatten_image(images, posed.pixels, GRID)
    mask = mask.astype(flat.dtype)
    plain = losses.local_contrast(flat, mask, window=3)
    terms = (
        losses.landmark(posed.landmarks, target, image_size=SIZE, huber=0.1),
        losses.prior(vectors[:, 6:]),
        losses.symmetry(flat, mask),
        losses.multi_view(plain[None], mask[None]),
        losses.outside_image(posed.pixels, image_size=SIZE),
        losses.scale_range(vectors[:, 5]),
    )
    return mean_share(terms)


@pytest.mark.once
def test_the_gradient_of_everything_matches_finite_differences():
    """With respect to all of theta, for a turned face and for one not turned at all."""
    rng = np.random.default_rng(0)
    v, u = np.mgrid[:SIZE, :SIZE]
    waves = [np.sin(u / 7.0 + k) + np.cos(v / 9.0 + k * u / 50) for k in range(3)]
    images = np.stack([np.stack(waves, -1), np.stack(waves[::-1], -1)])
    vectors = stn_faces.thetas(2, COLUMNS, turn=0.3, spread=0.2)
    vectors[1, :3] = 0.0
    target = rng.uniform(4, 20, (2, 13, 2))
    target[0, 2] = np.nan
    camera = stn_faces.camera(0.09)
    with jax.enable_x64(True):
        model = stn_faces.face(GRID, COLUMNS, dtype=np.float64)
        given = tuple(map(jnp.asarray, (vectors, images, target)))
        # One program for the differences as well.
        total = jax.jit(jax.value_and_grad(partial(_total, camera=camera)))
        slope = np.asarray(total(*given, model)[1])
        for i, k in np.ndindex(vectors.shape):
            step = np.zeros_like(vectors)
            step[i, k] = 1e-6
            ahead, back = (
                float(total(jnp.asarray(vectors + s * step), *given[1:], model)[0])
                for s in (1, -1)
            )
            assert slope[i, k] == pytest.approx(
                (ahead - back) / 2e-6, rel=1e-4, abs=1e-7
            )
        assert (slope != 0).all()


def test_the_gradient_of_the_landmark_loss_has_every_entry():
    """All 16 in the release's form, against finite differences of float64."""
    rng = np.random.default_rng(0)
    vector = np.concatenate(
        [0.3 * rng.normal(size=3), [110.0, 116.0], [-700.0], rng.normal(size=10)]
    )
    labels = rng.uniform(50, 150, (1, 13, 2))
    with jax.enable_x64(True):
        model = stn_faces.face(GRID, 10, dtype=np.float64)

        @jax.jit
        def loss(vector):
            theta = layers.split(vector)
            _, points = layers.shape(model, theta.alpha)
            seen = compat.project(layers.turn(points, theta.rotation), theta)
            return compat.landmark_sum(
                seen[None], jnp.asarray(labels), jnp.ones((1, 13))
            )[0]

        check_grads(loss, (jnp.asarray(vector),), order=1, modes=["rev"], rtol=1e-5)
        slope = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(vector)))
        assert slope.shape == (16,) and (slope != 0).all()
