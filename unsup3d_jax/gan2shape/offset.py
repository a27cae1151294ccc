"""How a crude view moves the latent, and what the generator makes of it.

Pan et al., ICLR 2021: the encoder's code e does not shift w itself but enters the
mapping network some layers before its end, so that the sum is a latent the generator
knows.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unsup3d_jax.nets import stylegan2
from unsup3d_jax.nets.stylegan2 import StyleGan


def latent_offset(
    gan: StyleGan,
    e: Float[Array, "b s"],
    d: int,
    regularised: bool = True,
    reference: Float[Array, "#b s"] | None = None,
) -> Float[Array, "b s"]:
    """What is added to w: F[n-d:](e + F[:n-d](0)) - F(0), n dense layers, or e itself.

    F[0] is the pixel norm, so d = 2 of 8 layers passes e through the last *three* of
    them, and d = 8 through the norm and all of them. For e = 0 the offset is 0.

    Args:
        gan: its mapping network is F.
        e: the encoder's code of each view.
        d: from 0 to the number of dense layers.
        regularised: through the mapping network; False: added to w as it is.
        reference: the encoder's code of G(w), which is taken from e first; so the view
            that is G(w) does not move the latent ("relative_enc").

    Raises:
        ValueError: if d is out of range.
    """
    layers = gan.options.mapping_layers
    if not 0 <= d <= layers:
        raise ValueError(f"d must be 0 to {layers}, got {d}.")
    if reference is not None:
        e = e - reference
    if not regularised:
        return e
    zero = jnp.zeros((1, gan.options.style))
    split = layers - d
    centre_h = stylegan2.map_latent(gan.mapping, zero, gan.options, 0, split)
    # The two halves make F(0), as it is for e = 0 below.
    centre_w = stylegan2.map_latent(gan.mapping, centre_h, gan.options, split)
    moved = stylegan2.map_latent(gan.mapping, e + centre_h, gan.options, split)
    return moved - centre_w


def project(
    gan: StyleGan,
    w: Float[Array, "#b s"],
    offset: Float[Array, "b s"],
    image_size: int,
    crop: int | None = None,
    original_size: int | None = None,
) -> Float[Array, "b h w 3"]:
    """The generator's image of w + offset, framed as the photo was: signed, [-1, 1].

    Args:
        gan: with its fixed noise.
        w: latent of the photo.
        offset: see `latent_offset`.
        image_size: pixels of the result.
        crop: side of the middle part that is kept, pixels of the original; None: all.
        original_size: pixels of the photo before the crop; None: the generator's.
    """
    signed = jnp.clip(stylegan2.generate(gan, w + offset), -1.0, 1.0)
    return reframe(signed, image_size, crop, original_size)


def reframe(
    signed: Float[Array, "b h w 3"],
    image_size: int,
    crop: int | None = None,
    original_size: int | None = None,
) -> Float[Array, "b h2 w2 3"]:
    """Square images resized to the original, cropped in the middle, and resized.

    Raises:
        ValueError: if the crop is larger than the image.
    """
    signed = resize(signed, original_size or signed.shape[1])
    size = signed.shape[1]
    if crop is not None:
        if not 0 < crop <= size:
            raise ValueError(f"crop must be 1 to {size} pixels, got {crop}.")
        start = (size - crop) // 2
        signed = signed[:, start : start + crop, start : start + crop]
    return resize(signed, image_size)


def resize(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b h2 w2 c"]:
    """Square images: larger ones bilinear, smaller ones the mean of an area.

    As the authors' framework does: bilinear with pixels as areas (corners not
    aligned), and an area of whole pixels, from floor(i n / size) up to
    ceil((i + 1) n / size).
    """
    n = images.shape[1]
    if size == n:
        return images
    table = _bilinear(n, size) if size > n else _areas(n, size)
    return jnp.einsum("yh,xw,bhwc->byxc", table, table, images)


def _areas(before: int, after: int) -> np.ndarray:
    table = np.zeros((after, before), np.float32)
    for i in range(after):
        start, stop = i * before // after, -(-(i + 1) * before // after)
        table[i, start:stop] = 1.0 / (stop - start)
    return table


def _bilinear(before: int, after: int) -> np.ndarray:
    place = (np.arange(after) + 0.5) * before / after - 0.5
    place = np.clip(place, 0.0, before - 1.0)
    return np.maximum(1.0 - abs(place[:, None] - np.arange(before)), 0.0).astype(
        np.float32
    )
