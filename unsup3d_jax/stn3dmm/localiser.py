"""The localiser: a network that reads theta, shape and pose, off one photo of a face.

What the numbers of theta mean is said in `unsup3d_jax.stn3dmm.layers`. At the
beginning of training it finds theta = 0 in every image, nearly: the mean face from the
front, in the middle.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from unsup3d_jax.nets import vgg_face, vgg_face_files
from unsup3d_jax.nets.layers import Conv, GroupNorm, uniform_by_fan_in
from unsup3d_jax.stn3dmm import compat, layers

NETWORK = "localiser"  # its name among the networks of a method
HEAD = "head"  # its last layer
KINDS = ("small", "vgg_face")
ROTATION_HEADS = ("axis_angle", "six")
POOLS = ("mean_max", "flat")
STEMS = (2, 4)

_WIDTHS = (32, 64, 128, 256, 256)
_HIDDEN = 256
_GROUP = 8  # channels in a group of GroupNorm
_SMALLEST = 4  # pixels: smaller maps are not halved any more
_HEAD_GAIN = {"small": 0.01, "vgg_face": 0.001}
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # the first two columns


@dataclasses.dataclass(frozen=True)
class LocaliserOptions:
    """Everything static about a localiser; hashable.

    Attributes:
        kind: one of KINDS: a network of our own, or VGG-Face to its fc7 with a new
            last layer (Bas et al., ICCVW 2017).
        coefficients: D, how many coefficients the face model has.
        width: factor of all numbers of channels.
        rotation_head: one of ROTATION_HEADS: what the network gives out of the
            rotation; "six" are two columns of its matrix, a continuous
            representation (Zhou et al., CVPR 2019), made into an axis times an angle.
        pool: one of POOLS, of the small kind: what the dense layer reads of the last
            maps, 4 x 4: mean and maximum, or all of them, which tells where.
        stem: of the small kind: stride of the first convolution, 2 (of 3 x 3 px) or 4
            (of 6 x 6 px), which reads an image of twice the size at nearly the same
            cost.
        subtract_mean: of vgg_face, see `vgg_face.features`.
        release_units: the last layer gives t and log s in the units of
            `compat.unit_scales`, which is how fast each learns by gradient descent.

    Raises:
        ValueError: if a value is none of these.
    """

    kind: str
    coefficients: int
    width: float
    rotation_head: str
    pool: str
    stem: int
    subtract_mean: bool
    release_units: bool

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {self.kind!r}.")
        if self.rotation_head not in ROTATION_HEADS:
            raise ValueError(
                f"rotation_head must be one of {ROTATION_HEADS}, got "
                f"{self.rotation_head!r}."
            )
        if self.stem not in STEMS:
            raise ValueError(f"stem must be one of {STEMS}, got {self.stem}.")
        if self.pool not in POOLS:
            raise ValueError(f"pool must be one of {POOLS}, got {self.pool!r}.")
        if self.coefficients < 0 or not self.width > 0:
            raise ValueError(
                "need coefficients >= 0 and width > 0, got "
                f"{self.coefficients} and {self.width}."
            )


class Localiser(nn.Module):
    """Images (b, h, w, 3) in [0, 1] -> vectors of theta (b, 6 + D).

    Images of the small kind are square, of any size from 32 px; of vgg_face 224 px.
    """

    options: LocaliserOptions

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b t"]:
        options = self.options
        if options.kind == "small":
            x = _Small(options.width, options.pool, options.stem, name="small")(images)
        else:
            x = _VggFace(options.width, options.subtract_mean, name="vgg_face")(images)
        is_six = options.rotation_head == "six"
        outputs = (6 if is_six else 3) + 3 + options.coefficients
        x = _Dense(outputs, _HEAD_GAIN[options.kind], name=HEAD)(x)
        if options.release_units:
            turn = 6 if is_six else 3
            x = x.at[:, turn : turn + 3].multiply(jnp.array(compat.unit_scales()))
        if not is_six:
            return x
        rotations = jax.vmap(rotation_from_six)(x[:, :6] + jnp.array(_IDENTITY))
        return jnp.concatenate([rotations, x[:, 6:]], axis=1)


def rotation_from_six(columns: Float[Array, "6"]) -> Float[Array, "3"]:
    """Two vectors, made orthonormal in their order, as an axis times an angle.

    Gram-Schmidt; the third column is their cross product (Zhou et al., CVPR 2019,
    Eq. 15). Vectors of no length or of one direction give some rotation with a finite
    gradient.
    """
    first = _unit(columns[:3])
    second = _unit(columns[3:] - jnp.dot(first, columns[3:]) * first)
    matrix = jnp.stack([first, second, jnp.cross(first, second)], axis=1)
    return layers.rotation_log(matrix)


def _unit(vector: Array) -> Array:
    # Far below what a network gives out near the identity, which is 1.
    return vector * jax.lax.rsqrt(jnp.sum(jnp.square(vector)) + 1e-12)


class _Small(nn.Module):
    """Strided convolutions to 4 x 4, what is kept of them, one dense layer."""

    width: float
    pool: str
    stem: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        h, w = images.shape[1:3]
        if h != w or h < 32:
            raise ValueError(f"need square images of at least 32 px, got {h} x {w}.")
        x = 2.0 * images - 1.0
        if self.stem == 4:
            if h < 64 or h % 2:
                raise ValueError(f"stem=4 needs 64 px or more, an even size; got {h}.")
            # Each 2 x 2 pixels become 12 channels. A kernel of 6 x 6 says the same, but
            # took eight times as long on a CPU.
            x = x.reshape(len(x), h // 2, 2, h // 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
            x = x.reshape(len(x), h // 2, h // 2, 12)
        for full in _WIDTHS:
            channels = _GROUP * max(round(full * self.width / _GROUP), 1)
            stride = 2 if x.shape[1] > _SMALLEST else 1
            x = Conv(channels, 3, stride=stride, padding=1)(x)
            x = nn.gelu(GroupNorm(channels // _GROUP)(x))
        if self.pool == "flat":
            # Of larger images the last maps are larger; their number of features not.
            x = _to(x, _SMALLEST).reshape(len(x), -1)
        else:
            x = jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1)
        hidden = max(round(_HIDDEN * self.width), 1)
        return nn.gelu(_Dense(hidden, name="dense")(x))


def _to(maps: Array, side: int) -> Array:
    """Maps whose side is that, or a multiple of it, averaged to it."""
    b, h, _, c = maps.shape
    if h % side:
        raise ValueError(f"pool=flat needs maps of a multiple of {side} px, got {h}.")
    return maps.reshape(b, side, h // side, side, h // side, c).mean((2, 4))


class _VggFace(nn.Module):
    """`vgg_face.features` of parameters under the names of `vgg_face.layer_shapes`."""

    width: float
    subtract_mean: bool

    @nn.compact
    def __call__(self, images: Array) -> Array:
        # Not by fan-in as ours: nothing normalises what 15 layers make of it.
        kernel_init = nn.initializers.he_uniform()
        weights = {
            name: _Kernel(shape, kernel_init, name=name)()
            for name, shape in vgg_face.layer_shapes(self.width).items()
        }
        return vgg_face.features(weights, images, subtract_mean=self.subtract_mean)


class _Kernel(nn.Module):
    """Parameters of a layer, which somebody else computes."""

    shape: tuple[int, ...]
    init: nn.initializers.Initializer

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        kernel = self.param("kernel", self.init, self.shape)
        bias = self.param("bias", nn.initializers.zeros, self.shape[-1:])
        return {"kernel": kernel, "bias": bias}


class _Dense(nn.Module):
    """Matrix and bias; the bias begins at 0."""

    features: int
    gain: float = 1.0  # of the matrix at the beginning

    @nn.compact
    def __call__(self, x: Array) -> Array:
        uniform = uniform_by_fan_in(x.shape[-1])

        def init(key, shape, dtype=jnp.float32):
            return self.gain * uniform(key, shape, dtype)

        layer = _Kernel((x.shape[-1], self.features), init, name="layer")()
        return x @ layer["kernel"] + layer["bias"]


def init_params(
    key: Key[Array, ""], options: LocaliserOptions, image_size: int
) -> dict[str, Any]:
    """Random parameters, float32, as {NETWORK: flax parameters}.

    Raises:
        ValueError: if the kind does not take images of this size.
    """
    # Lazily: running the network on an image would compile it, op by op.
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return {NETWORK: Localiser(options).lazy_init(key, image)["params"]}


@functools.lru_cache(maxsize=32)
def check_size(options: LocaliserOptions, image_size: int) -> None:
    """Finds out whether a localiser takes images of a size, pixels; computes nothing.

    Raises:
        ValueError: if it does not.
    """
    jax.eval_shape(lambda: init_params(jax.random.key(0), options, image_size))


def with_vgg_face(
    params: Mapping[str, Any], path: str | Path, options: LocaliserOptions
) -> dict[str, Any]:
    """Parameters of the kind vgg_face whose trunk comes out of a file of weights.

    Args:
        params: of `init_params`; they are left as they are.
        path: see `vgg_face_files.load_vgg_face`.

    Raises:
        UserError: if the file does not hold VGG-Face.
        ValueError: if the localiser is of another kind.
    """
    if options.kind != "vgg_face":
        raise ValueError(f"kind {options.kind!r} has no layers of VGG-Face.")
    weights = vgg_face_files.load_vgg_face(path, width=options.width)
    trunk = jax.tree.map(jnp.asarray, weights)
    return {**params, NETWORK: {**params[NETWORK], options.kind: trunk}}


def localise(
    params: Mapping[str, Any],
    images: Float[Array, "b h w 3"],
    options: LocaliserOptions,
) -> Float[Array, "b t"]:
    """Vectors of theta, (b, 6 + D): rotation, translation, log scale, coefficients.

    Args:
        params: of `init_params`, beside those of other networks if there are any.
        images: RGB in [0, 1].
        options: static.

    Raises:
        ValueError: if the kind does not take images of this size.
    """
    theta = Localiser(options).apply({"params": params[NETWORK]}, images)
    return cast(Array, theta)  # alone, as nothing in the network is mutable
