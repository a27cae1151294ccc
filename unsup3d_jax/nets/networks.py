"""The five networks of the paper (Tables 7-9) at any size and width.

Images are channels last. Every map network halves the image down to 4 x 4;
64 px and width 64 are the paper's networks exactly. Which widths and groups other
sizes have is a `Channels`: the paper's, or those of GAN2Shape.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from unsup3d_jax.nets.layers import (
    DTYPE,
    FLOAT32,
    Conv,
    Deconv,
    GroupNorm,
    UpsampledConv,
)


def _leaky(x: Array) -> Array:
    return nn.leaky_relu(x, 0.2)


@dataclasses.dataclass(frozen=True)
class Channels:
    """How many channels each resolution has, and how many groups GroupNorm makes.

    Attributes:
        cap: widest layer over the first one; None: channels double at every level.
        per_group: channels in a group; None: 16 groups at the first width, 32 at
            twice, 64 beyond (Tables 8, 9).
    """

    cap: int | None
    per_group: int | None

    def of_levels(self, image_size: int, width: int) -> list[int]:
        """Channels at resolutions image_size/2, /4, ..., 4: width x 1, 2, 4, ...

        Raises:
            ValueError: unless image_size is 32 times a power of 2, and width at
                least 1.
        """
        levels = image_size.bit_length() - 3
        if image_size < 32 or image_size != 2 ** (levels + 2):
            raise ValueError(
                f"image_size must be 32, 64, 128, 256, ..., got {image_size}."
            )
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}.")
        factors = [2**level for level in range(levels)]
        return [width * min(f, self.cap or f) for f in factors]

    def groups(self, channels: int, width: int) -> int:
        """Groups of a layer in a network whose first layer has `width` channels.

        Raises:
            ValueError: if the channels do not divide into them.
        """
        unit = 16 if self.per_group is None else self.per_group
        if width % unit:
            raise ValueError(
                f"width must be a positive multiple of {unit}, got {width}."
            )
        if self.per_group is None:
            return 16 * min(channels // width, 4)
        return channels // self.per_group


# At 64 px, where nothing is wider than 8 times 64, they are the same.
UNSUP3D = Channels(cap=8, per_group=None)
GAN2SHAPE = Channels(cap=None, per_group=4)  # Pan et al., ICLR 2021 (code)


def _encode(
    x: Float[Array, "b h w 3"],
    widths: Sequence[int],
    groups: Callable[[int], int],
    bottleneck: int,
    dtype: DTYPE,
) -> Float[Array, "b 1 1 z"]:
    """The downsampling half shared by Tables 8 and 9."""
    for features in widths[:-1]:
        x = Conv(features, 4, stride=2, padding=1, dtype=dtype)(x)
        x = _leaky(GroupNorm(groups(features))(x))
    x = _leaky(Conv(widths[-1], 4, stride=2, padding=1, dtype=dtype)(x))
    return nn.relu(Conv(bottleneck, 4, dtype=dtype)(x))


class Encoder(nn.Module):
    """Light and view network, Table 7: image (b, h, w, 3) -> (b, outputs).

    The last activation is tanh. There is no normalisation.
    """

    outputs: int
    width: int
    dtype: DTYPE = FLOAT32
    channels: Channels = UNSUP3D

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
        widths = self.channels.of_levels(x.shape[1], self.width)
        x = x.astype(self.dtype)
        for features in widths:
            x = nn.relu(Conv(features, 4, stride=2, padding=1, dtype=self.dtype)(x))
        x = nn.relu(Conv(widths[-1], 4, dtype=self.dtype)(x))
        x = Conv(self.outputs, 1, dtype=self.dtype)(x)
        return jnp.tanh(x[:, 0, 0].astype(jnp.float32))


class EncoderDecoder(nn.Module):
    """Depth and albedo network, Table 8: (b, h, w, 3) -> (b, h, w, outputs).

    Linear output, float32; no skip connections, because input and output are
    not aligned.
    """

    outputs: int
    width: int
    bottleneck: int
    dtype: DTYPE = FLOAT32
    channels: Channels = UNSUP3D

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h w o"]:
        width, dtype = self.width, self.dtype
        widths = self.channels.of_levels(x.shape[1], width)
        groups = partial(self.channels.groups, width=width)
        x = _encode(x.astype(dtype), widths, groups, self.bottleneck, dtype)
        x = nn.relu(Deconv(widths[-1], dtype=dtype)(x))
        x = nn.relu(Conv(widths[-1], 3, padding=1, dtype=dtype)(x))
        for features in reversed(widths[:-1]):
            x = nn.relu(GroupNorm(groups(features))(Deconv(features, dtype=dtype)(x)))
            x = Conv(features, 3, padding=1, dtype=dtype)(x)
            x = nn.relu(GroupNorm(groups(features))(x))
        x = nn.relu(GroupNorm(groups(width))(UpsampledConv(width, dtype=dtype)(x)))
        x = Conv(width, 5, padding=2, dtype=dtype)(x)
        x = nn.relu(GroupNorm(groups(width))(x))
        x = Conv(self.outputs, 5, padding=2, dtype=dtype)(x)
        return x.astype(jnp.float32)


class ConfidenceNet(nn.Module):
    """Confidence network, Table 9.

    Image (b, h, w, 3) -> sigma (b, h, w, 2) and (b, h/4, w/4, 2), softplus:
    channel 0 for the plain, 1 for the flipped reconstruction; the first for
    the photometric, the second for the perceptual loss.
    """

    width: int
    bottleneck: int
    dtype: DTYPE = FLOAT32
    channels: Channels = UNSUP3D

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b h w 2"], Float[Array, "b hp wp 2"]]:
        width, dtype = self.width, self.dtype
        widths = self.channels.of_levels(x.shape[1], width)
        groups = partial(self.channels.groups, width=width)
        x = _encode(x.astype(dtype), widths, groups, self.bottleneck, dtype)
        x = nn.relu(Deconv(widths[-1], dtype=dtype)(x))
        for features in reversed(widths[1:-1]):
            x = Deconv(features, dtype=dtype)(x)
            x = nn.relu(GroupNorm(groups(features))(x))
        fine = x
        for _ in range(2):
            fine = Deconv(width, dtype=dtype)(fine)
            fine = nn.relu(GroupNorm(groups(width))(fine))
        fine = Conv(2, 5, padding=2, dtype=dtype)(fine)
        coarse = Conv(2, 3, padding=1, dtype=dtype)(x)
        return (
            nn.softplus(fine.astype(jnp.float32)),
            nn.softplus(coarse.astype(jnp.float32)),
        )
