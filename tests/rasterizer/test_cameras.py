"""Cameras: the formulas point by point, laws, gradients, nasty poses."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rasterizer
from rasterizer import reference
from tests.rasterizer import scenes
from tests.rasterizer.test_gradients import numeric_gradient

SIZE = (9, 12)
NUMBERS = st.floats(-3.0, 3.0, width=32)
ROTATE = jax.jit(rasterizer.rotation_matrix)
VECTORS = st.tuples(NUMBERS, NUMBERS, NUMBERS).map(np.array)


@pytest.fixture(autouse=True)
def optimised():
    """Not here: nothing of this depends on what a compiler makes of it."""


def turn(vector):
    """exp of the cross product's matrix, by its series; float64."""
    x, y, z = vector
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]], np.float64)
    term = total = np.eye(3)
    for k in range(1, 60):
        term = term @ cross / k
        total = total + term
    return total


def slow_project(point, rotation, translation, focal, centre, parallel):
    """One point, step by step."""
    x, y, z = rotation @ point + translation
    if parallel:
        return [focal[0] * x + centre[0], focal[1] * y + centre[1], z]
    return [focal[0] * x / z + centre[0], focal[1] * y / z + centre[1], z]


def camera_of(numbers, parallel):
    """A camera of 10 numbers: rotation vector, translation, focal, centre."""
    pose = rasterizer.rotation_matrix(numbers[:3]), numbers[3:6]
    options = {"centre": numbers[8:10], "pose": pose}
    if parallel:
        return rasterizer.orthographic_camera(SIZE, scale=numbers[6:8], **options)
    return rasterizer.perspective_camera(SIZE, focal=numbers[6:8], **options)


NUMBERS_OF_A_CAMERA = np.array([0.2, -0.5, 0.3, 0.1, 0.2, 4.0, 7.0, 8.0, 5.0, 4.0])


@pytest.mark.parametrize("parallel", [False, True])
def test_projection_matches_the_formulas(parallel):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(2, 5, 3)).astype(np.float32)
    numbers = (NUMBERS_OF_A_CAMERA + rng.normal(0, 0.1, (2, 10))).astype(np.float32)
    expected = [
        [slow_project(p, turn(n[:3]), n[3:6], n[6:8], n[8:10], parallel) for p in mesh]
        for mesh, n in zip(points.astype(np.float64), numbers, strict=True)
    ]
    cameras = jax.vmap(partial(camera_of, parallel=parallel))(numbers)
    assert cameras.rotation.shape == (2, 3, 3) and cameras.parallel == parallel
    got = rasterizer.project(points, cameras)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    each = jax.vmap(rasterizer.project)(points, cameras)
    np.testing.assert_allclose(got, each, rtol=1e-6)
    # One mesh before two cameras, and one camera before two meshes.
    two = rasterizer.project(points[0], cameras)
    np.testing.assert_allclose(two[0], got[0], rtol=1e-6)
    one = jax.tree.map(lambda v: v[1], cameras)
    np.testing.assert_allclose(rasterizer.project(points, one)[1], got[1], rtol=1e-6)


def test_the_field_of_view_lies_between_the_outermost_pixel_centres():
    camera = rasterizer.perspective_camera(SIZE, fov_deg=50.0)
    edge = math.tan(math.radians(25.0))
    points = 3.0 * np.array([[-edge, 0.0, 1.0], [edge, 0.0, 1.0], [0.0, 0.0, 1.0]])
    vertices = rasterizer.project(points, camera)
    expected = [[0.0, 4.0, 3.0], [11.0, 4.0, 3.0], [5.5, 4.0, 3.0]]
    np.testing.assert_allclose(vertices, expected, atol=1e-5)
    inside = jax.jit(lambda: rasterizer.perspective_camera(SIZE, fov_deg=50.0).focal)()
    np.testing.assert_allclose(inside, camera.focal)
    several = rasterizer.perspective_camera(SIZE, fov_deg=jnp.array([50.0, 20.0]))
    assert several.focal.shape == (2, 2)
    np.testing.assert_allclose(several.focal[0], camera.focal)


@pytest.mark.parametrize("parallel", [False, True])
def test_projection_matches_finite_differences(parallel):
    rng = np.random.default_rng(1)
    points, weight = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))

    def total(numbers, points):
        camera = camera_of(numbers, parallel)
        return jnp.sum(weight * rasterizer.project(points, camera))

    with jax.enable_x64(True):
        total = jax.jit(total)
        for k, value in enumerate((NUMBERS_OF_A_CAMERA, points)):
            held = [NUMBERS_OF_A_CAMERA, points]

            def by_one(v, k=k, held=held):
                return total(*held[:k], v, *held[k + 1 :])

            expected = numeric_gradient(by_one, value)
            assert np.abs(expected).max() > 0.1
            for derive in (jax.grad, jax.jacfwd):
                gradient = derive(by_one)(value)
                np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-7)


