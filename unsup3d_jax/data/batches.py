"""Stored arrays -> `Batch`: colours, mirror images, one gather from device memory."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from unsup3d_jax.data.dataset import Dataset
from unsup3d_jax.formation.types import AnyArray, Batch

# Of Batch: the image and its true factors, then what else may be known of it.
FACTORS = ("image", "depth", "mask", "view", "light")
LABELS = ("keypoints", "identity", "latent")
_DTYPES = {"mask": jnp.bool_, "identity": jnp.int32}  # of the others: float32


def mirror(
    batch: Batch,
    *,
    keypoint_flip: Sequence[int] = (),
    latent_mirror: Float[AnyArray, "d d"] | None = None,
) -> Batch:
    """Mirrors a batch left-right, its ground truth with it.

    Images, depth and mask are reversed along the row, which is a reflection
    about the optical axis since that passes through the middle of the row. A
    reflection of x negates rotations about y and z, translation along x, and
    the x component of the light direction. Keypoints move from u to w - 1 - u.
    A mirrored person keeps the identity.

    Args:
        batch: with any leading axes.
        keypoint_flip: the keypoint that each one becomes, where that is known: a
            left eye is a right one in the mirror; () leaves them in their order.
        latent_mirror: takes the code of an image to that of its mirror image, where
            that is known and linear.

    Raises:
        ValueError: if the batch has latent codes of which nobody knows the mirror
            image.
    """
    latent = batch.latent
    if latent is not None:
        if latent_mirror is None:
            raise ValueError("a latent code has no mirror image.")
        latent = jnp.einsum("ij,...j->...i", latent_mirror, latent, precision="highest")
    view_sign = jnp.array([1.0, -1.0, -1.0, -1.0, 1.0, 1.0])
    light_sign = jnp.array([1.0, 1.0, -1.0, 1.0, 1.0])
    keypoints = batch.keypoints
    if keypoints is not None:
        if keypoint_flip:
            keypoints = keypoints[..., np.asarray(keypoint_flip), :]
        last = batch.image.shape[-2] - 1
        sign = jnp.array([-1.0, 1.0, 1.0])
        keypoints = keypoints * sign + jnp.array([last, 0.0, 0.0])
    return Batch(
        image=batch.image[..., ::-1, :],
        depth=None if batch.depth is None else batch.depth[..., ::-1],
        mask=None if batch.mask is None else batch.mask[..., ::-1],
        view=None if batch.view is None else batch.view * view_sign,
        light=None if batch.light is None else batch.light * light_sign,
        keypoints=keypoints,
        identity=batch.identity,
        latent=latent,
    )


def to_batch(arrays: dict[str, AnyArray]) -> Batch:
    """Converts stored arrays to a Batch: 8-bit colours to float32 in [0, 1]."""
    rest: dict[str, Any] = {
        name: arrays[name].astype(_DTYPES.get(name, jnp.float32))
        for name in (*FACTORS[1:], *LABELS)
        if name in arrays
    }
    # A product, because XLA divides by a constant in some programs and
    # multiplies by its reciprocal in others, which differ in the last bit.
    image: Any = arrays["image"].astype(jnp.float32) * np.float32(1.0 / 255.0)
    return Batch(image=image, **rest)


def flip_some(
    arrays: dict[str, AnyArray],
    flip: Bool[AnyArray, "*b"],
    *,
    keypoint_flip: Sequence[int] = (),
    latent_mirror: Float[AnyArray, "d d"] | None = None,
) -> Batch:
    """Converts stored arrays to a Batch and mirrors the marked examples.

    Args:
        arrays: behind the axes of `flip` there may be more: the views of a person.
        keypoint_flip, latent_mirror: as `mirror`.

    Raises:
        ValueError: as `mirror`.
    """
    batch = to_batch(arrays)

    def choose(mirrored: AnyArray, plain: AnyArray) -> Array:
        marks = flip.reshape(flip.shape + (1,) * (plain.ndim - flip.ndim))
        return jnp.where(marks, mirrored, plain)

    mirrored = mirror(batch, keypoint_flip=keypoint_flip, latent_mirror=latent_mirror)
    return jax.tree.map(choose, mirrored, batch)


def gather(
    store: dict[str, Shaped[AnyArray, "n ..."]],
    plan: Int[AnyArray, "*b"],
    *,
    keypoint_flip: Sequence[int] = (),
    latent_mirror: Float[AnyArray, "d d"] | None = None,
) -> Batch:
    """Forms a batch from the stored set.

    Args:
        store: the whole data set, example axis first.
        plan: example i as i, mirrored as ~i; one array, one transfer.
        keypoint_flip, latent_mirror: as `mirror`.

    Raises:
        ValueError: as `mirror`.
    """
    flip = plan < 0
    index = jnp.where(flip, ~plan, plan)
    rows = {name: array[index] for name, array in store.items()}
    return flip_some(
        rows, flip, keypoint_flip=keypoint_flip, latent_mirror=latent_mirror
    )


def gather_plain(
    store: dict[str, Shaped[AnyArray, "n ..."]], plan: Int[AnyArray, "*b"]
) -> Batch:
    """As `gather`, for sets that are never mirrored; `plan` holds indices alone."""
    return to_batch({name: array[plan] for name, array in store.items()})


def eval_batches(
    dataset: Dataset, batch_size: int, *, fields: Sequence[str] = FACTORS
) -> Iterator[tuple[Batch, int]]:
    """Yields the whole set in order, not flipped.

    Args:
        dataset: any split.
        batch_size: examples in each batch.
        fields: of Batch; those that the data set does not know are None.

    Yields:
        (batch, count): leaves (batch_size, ...); the last batch is filled up
        by repeating its last example, so only the first `count` are real.

    Raises:
        ValueError: if batch_size < 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    for first in range(0, len(dataset), batch_size):
        last = min(first + batch_size, len(dataset))
        index = np.minimum(np.arange(first, first + batch_size), last - 1)
        arrays = dataset.take(index[: last - first])
        arrays = {
            name: np.pad(
                arrays[name],
                [(0, first + batch_size - last)] + [(0, 0)] * (arrays[name].ndim - 1),
                mode="edge",
            )
            for name in fields
            if name in arrays
        }
        yield _to_batch(jax.device_put(arrays)), last - first


_to_batch = jax.jit(to_batch)
