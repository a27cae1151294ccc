"""Image formation: factors -> canonical image -> reprojection, Eqs. (1), (2).

Canonical depth is warped forward through the rasterizer; the canonical image
is then sampled backward at the points that the warped depth came from (paper
Sec. 6.1).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

import unsup3d_jax.rasterizer as rasterizer
from unsup3d_jax.formation import geometry, lighting, sampling
from unsup3d_jax.formation.types import Canonical, Warped


@dataclasses.dataclass(frozen=True)
class Scene:
    """Camera and depth range; static.

    Attributes:
        fov_deg: angle between the outermost pixel centres of a row.
        centre_depth: z of the rotation centre, scene units.
        depth_min, depth_max: range of the canonical depth, scene units. Warped
            depth is clamped to the range plus half its size on both sides.
        supersample: depth samples per pixel and axis in the forward warp.
        sigma, gamma: softness of the rasterizer (pixels, scene units); both 0
            is a hard z-buffer.
        half_pixel_depth: sample depth half a pixel right and down, as the
            authors' renderer does.
        normal_epsilon: see `geometry.depth_to_normals`; the authors have 1e-7.
    """

    fov_deg: float
    centre_depth: float
    depth_min: float
    depth_max: float
    supersample: int
    sigma: float
    gamma: float
    half_pixel_depth: bool
    normal_epsilon: float

    @property
    def clamp(self) -> tuple[float, float]:
        """Range of warped depth; its upper end marks empty pixels."""
        margin = (self.depth_max - self.depth_min) / 2.0
        return self.depth_min - margin, self.depth_max + margin


def shade_canonical(
    albedo: Float[Array, "b h w 3"],
    depth: Float[Array, "b h w"],
    light: Float[Array, "b 5"],
    scene: Scene,
    *,
    shading: Float[Array, "b h w"] | None = None,
) -> Canonical:
    """The lighting function of Eq. (1): J = Lambda(a, d, l).

    Args:
        albedo, depth, light: canonical.
        scene: camera.
        shading: a map to multiply the albedo with instead of one computed from
            depth and light (Table 3, row 4); the light is then unused.
    """
    normal = jax.vmap(
        lambda d: geometry.depth_to_normals(
            d, fov_deg=scene.fov_deg, norm_epsilon=scene.normal_epsilon
        )
    )(depth)
    if shading is not None:
        image = albedo * shading[..., None]
        return Canonical(normal=normal, shading=shading, image=image)
    image, shading = jax.vmap(lighting.shade)(albedo, normal, light)
    return Canonical(normal=normal, shading=shading, image=image)


def warp_depth(
    depth: Float[Array, "b h w"], view: Float[Array, "b 6"], scene: Scene
) -> tuple[Float[Array, "b h w"], Bool[Array, "b h w"]]:
    """Warps canonical depth maps forward to the input's view, Eq. (6).

    Every pixel is a vertex of a mesh with two triangles a cell, moved by the
    viewpoint and drawn with a z-buffer.

    Args:
        depth: canonical, scene units.
        view: rotation (radians), translation (scene units).

    Returns:
        Depth in the input's view, clamped to `scene.clamp`, and whether the
        mesh covers the pixel (all its samples) within the clamp.
    """
    size = depth.shape[1], depth.shape[2]
    near, far = scene.clamp
    vertices = on_screen(depth, view, scene)
    offset = 0.5 if scene.half_pixel_depth else 0.0
    samples = {
        "background": far,
        "supersample": scene.supersample,
        "pixel_offset": (offset, offset),
    }
    if scene.sigma > 0.0 or scene.gamma > 0.0:
        drawn = rasterizer.render_depth(
            vertices.reshape(len(depth), -1, 3),
            rasterizer.grid_faces(*size),
            size,
            sigma=scene.sigma,
            gamma=scene.gamma,
            **samples,
        )
    else:
        drawn = rasterizer.render_grid_depth(vertices, size, **samples)
    warped = jnp.clip(drawn.depth, near, far)
    return warped, drawn.covered & (warped < far)


def reproject(
    image: Float[Array, "b h w 3"],
    depth: Float[Array, "b h w"],
    view: Float[Array, "b 6"],
    scene: Scene,
) -> Warped:
    """The reprojection Pi of Eq. (1): a canonical image seen from the input.

    Args:
        image: canonical, nominally [0, 1].
        depth: canonical, scene units.
        view: rotation (radians), translation (scene units).

    Returns:
        Image, depth and validity in the input's view. Points that fall beside
        the canonical image are mid-grey, as in the authors' code, whose
        images span [-1, 1] and are zero outside.
    """
    warped, valid = warp_depth(depth, view, scene)
    return Warped(
        depth=warped, valid=valid, image=sample_canonical(image, warped, view, scene)
    )


def sample_canonical(
    image: Float[Array, "b h w 3"],
    warped: Float[Array, "b h w"],
    view: Float[Array, "b 6"],
    scene: Scene,
) -> Float[Array, "b h w 3"]:
    """Looks up, for every pixel of the input's view, its canonical colour.

    Args:
        image: canonical, nominally [0, 1].
        warped: depth in the input's view, of `warp_depth`.
        view: rotation (radians), translation (scene units).

    Returns:
        Mid-grey where the surface point lies beside the canonical image.
    """

    grid = canonical_grid(warped, view, scene)
    return sampling.sample_bilinear(image - 0.5, grid) + 0.5


def on_screen(
    depth: Float[Array, "b h w"], view: Float[Array, "b 6"], scene: Scene
) -> Float[Array, "b h w 3"]:
    """Where each pixel of the canonical view lies in the input's, hidden or not.

    Args:
        depth: canonical, scene units.
        view: rotation (radians), translation (scene units).

    Returns:
        u, v in pixels, z in scene units.
    """
    size = depth.shape[1], depth.shape[2]

    def to_screen(depth: Array, view: Array) -> Array:
        points = geometry.depth_to_points(depth, fov_deg=scene.fov_deg)
        points = geometry.transform(points, view, centre_depth=scene.centre_depth)
        pixels = geometry.project(points, size, fov_deg=scene.fov_deg)
        return jnp.concatenate([pixels, points[..., 2:]], axis=-1)

    return jax.vmap(to_screen)(depth, view)


def canonical_grid(
    warped: Float[Array, "b h w"], view: Float[Array, "b 6"], scene: Scene
) -> Float[Array, "b h w 2"]:
    """Where in the canonical image each pixel of the input's view comes from.

    Args:
        warped: depth in the input's view, of `warp_depth`.
        view: rotation (radians), translation (scene units).

    Returns:
        (u, v) in pixels.
    """

    def source(depth: Array, view: Array) -> Array:
        points = geometry.depth_to_points(depth, fov_deg=scene.fov_deg)
        points = geometry.inverse_transform(
            points, view, centre_depth=scene.centre_depth
        )
        h, w = depth.shape
        return geometry.project(points, (h, w), fov_deg=scene.fov_deg)

    return jax.vmap(source)(warped, view)