@partial(jax.jit, static_argnums=2)
def there_and_back(pixels, numbers, parallel):
    camera = camera_of(numbers, parallel)
    return rasterizer.project(rasterizer.unproject(pixels, camera), camera)


@given(VECTORS, VECTORS, st.booleans(), st.floats(0.1, 30.0))
@settings(max_examples=30, deadline=None)
def test_unprojecting_undoes_projecting(vector, shift, parallel, depth):
    numbers = np.concatenate([vector, shift, NUMBERS_OF_A_CAMERA[6:]])
    pixels = np.array([[0.0, 0.0, depth], [11.0, 3.5, 2 * depth]])
    with jax.enable_x64(True):
        back = there_and_back(pixels, numbers, parallel)
    np.testing.assert_allclose(back, pixels, rtol=1e-9, atol=1e-9)


def test_points_that_have_no_place_on_the_screen_have_no_gradient_there():
    camera = rasterizer.perspective_camera(SIZE, fov_deg=50.0)
    points = np.array([[1, 1, 0], [1, 1, -1], [1, 1, 1e-30], [1, 1, 2]], np.float32)
    vertices, pull = jax.vjp(lambda p: rasterizer.project(p, camera), points)
    (gradient,) = pull(jnp.ones_like(vertices))
    assert np.isfinite(vertices).all() and np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[:3, 2], 1.0)


# --- poses ------------------------------------------------------------------------


@given(VECTORS)
@settings(max_examples=60, deadline=None)
def test_rotations_match_the_exponential(vector):
    with jax.enable_x64(True):
        got = ROTATE(vector)
    np.testing.assert_allclose(got, turn(vector), atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-5, 0.9e-4, 1.1e-4, 1.0, math.pi])
def test_rotations_have_a_derivative_wherever(scale):
    vector = scale * np.array([2.0, -1.0, 2.0]) / 3.0
    weight = np.random.default_rng(0).normal(size=(3, 3))
    with jax.enable_x64(True):
        total = jax.jit(lambda v: jnp.sum(weight * rasterizer.rotation_matrix(v)))
        expected = numeric_gradient(lambda v: np.sum(weight * turn(v)), vector)
        for derive in (jax.grad, jax.jacfwd):
            np.testing.assert_allclose(derive(total)(vector), expected, atol=1e-8)


@jax.jit
def look(*where):
    """`look_at`, and the gradient of the sum of what it gives."""
    pose, pull = jax.vjp(rasterizer.look_at, *where)
    return pose, pull((jnp.ones((3, 3)), jnp.ones(3)))


@given(VECTORS, VECTORS, VECTORS, st.sampled_from(["free", "along", "zero", "same"]))
@settings(max_examples=60, deadline=None)
def test_look_at_looks_there_the_right_way_up(eye, target, up, nasty):
    if nasty == "along":
        up = 2.0 * (target - eye)
    elif nasty == "zero":
        up = np.zeros(3)
    elif nasty == "same":
        target = eye
    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, look(eye, target, up))
    (rotation, translation), gradients = found
    assert all(np.isfinite(v).all() for v in gradients)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) > 0
    there = rotation @ target + translation
    distance = np.linalg.norm(target - eye)
    np.testing.assert_allclose(there, [0, 0, distance], atol=1e-9)
    np.testing.assert_allclose(rotation @ eye + translation, 0.0, atol=1e-9)
    # What is upwards lies above the middle of the image, and neither right nor left.
    length = np.linalg.norm(up)
    if length > 0 and np.linalg.norm(np.cross(rotation[2], up)) > 1e-5 * length:
        seen = rotation @ up / length
        assert seen[1] < 0 and abs(seen[0]) < 1e-9


def test_look_at_is_the_identity_in_the_middle_of_nothing():
    rotation, translation = rasterizer.look_at([0.0, 0, 0], [0.0, 0, 5])
    np.testing.assert_allclose(rotation, np.eye(3), atol=1e-7)
    np.testing.assert_array_equal(translation, 0.0)
    eyes = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    rotation, translation = rasterizer.look_at(eyes, [0.0, 0, 5])
    assert rotation.shape == (2, 3, 3) and translation.shape == (2, 3)
    camera = rasterizer.perspective_camera(
        SIZE, fov_deg=40.0, pose=(rotation, translation)
    )
    middle = rasterizer.project(np.array([[0.0, 0, 5]], np.float32), camera)
    np.testing.assert_allclose(middle[:, 0, :2], [[5.5, 4.0]] * 2, atol=1e-5)


def test_look_at_matches_finite_differences():
    rng = np.random.default_rng(2)
    where = rng.normal(size=(3, 3))
    weight = rng.normal(size=12)

    def total(where):
        rotation, translation = rasterizer.look_at(*where)
        return jnp.sum(weight * jnp.append(rotation.ravel(), translation))

    with jax.enable_x64(True):
        expected = numeric_gradient(jax.jit(total), where)
        for derive in (jax.grad, jax.jacfwd):
            gradient = jax.jit(derive(total))(where)
            np.testing.assert_allclose(gradient, expected, atol=1e-7)


