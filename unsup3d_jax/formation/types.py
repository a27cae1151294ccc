"""The contracts between the stages: image -> Factors -> Reconstruction -> loss.

All are frozen pytrees. Shapes below omit a leading batch axis `b` that every
array carries outside the functions written for one example. Frames, axes and
pixel conventions: `unsup3d_jax.formation.geometry`.
"""

from typing import TYPE_CHECKING

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

# For functions that take what came from the device and what is there still.
AnyArray = Array | np.ndarray
# What lies at the leaves of a pytree: arrays, for all who read them; while JAX takes
# trees apart and puts them together also what stands for an array.
if TYPE_CHECKING:
    Leaf = Array
else:
    Leaf = Array | np.ndarray | jax.ShapeDtypeStruct | jax.stages.ArgInfo


@struct.dataclass
class Batch:
    """Images and, where a data set knows them, their true factors and labels.

    `data.batches.mirror` says what a mirror image makes of each field. Training
    batches have an axis of devices before `b`.

    Attributes:
        image: (b, h, w, 3) float32 in [0, 1].
        depth: (b, h, w) true depth in the input's view, scene units;
            background holds the far value (1.1).
        mask: (b, h, w) bool, true on the object.
        view: (b, 6) true rotation x, y, z (radians), translation x, y, z.
        light: (b, 5) true ambient, diffuse, unit direction in the *camera*
            frame of the input (`lighting.to_canonical` turns it).
        keypoints: (b, k, 3) u, v (pixels, centres on integers) and depth.
        identity: (b,) int32, equal for images of one object.
        latent: (b, d) the code that a generator made the image from.
    """

    image: Float[Leaf, "*b h w 3"]
    depth: Float[Leaf, "*b h w"] | None = None
    mask: Bool[Leaf, "*b h w"] | None = None
    view: Float[Leaf, "*b 6"] | None = None
    light: Float[Leaf, "*b 5"] | None = None
    keypoints: Float[Leaf, "*b k 3"] | None = None
    identity: Int[Leaf, "*b"] | None = None
    latent: Float[Leaf, "*b d"] | None = None


@struct.dataclass
class Truth:
    """What only an evaluation may know, beside the truth in `Batch`.

    Fields a data set does not know are None.

    Attributes:
        albedo: (b, h, w, 3) in [0, 1], in the input's view; 0 off the object.
        perturb: (b, h, w) bool, where an asymmetric patch was laid.
        keypoints: (b, k, 3) u, v (pixels, centres on integers) and depth.
    """

    albedo: Float[Leaf, "*b h w 3"] | None = None
    perturb: Bool[Leaf, "*b h w"] | None = None
    keypoints: Float[Leaf, "*b k 3"] | None = None


@struct.dataclass
class Surface:
    """What belongs to the object itself, as read off one image: half of `Factors`.

    Attributes:
        raw_depth, canon_depth, canon_albedo, conf_*: as in `Factors`.
    """

    raw_depth: Float[Leaf, "*b h w"]
    canon_depth: Float[Leaf, "*b h w"]
    canon_albedo: Float[Leaf, "*b h w 3"]
    conf_sigma: Float[Leaf, "*b h w"] | None = None
    conf_sigma_flip: Float[Leaf, "*b h w"] | None = None
    conf_sigma_perceptual: Float[Leaf, "*b hp wp"] | None = None
    conf_sigma_perceptual_flip: Float[Leaf, "*b hp wp"] | None = None


@struct.dataclass
class Conditions:
    """How one image was taken: the other half of `Factors`.

    Attributes:
        light, view, canon_shading: as in `Factors`.
    """

    light: Float[Leaf, "*b 5"]
    view: Float[Leaf, "*b 6"]
    canon_shading: Float[Leaf, "*b h w"] | None = None


@struct.dataclass
class Factors:
    """What the networks read off one image; maps are in the canonical frame.

    Attributes:
        raw_depth: (h, w) depth before the border clamp, scene units.
        canon_depth: (h, w) depth, border already clamped, scene units.
        canon_albedo: (h, w, 3) in [0, 1].
        light: (5,) ambient k_s, diffuse k_d, unit direction x, y, z.
        view: (6,) rotation x, y, z (radians), translation x, y, z.
        conf_sigma, conf_sigma_flip: (h, w) photometric sigma, sigma' > 0 in
            the input's view, for images in [-1, 1]; None without confidence.
        conf_sigma_perceptual, conf_sigma_perceptual_flip: (h/4, w/4).
        canon_shading: (h, w) predicted shading (model.shading = "map"); None
            where shading follows from depth and light.
    """

    raw_depth: Float[Leaf, "*b h w"]
    canon_depth: Float[Leaf, "*b h w"]
    canon_albedo: Float[Leaf, "*b h w 3"]
    light: Float[Leaf, "*b 5"]
    view: Float[Leaf, "*b 6"]
    conf_sigma: Float[Leaf, "*b h w"] | None = None
    conf_sigma_flip: Float[Leaf, "*b h w"] | None = None
    conf_sigma_perceptual: Float[Leaf, "*b hp wp"] | None = None
    conf_sigma_perceptual_flip: Float[Leaf, "*b hp wp"] | None = None
    canon_shading: Float[Leaf, "*b h w"] | None = None


@struct.dataclass
class Canonical:
    """The shaded object in its canonical frame (paper Sec. 3.3).

    Attributes:
        normal: (h, w, 3) unit, z > 0 away from the camera.
        shading: (h, w) diffuse term max(0, <l, n>).
        image: (h, w, 3), (k_s + k_d shading) albedo; may exceed 1.
    """

    normal: Float[Leaf, "*b h w 3"]
    shading: Float[Leaf, "*b h w"]
    image: Float[Leaf, "*b h w 3"]


@struct.dataclass
class Warped:
    """One reconstruction in the input's view.

    Attributes:
        depth: (h, w) scene units, clamped to the depth range plus margin.
        valid: (h, w) bool, true where the warped depth map covers the pixel.
        image: (h, w, 3), nominally in [0, 1], not masked.
    """

    depth: Float[Leaf, "*b h w"]
    valid: Bool[Leaf, "*b h w"]
    image: Float[Leaf, "*b h w 3"]


@struct.dataclass
class Reconstruction:
    """Eq. (1) and its mirrored twin, Eq. (2).

    Attributes:
        canonical, canonical_flip: the shaded canonical object.
        plain, flip: its reprojection to the input's view.
    """

    canonical: Canonical
    canonical_flip: Canonical
    plain: Warped
    flip: Warped
