"""E, the network that reads off an image how far its latent is from another's.

Pan et al., ICLR 2021: a residual encoder without normalisation.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from unsup3d_jax.nets.layers import Conv, uniform_by_fan_in
from unsup3d_jax.nets.networks import GAN2SHAPE


class BiasedPointwise(nn.Module):
    """1 x 1 convolution with a bias."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        init = uniform_by_fan_in(x.shape[-1])
        bias = self.param("bias", init, (self.features,))
        shape = (1, 1, x.shape[-1], self.features)
        kernel = self.param("kernel", init, shape)
        return x @ kernel[0, 0] + bias


class DownBlock(nn.Module):
    """Residual block, half the resolution.

    Both branches read the *activated* input: the authors' first ReLU overwrites what
    it is given, so that their shortcut never sees x itself. Their weights need that.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        x = nn.relu(x)
        y = Conv(self.features, 3, stride=2, padding=1)(x)
        y = Conv(self.features, 3, padding=1)(nn.relu(y))
        b, h, w, i = x.shape
        pooled = x.reshape(b, h // 2, 2, w // 2, 2, i).mean((2, 4))
        return y + BiasedPointwise(self.features)(pooled)


class OffsetEncoder(nn.Module):
    """Signed images, [-1, 1], (b, h, w, 3) -> (b, style), linear.

    Square images of 32 times a power of 2 pixels.

    Attributes:
        style: numbers in the generator's w.
        width: channels of the first layer; the authors have 32 at every size.
    """

    style: int
    width: int = 32

    @nn.compact
    def __call__(self, signed: Float[Array, "b h w 3"]) -> Float[Array, "b s"]:
        widths = GAN2SHAPE.of_levels(signed.shape[1], self.width)
        x = Conv(widths[0], 4, stride=2, padding=1)(signed)
        for features in widths[1:]:
            x = DownBlock(features)(x)
        x = Conv(2 * widths[-1], 4)(nn.relu(x))
        x = Conv(self.style, 1)(nn.relu(x))
        return x[:, 0, 0].astype(jnp.float32)
