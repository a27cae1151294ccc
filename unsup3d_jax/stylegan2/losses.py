"""What a generator and a discriminator are trained on, image by image.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020: the
non-saturating logistic loss, the R1 penalty (Mescheder et al., ICML 2018) and the path
length penalty. Everything comes back for each image, so that several devices can share
a batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def discriminator_loss(
    real: Float[Array, " b"], fake: Float[Array, " b"]
) -> Float[Array, " b"]:
    """-ln D(real) - ln (1 - D(fake)), D the sigmoid of the logits."""
    return jax.nn.softplus(-real) + jax.nn.softplus(fake)


def generator_loss(fake: Float[Array, " b"]) -> Float[Array, " b"]:
    """-ln D(fake): not saturating where the discriminator is sure."""
    return jax.nn.softplus(-fake)


def gradient_penalty(
    logits_of: Callable[[Float[Array, "b h w 3"]], Float[Array, " b"]],
    signed: Float[Array, "b h w 3"],
) -> Float[Array, " b"]:
    """R1: the squared norm of each image's gradient of the summed logits.

    Images of a group see one another through the minibatch statistics; as in the
    released code the sum of all logits is differentiated.

    Args:
        logits_of: the discriminator, augmentation included.
        signed: real images, in [-1, 1].
    """
    gradient = jax.grad(lambda images: jnp.sum(logits_of(images)))(signed)
    return jnp.sum(jnp.square(gradient), axis=(1, 2, 3))


def path_lengths(
    image_of: Callable[[Float[Array, "b n s"]], Float[Array, "b h w 3"]],
    latent: Float[Array, "b n s"],
    noise: Float[Array, "b h w 3"],
) -> Float[Array, " b"]:
    """|J^T y| of each image, y being unit noise over the root of the pixels.

    Args:
        image_of: the synthesis; the random direction of an image is its own.
        latent: one vector a layer; over layers the squared norms are averaged.
        noise: of unit normals, in image space.
    """
    _, h, w, _ = noise.shape
    scaled = noise / jnp.sqrt(jnp.asarray(h * w, noise.dtype))
    _, pull_back = jax.vjp(image_of, latent)
    (pulled,) = pull_back(scaled)
    squared = jnp.mean(jnp.sum(jnp.square(pulled), axis=2), axis=1)
    # The floor keeps the gradient of the root finite where an image does not depend
    # on its latent, as in the first steps of a tiny generator.
    return jnp.sqrt(jnp.maximum(squared, 1e-20))


def path_penalty(
    lengths: Float[Array, " b"], mean: Float[Array, ""]
) -> Float[Array, " b"]:
    """(|J^T y| - a)^2, a being the running mean, which is taken as given."""
    return jnp.square(lengths - jax.lax.stop_gradient(mean))
