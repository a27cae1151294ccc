"""What a GAN makes of pseudo samples: step 2 of Pan et al., ICLR 2021, Sec. 3.2.

An encoder E looks at a pseudo sample and says where in the latent space, beside the
image's own latent, the generator has its like. The generator can only answer with
natural pictures; so what was crude in the sample does not come back.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Key

from unsup3d_jax.formation import losses
from unsup3d_jax.formation.losses import mean_share
from unsup3d_jax.formation.types import AnyArray, Leaf
from unsup3d_jax.gan2shape import offset as offsets
from unsup3d_jax.gan2shape.projection import Projected, Pseudo
from unsup3d_jax.nets import stylegan2
from unsup3d_jax.nets.offset_encoder import OffsetEncoder
from unsup3d_jax.nets.stylegan2 import StyleGan, discriminator_features

# Residual blocks of the discriminator whose maps are compared (code).
BLOCKS = 4
# Pairs of samples in an iteration of the encoder's lesson.
PAIRS = 32


@struct.dataclass
class Own:
    """What is known of each image; arrays have a leading axis of images.

    Attributes:
        w: the image's latent.
        picture: (h, w, 3) signed: what the generator makes of it, as the encoder sees
            pictures.
    """

    w: Float[Leaf, "*n style"]
    picture: Float[Leaf, "*n h w 3"]


@dataclasses.dataclass(frozen=True)
class GeneratorProjection:
    """The generator's picture of a pseudo sample; `shared` is a `StyleGan`.

    Attributes:
        size: pixels of the samples.
        crop: pixels of the generator's picture, see `offset.project`; 0: all.
        layers: of the mapping network that the offset passes (code: F1_d).
        regularised: whether it passes any; False adds it in W as it is.
        relative: whether what the encoder says of the image itself is subtracted, so
            that the sample that looks like it is left where it is.
        style, width: of the encoder.
        features, offset: weights of the loss.
        learns: False leaves the encoder as it is (a control).
    """

    size: int
    crop: int
    layers: int
    regularised: bool
    relative: bool
    style: int
    width: int
    features: float
    offset: float
    learns: bool = True

    @property
    def encoder(self) -> OffsetEncoder:
        return OffsetEncoder(self.style, self.width)

    def init_encoder(self, key: Array) -> Any:
        image = jax.ShapeDtypeStruct((1, self.size, self.size, 3), jnp.float32)
        return self.encoder.lazy_init(key, image)["params"]

    def project(
        self, encoder: Any, pseudo: Pseudo, shared: StyleGan, own: Own
    ) -> Projected:
        signed, moved = self._project(encoder, 2.0 * pseudo.image - 1.0, shared, own)
        return Projected((signed + 1.0) / 2.0, moved)

    def project_pictures(
        self,
        encoder: Any,
        images: Float[AnyArray, "b h w 3"],
        shared: StyleGan,
        own: Own,
    ) -> Float[Array, "b h w 3"]:
        """Any pictures of one image's object, in [0, 1]: for rotations and relights."""
        signed, _ = self._project(encoder, 2.0 * jnp.asarray(images) - 1.0, shared, own)
        return (signed + 1.0) / 2.0

    def loss(
        self, encoder: Any, pseudo: Pseudo, shared: StyleGan, own: Own
    ) -> Float[Array, ""]:
        """Pixels and the discriminator's features of the sample, where it is valid.

        The mean square of the offset keeps it near the image. All differences are those
        of signed pictures, L1, means over channels and over the mask.
        """
        signed = 2.0 * pseudo.image - 1.0
        found, moved = self._project(encoder, signed, shared, own)
        mask = pseudo.mask.astype(jnp.float32)
        total = mean_share(
            losses.photometric((found + 1.0) / 2.0, pseudo.image, mask, None)
        )
        if self.features:
            # One pass for both would keep what the sample's gradient needs.
            wanted = jax.lax.stop_gradient(_features(shared, signed))
            apart = losses.feature_l1(_features(shared, found), wanted, mask)
            total = total + self.features * mean_share(apart)
        return total + self.offset * jnp.mean(jnp.square(moved))

    def lesson(
        self, encoder: Any, key: Key[Array, ""], shared: StyleGan
    ) -> Float[Array, ""]:
        """How badly the encoder reads the step between the latents of two pictures.

        Ours. The pictures are the generator's own, so the step is known, and between
        them all changes that the generator knows of: from them the encoder learns what
        a turn of the head looks like and what another light, which crude samples alone
        would have it mistake for each other.

        Latents w of one sample and w + t (w' - w) of another, t = min(2 u, 1), u
        uniform.

        Returns:
            Squared error over the squared length of the steps; 1: it says nothing.
        """
        keys = jax.random.split(key, 3)
        one, other = (self._sample(key, shared) for key in keys[:2])
        share = jnp.minimum(2.0 * jax.random.uniform(keys[2], (PAIRS, 1)), 1.0)
        step = share * (other - one)
        signed = self._picture(jnp.concatenate([one, one + step]), shared)
        said = self._encode(encoder, jax.lax.stop_gradient(signed))
        before, after = said[:PAIRS], said[PAIRS:]
        found = offsets.latent_offset(
            shared,
            after,
            self.layers,
            self.regularised,
            before if self.relative else None,
        )
        return jnp.mean(jnp.square(found - step)) / jnp.mean(jnp.square(step))

    def _sample(self, key: Key[Array, ""], gan: StyleGan) -> Float[Array, "b s"]:
        normal = jax.random.normal(key, (PAIRS, gan.options.style))
        return stylegan2.map_latent(gan.mapping, normal, gan.options)

    def _picture(
        self, w: Float[Array, "b s"], gan: StyleGan
    ) -> Float[Array, "b h w 3"]:
        return offsets.project(gan, w, jnp.zeros_like(w), self.size, self.crop or None)

    def _project(
        self, encoder: Any, signed: Float[Array, "b h w 3"], gan: StyleGan, own: Own
    ) -> tuple[Float[Array, "b h w 3"], Float[Array, "b s"]]:
        """Signed pictures, and how far their latents are from the image's."""
        itself = self._encode(encoder, own.picture[None]) if self.relative else None
        moved = offsets.latent_offset(
            gan, self._encode(encoder, signed), self.layers, self.regularised, itself
        )
        crop = self.crop or None
        return offsets.project(gan, own.w[None], moved, self.size, crop), moved

    def _encode(
        self, encoder: Any, signed: Float[Array, "b h w 3"]
    ) -> Float[Array, "b s"]:
        said = self.encoder.apply({"params": encoder}, signed)
        assert isinstance(said, Array)
        return said


def _features(gan: StyleGan, signed: Float[Array, "b h w 3"]) -> tuple[Array, ...]:
    return discriminator_features(gan.discriminator, signed, gan.options, BLOCKS)
