"""Raw network outputs -> factors: the ranges that a method allows (Sec. 4.1).

Of plain numbers, so that every method can use them: what the networks are, and where
the numbers come from, is the caller's. "Raw" is what a network gives: linear for
maps, in [-1, 1] for light and viewpoint. `compose` puts factors of different images
together.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from unsup3d_jax.formation.types import Conditions, Factors, Surface


@dataclasses.dataclass(frozen=True)
class InitialBump:
    """What an untrained depth looks like: gain raw - height gaussian; static.

    Attributes:
        height: of the bump towards the camera, before tanh.
        width: standard deviation over half the image's width (and height).
        gain: factor of the network's output.
    """

    height: float
    width: float
    gain: float


@dataclasses.dataclass(frozen=True)
class ViewReach:
    """How far the viewpoint goes in either direction; static.

    Attributes:
        rotation_max_deg: of each of the three angles.
        translation_xy_max, translation_z_max: scene units.
    """

    rotation_max_deg: float
    translation_xy_max: float
    translation_z_max: float


def depth_from_raw(
    raw: Float[Array, "b h w"],
    *,
    limits: tuple[float, float],
    centre: bool,
    bump: InitialBump | None = None,
) -> Float[Array, "b h w"]:
    """Depth head: initial bump, centring on the mean, tanh, range.

    Args:
        raw: network output.
        limits: (nearest, farthest), scene units; static.
        centre: subtract each image's mean before tanh; static. Then only depths
            whose mean before tanh is 0 can be represented.
        bump: None: the depth is the network's alone.

    Returns:
        Depth within the limits, scene units, border not clamped.
    """
    near, far = limits
    if bump is not None:
        h, w = raw.shape[1:]
        x = (jnp.arange(w) - (w - 1) / 2) / (bump.width * w / 2)
        y = (jnp.arange(h) - (h - 1) / 2) / (bump.width * h / 2)
        gaussian = jnp.exp(-0.5 * (x[None, :] ** 2 + y[:, None] ** 2))
        raw = bump.gain * raw - bump.height * gaussian
    if centre:
        raw = raw - raw.mean((1, 2), keepdims=True)
    t = (1.0 + jnp.tanh(raw)) / 2.0
    return t * far + (1.0 - t) * near


def clamp_border(
    depth: Float[Array, "b h w"], *, columns: int, value: float, weight: float = 1.0
) -> Float[Array, "b h w"]:
    """Pulls the outer left and right columns to a far depth.

    Args:
        depth: scene units.
        columns: how many on each side; static.
        value: depth of the border, scene units.
        weight: share b of the border's own depth, depth (1 - b) + value b; static.
            1 fixes it. The code of GAN2Shape (Pan et al., ICLR 2021) has 1.02,
            which goes a little too far, against the network's depth.
    """
    w = depth.shape[2]
    column = jnp.arange(w)
    border = (column < columns) | (column >= w - columns)
    if weight == 1.0:  # exact, and with no gradient at all
        return jnp.where(border, value, depth)
    pull = jnp.where(border, weight, 0.0).astype(depth.dtype)
    return depth * (1.0 - pull) + value * pull


def albedo_from_raw(raw: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Albedo head: tanh to [0, 1]."""
    return rescale(jnp.tanh(raw), (0.0, 1.0))


def shading_from_raw(
    raw: Float[Array, "b h w"], *, limits: tuple[float, float]
) -> Float[Array, "b h w"]:
    """Head of a predicted shading map: tanh to its limits (least, largest)."""
    return rescale(jnp.tanh(raw), limits)


def light_from_raw(
    raw: Float[Array, "b 4"],
    *,
    ambient_range: tuple[float, float],
    diffuse_range: tuple[float, float],
) -> Float[Array, "b 5"]:
    """Light head: two strengths, and the direction (x, y, 1) made unit.

    Args:
        raw: ambient, diffuse, x, y; nominally in [-1, 1], where the strengths
            span their ranges (least, largest).

    Returns:
        Ambient k_s, diffuse k_d, unit direction.
    """
    direction = jnp.concatenate([raw[:, 2:4], jnp.ones((len(raw), 1))], axis=1)
    direction = direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
    return jnp.concatenate(
        [
            rescale(raw[:, 0:1], ambient_range),
            rescale(raw[:, 1:2], diffuse_range),
            direction,
        ],
        axis=1,
    )


def view_from_raw(
    raw: Float[Array, "b 6"],
    reach: ViewReach,
    *,
    share: Float[Array, ""] | None = None,
) -> Float[Array, "b 6"]:
    """View head: angles and translations within their reach.

    Args:
        raw: rotation x, y, z, translation x, y, z; nominally in [-1, 1].
        reach: static.
        share: of the reach that is in use, in (0, 1], traced; None: all of it.

    Returns:
        Rotation (radians), translation (scene units).
    """
    rotation = jnp.radians(reach.rotation_max_deg)
    limits = [rotation] * 3 + [reach.translation_xy_max] * 2
    view = raw * jnp.array([*limits, reach.translation_z_max])
    if share is not None:
        view = view * share
    return view


def rescale(x: Float[Array, "*n"], limits: tuple[float, float]) -> Float[Array, "*n"]:
    """[-1, 1] to (least, largest), linearly."""
    return (1.0 + x) / 2.0 * (limits[1] - limits[0]) + limits[0]


def compose(surface: Surface, conditions: Conditions) -> Factors:
    """The factors of images whose surface and conditions were read apart.

    Args:
        surface: of as many images as `conditions`; or of one, which all share.
        conditions: of one image or more.

    Raises:
        ValueError: if there are several surfaces, but not one for each image.
    """
    given, count = len(surface.canon_depth), len(conditions.view)
    if given not in (1, count):
        raise ValueError(f"need 1 or {count} surfaces, one an image, got {given}.")
    fields = _fields(surface)
    if given != count:
        fields = {
            name: None if a is None else jnp.broadcast_to(a, (count, *a.shape[1:]))
            for name, a in fields.items()
        }
    return Factors(**fields, **_fields(conditions))


def _fields(node: Any) -> dict[str, Any]:
    return {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
