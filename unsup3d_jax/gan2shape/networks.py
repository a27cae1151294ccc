"""The networks D, A, V and L, and what they say of an image.

Those of unsup3d in the widths and groups of GAN2Shape (Pan et al., ICLR 2021, code):
"depth" and "albedo" are read off the image whose shape is wanted, "view" and "light"
off each picture of it. The fifth, "encoder", belongs to a projection.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from unsup3d_jax.formation import heads
from unsup3d_jax.formation.types import AnyArray, Conditions, Surface
from unsup3d_jax.gan2shape.options import NetworkOptions, ShapeOptions
from unsup3d_jax.gan2shape.sampling import Statistics
from unsup3d_jax.nets import networks
from unsup3d_jax.nets.networks import GAN2SHAPE

STRENGTHS = (0.0, 1.0)  # of ambient and of diffuse light


def build(sizes: NetworkOptions) -> dict[str, nn.Module]:
    """The four modules by name; D and V 64 px: tables of the specification's size."""

    def maps(outputs: int) -> nn.Module:
        return networks.EncoderDecoder(
            outputs, sizes.width, sizes.bottleneck, channels=GAN2SHAPE
        )

    def numbers(outputs: int) -> nn.Module:
        return networks.Encoder(outputs, sizes.encoder_width, channels=GAN2SHAPE)

    return {
        "depth": maps(1),
        "albedo": maps(3),
        "view": numbers(6),
        "light": numbers(4),
    }


def init_params(key: Key[Array, ""], sizes: NetworkOptions) -> dict:
    """Random parameters, float32, as {network name: flax parameters}."""
    image = jax.ShapeDtypeStruct(
        (1, sizes.image_size, sizes.image_size, 3), jnp.float32
    )
    nets = build(sizes)
    keys = jax.random.split(key, len(nets))
    return {
        name: net.lazy_init(net_key, image)["params"]
        for net_key, (name, net) in zip(keys, nets.items(), strict=True)
    }


def _run(
    name: str, params: dict, image: Float[AnyArray, "b h w 3"], options: ShapeOptions
) -> Array:
    net = build(options.networks)[name]
    found = net.apply({"params": params[name]}, 2.0 * image - 1.0)
    assert isinstance(found, Array)
    return found


def read_depth(
    params: dict, image: Float[AnyArray, "b h w 3"], options: ShapeOptions
) -> Float[Array, "b h w"]:
    """Canonical depth, scene units, before the border: what step 0 fits.

    Args:
        image: in [0, 1], as everywhere.
    """
    scene = options.scene
    return heads.depth_from_raw(
        _run("depth", params, image, options)[..., 0],
        limits=(scene.depth_min, scene.depth_max),
        centre=True,
    )


def read_surface(
    params: dict, image: Float[AnyArray, "b h w 3"], options: ShapeOptions
) -> Surface:
    """Depth and albedo of the object in an image."""
    raw = read_depth(params, image, options)
    depth = heads.clamp_border(
        raw,
        columns=options.border_columns,
        value=options.border_depth,
        weight=options.border_weight,
    )
    albedo = heads.albedo_from_raw(_run("albedo", params, image, options))
    return Surface(raw_depth=raw, canon_depth=depth, canon_albedo=albedo)


def read_conditions(
    params: dict,
    image: Float[AnyArray, "b h w 3"],
    statistics: Statistics,
    options: ShapeOptions,
) -> Conditions:
    """View and light of pictures: what the networks say beyond the mean."""
    raw_view = _run("view", params, image, options) + statistics.view_mean
    raw_light = _run("light", params, image, options) + statistics.light_mean
    light = heads.light_from_raw(
        raw_light, ambient_range=STRENGTHS, diffuse_range=STRENGTHS
    )
    return Conditions(light=light, view=heads.view_from_raw(raw_view, options.reach))