# --- parallel rays ----------------------------------------------------------------


def slow_parallel(vertices, faces, size):
    """Depth, linear on the screen, of the nearest face at each pixel; float64."""
    depth = np.full(size, np.inf)
    for i, j in np.ndindex(*size):
        for a, b, c in vertices[faces]:
            matrix = np.array([[a[0], b[0], c[0]], [a[1], b[1], c[1]], [1, 1, 1]])
            if abs(np.linalg.det(matrix)) > 1e-9:
                weight = np.linalg.solve(matrix, [j, i, 1])
                if (weight >= 0).all():
                    depth[i, j] = min(depth[i, j], weight @ [a[2], b[2], c[2]])
    return depth


def test_parallel_rays_see_depth_linear_on_the_screen(backend):
    vertices, faces = scenes.soup(7, count=40, size=SIZE)
    vertices[:, 2] *= vertices[:, 2]  # steep: no face is where a perspective has it
    expected = slow_parallel(vertices.astype(np.float64), faces, SIZE)
    options = {"parallel": True}
    got = rasterizer.rasterize(vertices, faces, SIZE, backend=backend, **options)
    near = np.isclose(got.depth, expected, rtol=1e-3, atol=1e-3)
    # Snapping moves outlines by up to 1/512 pixel.
    assert near.mean() > 0.98 and np.isfinite(expected).mean() > 0.5
    values = rasterizer.interpolate(vertices, faces, got)
    drawn = got.face_index >= 0
    np.testing.assert_allclose(values[..., 2][drawn], got.depth[drawn], rtol=1e-5)
    other = reference.rasterize(vertices, faces, SIZE)
    assert (np.asarray(got.face_index) != other.face_index).mean() > 0.02


def test_parallel_rays_keep_the_rules():
    vertices, faces = scenes.soup(5, count=40, size=SIZE)
    vertices[6] = np.nan
    options = {"near": 0.9, "far": 2.2, "cull": "back"}
    got = rasterizer.rasterize(vertices, faces, SIZE, parallel=True, **options)
    seen = np.unique(got.face_index[got.face_index >= 0])
    z = vertices[faces[seen], 2]
    assert len(seen) and z.min() > 0.9 and z.max() < 2.2
    # Faces of one depth each are the same to either camera.
    vertices[:, 2] = np.repeat(vertices[::3, 2], 3)
    got = rasterizer.rasterize(vertices, faces, SIZE, parallel=True, **options)
    same = rasterizer.rasterize(vertices, faces, SIZE, **options)
    np.testing.assert_array_equal(got.face_index, same.face_index)
    np.testing.assert_allclose(got.depth, same.depth, rtol=1e-6)


@pytest.mark.once
def test_parallel_depth_matches_finite_differences():
    vertices, faces = scenes.soup(11, count=6, size=SIZE)
    weight = np.random.default_rng(0).normal(size=SIZE)
    with jax.enable_x64(True):
        vertices = vertices.astype(np.float64)
        index = rasterizer.rasterize(vertices, faces, SIZE, parallel=True).face_index

        @jax.jit
        def total(v):
            where, depth = rasterizer.barycentrics_at(v, faces, index, parallel=True)
            values = jnp.sum(where * jnp.array([1.0, -2.0, 0.5]), axis=-1)
            return jnp.sum(weight * jnp.where(index >= 0, depth + values, 0.0))

        expected = numeric_gradient(total, vertices)
        np.testing.assert_allclose(jax.grad(total)(vertices), expected, atol=1e-6)
    assert np.abs(expected).max() > 0.1


# --- errors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "fov_deg or focal"),
        ({"fov_deg": 10.0, "focal": 3.0}, "fov_deg or focal"),
        ({"fov_deg": 180.0}, r"fov_deg .* got 180"),
        ({"fov_deg": float("nan")}, "fov_deg"),
        ({"focal": 3.0, "centre": 1.0}, "centre"),
        ({"focal": 3.0, "pose": (np.eye(2), np.zeros(3))}, "rotation"),
        ({"focal": 3.0, "pose": (np.eye(3), np.zeros(4))}, "translation"),
    ],
)
def test_a_bad_camera_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        rasterizer.perspective_camera(SIZE, **options)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="2 pixels wide"):
        rasterizer.perspective_camera((3, 1), fov_deg=10.0)
    with pytest.raises(ValueError, match="points"):
        rasterizer.project(np.zeros(3), rasterizer.orthographic_camera(SIZE, scale=1.0))
    with pytest.raises(ValueError, match="eye"):
        rasterizer.look_at(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="vector"):
        rasterizer.rotation_matrix(np.zeros(2))
    with pytest.raises(ValueError, match="parallel"):
        rasterizer.rasterize(np.zeros((3, 3)), [[0, 1, 2]], SIZE, parallel=1)  # pyright: ignore
