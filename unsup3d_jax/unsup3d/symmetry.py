"""How symmetric a photo is, by the model: a number, and where it is not, a picture."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from unsup3d_jax.data import tiles
from unsup3d_jax.formation import geometry
from unsup3d_jax.formation.reprojection import Scene
from unsup3d_jax.show import pictures
from unsup3d_jax.show.viewer.content import Map

_SIZE = 256  # pixels, about
# The least end of the picture's scale, so that noise does not fill it:
# doublings of sigma, and a difference of colours in [0, 1].
_LEAST_DOUBLINGS, _LEAST_DIFFERENCE = 0.05, 0.01
_RED = (0.95, 0.1, 0.1)
_OPACITY = 0.75  # of the red at the scale's end


@dataclasses.dataclass(frozen=True)
class Asymmetry:
    """How much worse the mirrored reconstruction explains each pixel.

    Attributes:
        heat: 0 off the object. With confidence: doublings of sigma' over sigma, above
            their median on the object. Without: mean absolute difference over channels
            of the two reconstructions, colours in [0, 1].
        doublings: which of the two.
        mean: of the heat over the object.
        top: end of the picture's scale: what 1 % of the object exceed.
    """

    heat: Float[np.ndarray, "h w"]
    doublings: bool
    mean: float
    top: float

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> "Asymmetry":
        """Of `named_arrays`."""
        mask = arrays["recon_mask"] > 0.5
        doublings = "conf_sigma" in arrays and "conf_sigma_flip" in arrays
        least = _LEAST_DOUBLINGS if doublings else _LEAST_DIFFERENCE
        if not mask.any():
            return cls(np.zeros(mask.shape, np.float32), doublings, 0.0, least)
        if doublings:
            # Sigma is a softplus, which underflows to 0 for total trust.
            floor = 1e-6
            ratio = np.log2(np.maximum(arrays["conf_sigma_flip"], floor))
            ratio -= np.log2(np.maximum(arrays["conf_sigma"], floor))
            heat = np.maximum(ratio - np.median(ratio[mask]), 0.0)
        else:
            difference = arrays["recon_image"] - arrays["recon_image_flip"]
            heat = np.abs(difference).mean(-1)
        heat = np.where(mask, heat, 0.0).astype(np.float32)
        top = max(least, float(np.quantile(heat[mask], 0.99)))
        return cls(heat, doublings, float(heat[mask].mean()), top)

    def numbers(self) -> dict[str, Any]:
        """For a record."""
        unit = (
            "doublings of sigma'/sigma above their median"
            if self.doublings
            else ("difference of the reconstructions, colours in [0, 1]")
        )
        return {"unit": unit, "mean": self.mean, "scale_end": self.top}

    def words(self) -> tuple[str, str, str]:
        """Start and end of the picture's scale, and what stands between them."""
        if not self.doublings:
            return (
                "0",
                f"{self.top:.2g}",
                f"asymmetry: colours differ by {self.mean:.2g}",
            )
        # Near 1 the digits behind it count.
        mean, top = (
            f"x{x:.3f}" if x < 2.0 else f"x{x:.3g}"
            for x in (2.0**self.mean, 2.0**self.top)
        )
        return "x1", top, f"asymmetry: sigma'/sigma {mean}"


def symmetry_line(
    arrays: dict[str, np.ndarray], scene: Scene
) -> tuple[Float[np.ndarray, "h 2"], Bool[np.ndarray, " h"]]:
    """Where the canonical midline lies in the input.

    Returns:
        Pixel coordinates (u, v), top to bottom, and whether the surface is seen
        there (not hidden behind another part, nor outside the image).
    """
    depth = arrays["canon_depth"]
    h, w = depth.shape
    points = np.asarray(
        geometry.depth_to_points(jnp.asarray(depth), fov_deg=scene.fov_deg)
    )
    middle = (points[:, (w - 1) // 2] + points[:, w // 2]) / 2.0
    moved = geometry.transform(
        jnp.asarray(middle),
        jnp.asarray(arrays["view"]),
        centre_depth=scene.centre_depth,
    )
    pixels = np.asarray(geometry.project(moved, (h, w), fov_deg=scene.fov_deg))
    nearest = np.round(pixels).astype(int)
    inside = ((nearest >= 0) & (nearest < [w, h])).all(axis=1)
    u, v = np.clip(nearest, 0, [w - 1, h - 1]).T
    # The warped depth is that of the pixel's centre, up to half a pixel away:
    # allow a slope of about 70 degrees.
    pixel = float(np.max(np.abs(points[0, 1, 0] - points[0, 0, 0])))
    behind = np.asarray(moved)[:, 2] - arrays["recon_depth"][v, u]
    return pixels, inside & (behind < 1.5 * pixel) & (arrays["recon_mask"][v, u] > 0.5)


def symmetry_picture(
    arrays: dict[str, np.ndarray], asymmetry: Asymmetry, scene: Scene
) -> UInt8[np.ndarray, "H W 3"]:
    """The input, asymmetric regions in red, the symmetry plane as a line.

    Below it the scale of the red, which ends where the picture's heat does, and the
    mean over the object.
    """
    h, w = arrays["canon_depth"].shape
    scale = max(1, round(_SIZE / w))
    size = (scale * w, scale * h)
    heat = Image.fromarray(tiles.to_bytes(asymmetry.heat / asymmetry.top))
    heat = np.asarray(heat.resize(size, Image.Resampling.BILINEAR)) / 255.0
    picture = Image.fromarray(tiles.to_bytes(arrays["input"]))
    picture = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) / 255.0
    picture = tiles.to_bytes(_reddened(picture, heat))

    # Drawn twice as large, then averaged, for smooth edges.
    canvas = Image.fromarray(picture).resize((2 * size[0], 2 * size[1]))
    draw = ImageDraw.Draw(canvas)
    pixels, seen = symmetry_line(arrays, scene)
    pixels = 2 * scale * (pixels + 0.5)
    for i in range(h - 1):
        if seen[i] and seen[i + 1]:
            ends = [tuple(pixels[i]), tuple(pixels[i + 1])]
            draw.line(ends, fill=(60, 255, 120), width=4)
    picture = np.asarray(canvas.resize(size, Image.Resampling.BOX))
    ramp = np.linspace(0.0, 1.0, size[0])
    legend = pictures.scale_bar(
        _reddened(np.full((size[0], 3), 0.6), ramp), asymmetry.words()
    )
    return np.concatenate([picture, legend])


def asymmetry_map(arrays: dict[str, np.ndarray], asymmetry: Asymmetry) -> Map:
    """The same red on the input, for the viewer."""
    heat = np.clip(asymmetry.heat / asymmetry.top, 0.0, 1.0)
    return Map(
        "symmetry",
        "Symmetry",
        "Red where the mirrored shape explains the photo worse",
        _reddened(arrays["input"], heat),
    )


def _reddened(
    colours: Float[np.ndarray, "*n 3"], heat: Float[np.ndarray, "*n"]
) -> Float[np.ndarray, "*n 3"]:
    alpha = _OPACITY * heat[..., None]
    return (1.0 - alpha) * colours + alpha * np.array(_RED)
