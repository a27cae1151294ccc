"""Layers against a slow float64 program, their laws, and their derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stn_faces
import stn_reference
from jax.test_util import check_grads

from unsup3d_jax.data.open_face import scene
from unsup3d_jax.stn3dmm import layers

pytestmark = pytest.mark.once

SIZE = 48
GRID = 5
NEAR_PI = np.pi - 1e-3
ANGLES = (0.0, 1e-9, 1e-4, 5e-3, 9.999e-3, 1.0001e-2, 0.7, NEAR_PI, np.pi, 4.0)
AXIS = np.array([0.48, -0.6, 0.64])

_matrices = jax.jit(jax.vmap(layers.rotation_matrix))
_slopes = jax.jit(jax.vmap(jax.jacfwd(layers.rotation_matrix)))
_back_slopes = jax.jit(jax.vmap(jax.jacrev(layers.rotation_matrix)))
_logs = jax.jit(jax.vmap(layers.rotation_log))


@pytest.mark.parametrize("dtype, atol", [(np.float64, 1e-14), (np.float32, 3e-7)])
def test_rotations_and_their_derivatives_at_all_angles(dtype, atol):
    vectors = np.array(ANGLES)[:, None] * AXIS
    with jax.enable_x64(dtype == np.float64):
        given = jnp.asarray(vectors, dtype)
        matrices, forward, back = _matrices(given), _slopes(given), _back_slopes(given)
        assert matrices.dtype == dtype
    for r, matrix, slope, other in zip(vectors, matrices, forward, back, strict=True):
        np.testing.assert_allclose(matrix, stn_reference.rotation(r), atol=4 * atol)
        expected = np.moveaxis(stn_reference.rotation_derivative(r), 0, -1)
        # The reference divides by the squared angle, of which nothing is left at 1e-9.
        slack = 1e-10 if np.linalg.norm(r) > 1e-3 else 1e-6
        close = max(slack, 20 * atol)
        np.testing.assert_allclose(slope, expected, atol=close)
        np.testing.assert_allclose(other, slope, atol=10 * atol)


def test_the_derivative_at_no_rotation_is_exactly_that_of_the_generators():
    slope = np.asarray(_slopes(jnp.zeros((1, 3))))[0]
    for i in range(3):
        np.testing.assert_array_equal(
            slope[..., i], stn_reference.cross_matrix(np.eye(3)[i])
        )


@pytest.mark.parametrize("dtype, atol", [(np.float64, 1e-13), (np.float32, 2e-6)])
def test_the_logarithm_undoes_the_rotation(dtype, atol):
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(200, 3))
    axes[:6] = np.concatenate([np.eye(3), -np.eye(3)])
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = np.concatenate(
        [np.tile([3.1, np.pi - 1e-5, 2.0], 2), rng.uniform(0.0, NEAR_PI, 190), [0.0]]
    )
    angles = np.concatenate([angles, [1e-9, 1e-4, 0.00999][: 200 - len(angles)]])
    vectors = angles[:, None] * axes
    with jax.enable_x64(dtype == np.float64):
        back = _logs(_matrices(jnp.asarray(vectors, dtype)))
    assert back.dtype == dtype
    np.testing.assert_allclose(back, vectors, atol=atol)


def test_the_logarithm_of_a_half_turn_is_one_of_its_two_axes():
    vectors = np.pi * np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], AXIS])
    with jax.enable_x64(True):
        exact = jnp.asarray([stn_reference.rotation(v) for v in vectors])
        back = np.asarray(_logs(exact))
        again = _matrices(jnp.asarray(back))
    np.testing.assert_allclose(np.linalg.norm(back, axis=1), np.pi, atol=1e-7)
    np.testing.assert_allclose(again, exact, atol=1e-7)


@pytest.mark.once
def test_the_logarithm_has_the_inverse_derivative():
    """d log(exp(r)) / dr = I, at 0 too, and no NaN at a half turn."""
    vectors = np.array([0.0, 1e-6, 0.00999, 0.0101, 1.0, NEAR_PI])[:, None] * AXIS

    def around(r):
        return layers.rotation_log(layers.rotation_matrix(r))

    slopes = jax.jit(jax.vmap(jax.jacrev(around)))
    with jax.enable_x64(True):
        got = slopes(jnp.asarray(vectors))
    np.testing.assert_allclose(got, np.tile(np.eye(3), (6, 1, 1)), atol=1e-9)
    half_turns = jnp.pi * jnp.eye(3)
    assert np.isfinite(slopes(half_turns)).all()


@pytest.mark.parametrize(
    "perspective, offset", [(0.0, (0.0, 0.0)), (0.09, (0.1, -0.2))]
)
@pytest.mark.parametrize("dtype, atol", [(np.float64, 1e-10), (np.float32, 1e-5)])
def test_posing_agrees_with_the_slow_program(perspective, offset, dtype, atol):
    camera = stn_faces.camera(perspective, offset)
    vectors = stn_faces.thetas(3)
    vectors[0, :3] = 0.0
    with jax.enable_x64(dtype == np.float64):
        model = stn_faces.face(GRID, dtype=dtype)
        got = _pose_all(jnp.asarray(vectors, dtype), model, camera)
        assert {a.dtype for a in jax.tree.leaves(got)} == {np.dtype(dtype)}
    for k, vector in enumerate(vectors):
        for mean, basis, turned, pixels in (
            (model.mean, model.basis, got.vertices, got.pixels),
            (
                *(model.landmark_mean, model.landmark_basis),
                *(got.landmark_points, got.landmarks),
            ),
        ):
            points = stn_reference.points_of(mean, basis, vector[6:])
            expected = stn_reference.project(
                points, vector, camera.scale, offset, perspective, SIZE
            )
            np.testing.assert_allclose(turned[k], expected[0], atol=atol)
            np.testing.assert_allclose(pixels[k], expected[1], atol=SIZE * atol)


@partial(jax.jit, static_argnames="camera")
def _pose_all(vectors, model, camera):
    def one(vector):
        return layers.posed(model, layers.split(vector), camera, image_size=SIZE)

    return jax.vmap(one)(vectors)


@pytest.mark.once
def test_a_batch_is_its_examples_and_compiled_is_not():
    model, camera = stn_faces.face(GRID), stn_faces.camera(0.09)
    vectors = jnp.asarray(stn_faces.thetas(3), jnp.float32)
    together = _pose_all(vectors, model, camera)
    for k, vector in enumerate(vectors):
        alone = layers.posed(model, layers.split(vector), camera, image_size=SIZE)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[k], b, rtol=1e-5, atol=1e-5)


def test_joining_undoes_splitting():
    vector = jnp.arange(9.0)
    theta = layers.split(vector)
    np.testing.assert_array_equal(layers.join(theta), vector)
    np.testing.assert_array_equal(theta.translation, [3.0, 4.0])
    assert float(theta.log_scale) == 5.0


# --- frames ---------------------------------------------------------------------------


def test_the_axes_of_the_image():
    """+x goes right, +y up; a turn to +y moves the nose right, to +x down."""
    camera = stn_faces.camera()
    nose = jnp.array([[0.0, 0.0, 0.1]])

    @jax.jit
    def project(vector):
        theta = layers.split(vector)
        return layers.project(layers.turn(nose, theta.rotation), theta, camera, SIZE)

    def seen(vector):
        return np.asarray(project(jnp.asarray(vector, jnp.float32)))[0]

    middle = (SIZE - 1) / 2
    np.testing.assert_allclose(seen(np.zeros(6)), [middle, middle], atol=1e-5)
    np.testing.assert_allclose(seen([0, 0, 0, 1, 0, 0]), [SIZE - 1, middle], atol=1e-4)
    np.testing.assert_allclose(seen([0, 0, 0, 0, 1, 0]), [middle, 0.0], atol=1e-4)
    assert seen([0, 0.3, 0, 0, 0, 0])[0] > middle + 1
    assert seen([0.3, 0, 0, 0, 0, 0])[1] > middle + 1


def test_perspective_is_the_camera_of_the_open_faces():
    """r, t and s of a rendered scene, from its view and scale."""
    rng = np.random.default_rng(0)
    view = np.concatenate([rng.uniform(-0.7, 0.7, 3), rng.uniform(-0.01, 0.01, 3)])
    scale, size = 0.9, 112
    head = rng.uniform(-0.1, 0.1, (20, 3))
    in_camera = (head * [1, -1, -1] * scale) @ scene.rotation(view[None])[0].T
    in_camera += view[3:] + [0, 0, scene.CENTRE_DEPTH]
    focal = 1.0 / np.tan(np.radians(scene.FOV_DEG / 2))
    half = (size - 1) / 2
    expected = half + half * focal * in_camera[:, :2] / in_camera[:, 2:]
    frame = np.diag([1.0, -1.0, -1.0])
    turned = frame @ scene.rotation(view[None])[0] @ frame
    camera = layers.Camera(
        1.0, (0.0, 0.0), perspective=layers.perspective_of(scene.FOV_DEG)
    )
    nearness = focal / (1.0 + view[5])

    @jax.jit
    def project(points, theta):
        points = layers.turn(points, theta.rotation)
        return layers.project(points, theta, camera, size)

    with jax.enable_x64(True):
        theta = layers.Theta(
            rotation=_logs(jnp.asarray(turned)[None])[0],
            translation=jnp.asarray([view[3], -view[4]]) * nearness,
            log_scale=jnp.log(scale * nearness),
            alpha=jnp.zeros(0),
        )
        got = project(jnp.asarray(head), theta)
    np.testing.assert_allclose(got, expected, atol=1e-9)


def test_the_mirrored_theta_poses_the_mirrored_face():
    model, camera = stn_faces.face(GRID), stn_faces.camera(0.09, (0.0, 0.05))
    matrix = layers.mirror_matrix(model.coefficient_mirror)

    @jax.jit
    def both(vector):
        theta, other = layers.split(vector), layers.split(matrix @ vector)
        pose = partial(layers.posed, model, camera=camera, image_size=SIZE)
        return pose(theta), pose(other)

    here, there = both(jnp.asarray(stn_faces.thetas(1)[0], jnp.float32))
    pixels = np.asarray(here.pixels).reshape(GRID, GRID, 2)[:, ::-1].reshape(-1, 2)
    flipped = np.asarray(here.landmarks)[np.asarray(model.landmark_flip)]
    for a, b in ((there.pixels, pixels), (there.landmarks, flipped)):
        np.testing.assert_allclose(a[:, 0], SIZE - 1 - b[:, 0], atol=1e-4)
        np.testing.assert_allclose(a[:, 1], b[:, 1], atol=1e-4)


def test_an_image_of_its_own_coordinates_flattens_to_the_projected_ones():
    v, u = np.mgrid[:SIZE, :SIZE]
    image = jnp.asarray(np.stack([u, v, u * 0 + 1], -1)[None], jnp.float32)
    model, camera = stn_faces.face(GRID), stn_faces.camera()
    pixels = _pose_all(jnp.asarray(stn_faces.thetas(1, turn=0.3)), model, camera).pixels
    flat = np.asarray(layers.flatten_image(image, pixels, GRID))[0].reshape(-1, 3)
    inside = flat[:, 2] > 0.999
    assert inside.sum() > 15
    np.testing.assert_allclose(flat[inside, :2], pixels[0][inside], atol=1e-3)


def test_the_top_row_is_the_forehead_and_a_mirrored_image_reverses_the_columns():
    rng = np.random.default_rng(1)
    image = jnp.asarray(rng.uniform(size=(1, SIZE, SIZE, 3)), jnp.float32)
    model, camera = stn_faces.face(GRID), stn_faces.camera()
    matrix = layers.mirror_matrix(model.coefficient_mirror)

    @jax.jit
    def both(vector, image):
        theta, other = layers.split(vector), layers.split(matrix @ vector)
        pose = partial(layers.posed, model, camera=camera, image_size=SIZE)
        a, b = pose(theta).pixels, pose(other).pixels
        flat = layers.flatten_image(image, a[None], GRID)
        return a, flat, layers.flatten_image(image[:, :, ::-1], b[None], GRID)

    pixels, flat, flipped = both(
        jnp.asarray(stn_faces.thetas(1, turn=0.2)[0], jnp.float32), image
    )
    rows = np.asarray(pixels).reshape(GRID, GRID, 2)
    assert (np.diff(rows[..., 1].mean(1)) > 0).all()  # v grows from row to row
    assert (np.diff(rows[..., 0].mean(0)) > 0).all()
    np.testing.assert_allclose(flipped, flat[:, :, ::-1], atol=2e-4)


def test_samples_of_a_formula_agree_with_the_slow_program():
    with jax.enable_x64(True):
        v, u = np.mgrid[:SIZE, :SIZE]
        image = np.stack([np.sin(u / 5.0) + v, np.cos(u * v / 90.0)], -1)
        model, camera = stn_faces.face(GRID, dtype=np.float64), stn_faces.camera()
        vectors = stn_faces.thetas(1, spread=0.5)
        pixels = _pose_all(jnp.asarray(vectors), model, camera).pixels
        flat = layers.flatten_image(jnp.asarray(image)[None], pixels, GRID)
    flat = np.asarray(flat)[0].reshape(-1, 2)
    for value, (x, y) in zip(flat, np.asarray(pixels)[0], strict=True):
        np.testing.assert_allclose(value, stn_reference.sample(image, x, y), atol=1e-10)


# --- derivatives ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "perspective", [pytest.param(0.0, marks=pytest.mark.once), 0.09]
)
def test_gradients_of_posing_match_finite_differences(perspective):
    camera = stn_faces.camera(perspective)
    with jax.enable_x64(True):
        model = stn_faces.face(3, 2, dtype=np.float64)

        def pixels(vector):
            pose = layers.posed(model, layers.split(vector), camera, image_size=SIZE)
            return jnp.concatenate([pose.pixels, pose.landmarks])

        pixels = jax.jit(pixels)
        for vector in (stn_faces.thetas(1, 2)[0], np.zeros(8)):
            check_grads(pixels, (jnp.asarray(vector),), order=1, modes=["fwd", "rev"])


def test_no_theta_makes_a_nan():
    """Neither outside the image, nor without size, nor turned by half or many turns."""
    model, rng = stn_faces.face(3, 2), np.random.default_rng(0)
    image = jnp.asarray(rng.uniform(size=(1, 8, 8, 1)), jnp.float32)
    vectors = rng.normal(size=(10_000, 8)) * [2, 2, 2, 3, 3, 3, 3, 3]
    vectors[:500, :3] *= np.pi / np.linalg.norm(vectors[:500, :3], axis=1)[:, None]
    vectors[500:1000, 5] = -rng.uniform(80, 2000, 500)  # the exponential is 0
    vectors[1000:1500, 5] = rng.uniform(20, 2000, 500)
    vectors[1500:2000, :3] = 0.0
    vectors[2000:2500, 3:5] *= 1e4
    vectors[2500:2600] = 0.0

    @jax.jit
    def value_and_gradient(vectors):
        def total(vector):
            camera = stn_faces.camera(0.09)
            pose = layers.posed(model, layers.split(vector), camera, image_size=8)
            flat = layers.flatten_image(image, pose.pixels[None], 3)
            return jnp.sum(flat) + jnp.mean(pose.landmarks)

        return jax.vmap(jax.value_and_grad(total))(vectors)

    value, gradient = value_and_gradient(jnp.asarray(vectors, jnp.float32))
    assert np.isfinite(value).all() and np.isfinite(gradient).all()


# --- errors ---------------------------------------------------------------------------


def test_wrong_shapes_are_named(unchecked):
    model, camera = stn_faces.face(GRID), stn_faces.camera()
    with pytest.raises(ValueError, match="at least 6 entries, got 5"):
        layers.split(jnp.zeros(5))
    with pytest.raises(ValueError, match="4 coefficients"):
        layers.posed(model, layers.split(jnp.zeros(9)), camera, image_size=SIZE)
    with pytest.raises(ValueError, match="25 vertices, got 24"):
        layers.flatten_image(jnp.zeros((1, 4, 4, 1)), jnp.zeros((1, 24, 2)), GRID)
    with pytest.raises(ValueError, match="size=1"):
        layers.project(jnp.zeros((1, 3)), layers.split(jnp.zeros(6)), camera, size=1)
    with pytest.raises(ValueError, match="fov_deg"):
        layers.perspective_of(180.0)
