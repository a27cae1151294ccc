"""Laws of Lambertian shading."""

import jax.numpy as jnp
import numpy as np

from unsup3d_jax.formation import geometry, lighting


def _light(ambient, diffuse, direction):
    direction = np.asarray(direction, float)
    return jnp.array([ambient, diffuse, *(direction / np.linalg.norm(direction))])


def test_head_on_light_adds_ambient_and_diffuse():
    albedo = jnp.full((2, 2, 3), 0.5)
    normal = jnp.tile(jnp.array([0.0, 0.0, 1.0]), (2, 2, 1))
    image, shading = lighting.shade(albedo, normal, _light(0.3, 0.6, [0, 0, 1]))
    np.testing.assert_allclose(image, 0.45, rtol=1e-6)
    np.testing.assert_allclose(shading, 1.0, rtol=1e-6)


def test_a_surface_turned_away_receives_ambient_only():
    albedo = jnp.full((1, 1, 3), 0.5)
    normal = jnp.array([[[-1.0, 0.0, 0.0]]])
    image, shading = lighting.shade(albedo, normal, _light(0.3, 0.6, [1, 0, 0.2]))
    assert float(shading[0, 0]) == 0.0
    np.testing.assert_allclose(image, 0.15, rtol=1e-6)


def test_light_travelling_down_brightens_the_upper_side_of_a_ball():
    v, u = np.mgrid[-1:1:33j, -1:1:33j]
    depth = 1.0 - 0.05 * np.sqrt(np.maximum(0.0, 1.2 - u**2 - v**2))
    normal = geometry.depth_to_normals(jnp.asarray(depth), fov_deg=10.0)
    light = _light(0.0, 1.0, [0, 1, 1])
    _, shading = lighting.shade(jnp.ones((33, 33, 3)), normal, light)
    assert shading[6, 16] > shading[26, 16] + 0.2


def test_canonical_light_sees_canonical_normals_as_the_camera_saw_them():
    view = jnp.array([0.2, -0.4, 0.1, 0.0, 0.0, 0.0])
    light = _light(0.4, 0.5, [0.3, 0.5, 1.0])
    normal = jnp.array([0.1, -0.2, 0.97])
    seen = geometry.rotation_matrix(view[:3]) @ normal
    turned = lighting.to_canonical(light, view)
    np.testing.assert_allclose(turned[2:] @ normal, light[2:] @ seen, rtol=1e-5)
    np.testing.assert_array_equal(turned[:2], light[:2])
