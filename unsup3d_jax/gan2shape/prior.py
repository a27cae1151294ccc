"""The convex shape that GAN2Shape begins with (Pan et al., ICLR 2021, Sec. 3.1).

A spherical cap as wide and as high as the object's mask, towards the camera, before a
plane. Host side, numpy: a prior is made once for each image. `SHAPES` are those of
Table 2.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

SHAPES = ("ellipsoid", "asymmetric", "shift6", "shift4", "weak", "flat")
CATEGORIES = ("none", "synface", "face", "car")
# Masks may be the mean of several, with values 0, 0.5 and 1 (code).
THRESHOLD = 0.7
# Semi-axes of the fixed ellipse over width and height.
FIXED_AXES = (0.34, 0.42)


@dataclasses.dataclass(frozen=True)
class PriorOptions:
    """Section prior of a config.

    Attributes:
        shape: of `SHAPES`.
        near, far: depth of the cap's top, and of the plane, scene units.
        radius: of the sphere that the cap is cut from, scene units.
        category: of `CATEGORIES`; what is changed in the mask's box.
        compat: rows are stretched about the middle of the image, as the authors' code
            does, not about that of the mask: a tall mask off the middle shifts the cap.
        stretch: height of the cap over that of the box, about the box's middle.
    """

    shape: str
    near: float
    far: float
    radius: float
    category: str
    compat: bool
    stretch: float = 1.0


@dataclasses.dataclass(frozen=True)
class Box:
    """Where an object is: indices of its outermost pixels, perhaps moved."""

    x0: float
    x1: float
    y0: float
    y1: float


def box_of(mask: Float[np.ndarray, "h w"], category: str) -> Box:
    """The box of a mask after the category's tweaks (code).

    Args:
        mask: in [0, 1]; the object is where it is at least `THRESHOLD`.
        category: of `CATEGORIES`.

    Raises:
        ValueError: if the mask is empty, or one pixel wide or high.
    """
    rows, columns = np.nonzero(np.asarray(mask) >= THRESHOLD)
    if len(rows) == 0:
        raise ValueError(f"the mask is empty: no value reaches {THRESHOLD}.")
    x0, x1 = float(columns.min()), float(columns.max())
    y0, y1 = float(rows.min()), float(rows.max())
    if x0 == x1 or y0 == y1:
        raise ValueError("the mask is one pixel wide or high.")
    width, height = x1 - x0, y1 - y0
    if category == "synface":
        y0 -= height / 6
    elif category == "face":
        y1 = len(mask) - 1.0
        x0, x1 = x0 + width / 12, x1 - width / 12
    elif category == "car":  # and church
        y1 += height / 6
    elif category != "none":
        raise ValueError(f"category must be one of {CATEGORIES}, got {category!r}.")
    return Box(x0, x1, y0, y1)


def prior_depth(
    mask: Float[np.ndarray, "h w"], options: PriorOptions
) -> Float[np.ndarray, "h w"]:
    """The depth that step 0 fits to one image.

    With r = (x1 - x0) / 2 and the distance rho to the box's centre in rows that are
    squeezed to the ratio of the box, its height times `stretch`:

        depth = near + R - sqrt(|R^2 - (rho / r chord)^2|)   where rho <= r, else far
        chord = sqrt(R^2 - (R - (far - near))^2)

    Args:
        mask: of the object, in [0, 1].

    Returns:
        float32, scene units: near in the middle, far on the rim and beyond.

    Raises:
        ValueError: see `box_of`; and for another shape, or a cap higher than a ball.
    """
    shape, near, far = options.shape, options.near, options.far
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {SHAPES}, got {shape!r}.")
    h, w = mask.shape
    if shape == "flat":
        return np.full((h, w), far, np.float32)
    if shape == "weak":  # half as high
        near = (near + far) / 2
    box = box_of(mask, options.category)
    width, height = box.x1 - box.x0, box.y1 - box.y0
    centre_x, centre_y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    if shape in ("shift6", "shift4"):
        centre_x += width / (6 if shape == "shift6" else 4)
    height *= options.stretch
    radius, relief = width / 2, far - near
    sphere = options.radius
    if not 0 < relief <= sphere:
        raise ValueError(
            f"need 0 < far - near <= radius, got {near=}, {far=}, radius {sphere}."
        )
    chord = math.sqrt(sphere**2 - (sphere - relief) ** 2)
    column, row = (
        np.arange(w, dtype=np.float64),
        np.arange(h, dtype=np.float64)[:, None],
    )
    ratio = np.full((1, w), height / width)
    if shape == "asymmetric":  # half an ellipsoid, half a ball
        ratio = np.where(column > centre_x, 1.0, ratio)
    middle = h / 2 if options.compat else centre_y
    stretched = (row - middle) / ratio + middle
    rho = np.hypot(stretched - centre_y, column - centre_x)
    cap = near + sphere - np.sqrt(np.abs(sphere**2 - (rho / radius * chord) ** 2))
    return np.where(rho <= radius, cap, far).astype(np.float32)


def fixed_ellipse(size: int) -> Float[np.ndarray, "h w"]:
    """A mask for photos of which nothing is known: an ellipse in the middle."""
    axis = (np.arange(size) - (size - 1) / 2) / size
    x, y = axis / FIXED_AXES[0], axis[:, None] / FIXED_AXES[1]
    return (x**2 + y**2 <= 1.0).astype(np.float32)
