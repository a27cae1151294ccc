"""Images -> theta -> posed grid -> flattened faces -> loss: what a step trains."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from unsup3d_jax.formation.losses import Loss, mean_share
from unsup3d_jax.formation.types import Batch, Leaf
from unsup3d_jax.stn3dmm import compat, fit, layers, localiser, losses
from unsup3d_jax.stn3dmm.flattening import Flattened, flatten
from unsup3d_jax.stn3dmm.layers import POSE_SIZE, Camera
from unsup3d_jax.stn3dmm.morphable import GridModel
from unsup3d_jax.stn3dmm.options import StnOptions

# Of the three kinds of pose in the supervised row, against one standard deviation of a
# coefficient: radians, and half-image units, in which 0.05 is much.
_POSE_WEIGHT = 20.0


@struct.dataclass
class Outputs:
    """What a step finds on the way; leading axis n = people * views.

    Attributes:
        theta: (n, p) vectors.
        landmarks: (n, l, 2) pixels.
        seen: (n,) visible share of the grid; None where no face is flattened.
        terms: this device's shares of the loss terms, "total" among them.
    """

    theta: Float[Leaf, "*b n p"]
    landmarks: Float[Leaf, "*b n l 2"]
    seen: Float[Leaf, "*b n"] | None
    terms: dict[str, Float[Leaf, "*b"]]


def with_views(batch: Batch) -> Batch:
    """A batch with an axis of views: photos that are one of each person get one."""
    if batch.image.ndim == 5:
        return batch
    return jax.tree.map(lambda x: x[:, None], batch)


def objective(
    params: dict,
    model: GridModel,
    batch: Batch,
    options: StnOptions,
    *,
    image_weight: Float[Array, ""] | float = 1.0,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Outputs]:
    """Eqs. (1) to (4) of Bas et al., ICCVW 2017, weighted, and safeguards.

    Args:
        params: of `localiser.init_params`.
        model: of the localiser's coefficients.
        batch: image (b, views, h, w, 3) or (b, h, w, 3); what else the terms that have
            weights need: keypoints for landmarks, latent for theta.
        options: static.
        image_weight: factor of the terms that compare colours.
        axis_name: of the devices that share the batch. The result is then this device's
            share: shares, and gradients, sum to the whole.

    Returns:
        Scalar loss and everything found on the way.
    """
    weights = options.loss
    batch = with_views(batch)
    people, views = batch.image.shape[:2]
    images = batch.image.reshape(-1, *batch.image.shape[2:])
    theta = localiser.localise(params, images, options.localiser)
    # Each term: its weight, and the map whose mean it is.
    terms: dict[str, tuple[Float[Array, ""] | float, Loss | Float[Array, ""]]] = {}

    landmarks = _project(model, theta, options)
    target = None
    if batch.keypoints is not None:
        target = batch.keypoints[..., :2]
        if options.shuffle_landmarks:
            target = jnp.roll(target, 1, axis=0)
        target = target.reshape(-1, *target.shape[2:])
    if weights.landmark > 0 and target is not None:
        cost = _landmark_loss(landmarks, target, options)
        terms["landmark"] = (weights.landmark, cost)
        if weights.shape > 0:
            cost = _shape_loss(model, theta, target, options)
            terms["shape"] = (weights.shape, cost)
        if weights.identity > 0:
            other = _other_identity(theta, people, views, model.num_identity)
            cost = _shape_loss(model, other, target, options)
            terms["identity"] = (weights.identity, cost)
    if weights.prior > 0:
        alpha = theta[:, POSE_SIZE:]
        sums = options.release_losses
        cost = jnp.sum(compat.prior_sum(alpha)) if sums else losses.prior(alpha)
        terms["prior"] = (weights.prior, cost)
    if batch.latent is not None:
        truth = batch.latent.reshape(len(theta), -1)
        if weights.theta > 0:
            scale = jnp.ones(theta.shape[1]).at[:POSE_SIZE].set(_POSE_WEIGHT)
            terms["theta"] = (weights.theta, losses.prior(scale * (theta - truth)))
        if weights.vertices > 0:
            terms["vertices"] = (
                weights.vertices,
                _vertex_loss(model, theta, truth, options.camera),
            )

    points, seen = landmarks, None
    if weights.sees_images:
        found = _flatten(model, theta, images, options)
        flat, mask, points = found.faces, found.mask, found.posed.pixels
        seen = jnp.mean(found.seen, axis=(1, 2))
        if weights.symmetry > 0:
            cost = (
                compat.symmetry_by_count(_released(flat, mask))
                if options.release_losses
                else losses.symmetry(_compared(flat, mask, options), mask)
            )
            terms["symmetry"] = (weights.symmetry * image_weight, cost)
        if weights.multi_view > 0:
            several = _side_by_side(
                params, model, images, flat, mask, people, views, options
            )
            cost = (
                compat.multi_view_by_count(_in_pairs(*several))
                if options.release_losses
                else losses.multi_view(*several)
            )
            terms["multi_view"] = (weights.multi_view * image_weight, cost)
        if weights.visible > 0 and options.visibility == "soft":
            cost = losses.visible_fraction(mask)
            terms["visible"] = (weights.visible, cost)
    if weights.outside > 0:
        cost = losses.outside_image(points, image_size=options.image_size)
        terms["outside"] = (weights.outside, cost)
    if weights.scale > 0:
        terms["scale"] = (weights.scale, losses.scale_range(theta[:, 5]))

    # Here, and nowhere else, the devices of the batch meet. A sum is one of shares.
    shares = {
        name: cost
        if isinstance(cost, jax.Array)
        else mean_share(cost, axis_name=axis_name)
        for name, (_, cost) in terms.items()
    }
    total = jnp.zeros(())
    for name, (weight, _) in terms.items():
        total = total + weight * shares[name]
    return total, Outputs(theta, landmarks, seen, shares | {"total": total})


def _project(
    model: GridModel, theta: Float[Array, "n p"], options: StnOptions
) -> Float[Array, "n l 2"]:
    def one(vector: Array) -> Array:
        return layers.project_landmarks(
            model, layers.split(vector), options.camera, image_size=options.image_size
        )

    return jax.vmap(one)(theta)


def _landmark_loss(
    landmarks: Float[Array, "n l 2"],
    target: Float[Array, "n l 2"],
    options: StnOptions,
) -> Loss | Float[Array, ""]:
    if options.release_losses:
        known = jnp.ones(landmarks.shape[:2])
        return jnp.sum(compat.landmark_sum(landmarks, target, known))
    return losses.landmark(
        landmarks, target, image_size=options.image_size, huber=options.loss.huber
    )


def _shape_loss(
    model: GridModel,
    theta: Float[Array, "n p"],
    target: Float[Array, "n l 2"],
    options: StnOptions,
) -> Loss | Float[Array, ""]:
    """What landmarks miss at the pose that fits them best: errors of shape alone.

    A pose that is a little wrong moves landmarks farther than all of the shape does,
    and would hide what the coefficients should learn. At the best pose its derivative
    is 0, so that the gradient with respect to the coefficients is exact without it.
    """
    best = fit.fit_pose(
        model,
        target,
        jax.lax.stop_gradient(theta),
        options.camera,
        image_size=options.image_size,
    )
    pose = jax.lax.stop_gradient(best[:, :POSE_SIZE])
    there = jnp.concatenate([pose, theta[:, POSE_SIZE:]], axis=1)
    return _landmark_loss(_project(model, there, options), target, options)


def _other_identity(
    theta: Float[Array, "n p"], people: int, views: int, num_identity: int
) -> Float[Array, "n p"]:
    """Theta of each image with the identity found in the person's next view."""
    several = theta.reshape(people, views, -1)
    first, last = POSE_SIZE, POSE_SIZE + num_identity
    other = jnp.roll(several[..., first:last], 1, axis=1)
    return several.at[..., first:last].set(other).reshape(theta.shape)


def _vertex_loss(
    model: GridModel,
    theta: Float[Array, "n p"],
    truth: Float[Array, "n p"],
    camera: Camera,
) -> Loss:
    """Squared distance of the vertices in the model's frame, half-image units."""
    wrong = (theta - truth)[:, POSE_SIZE:]
    moved = camera.scale * jnp.tensordot(wrong, model.basis, axes=1)
    return losses.Weighted(
        value=jnp.sum(jnp.square(moved), axis=-1), weight=jnp.ones(moved.shape[:2])
    )


def _flatten(
    model: GridModel,
    theta: Float[Array, "n p"],
    images: Float[Array, "n h w 3"],
    options: StnOptions,
) -> Flattened:
    """Flattened faces, with a derivative of the mask where it has a slope only."""
    found = flatten(model, theta, images, options.camera, mode=options.visibility)
    if options.visibility == "soft":
        return found
    return dataclasses.replace(found, seen=jax.lax.stop_gradient(found.seen))


def _compared(flat: Array, mask: Array, options: StnOptions) -> Array:
    """What the image terms compare: colours, or what is left of them."""
    window = options.loss.contrast
    return losses.local_contrast(flat, mask, window=window) if window else flat


def _released(flat: Array, mask: Array) -> Array:
    """Masked flattened faces as the release compares them: colours of 0 to 255."""
    return 255.0 * flat * mask[..., None]


def _in_pairs(flat: Array, mask: Array) -> Array:
    """The first two views of each person, one after the other, as the release's."""
    masked = _released(flat[:, :2], mask[:, :2])
    return masked.reshape(-1, *masked.shape[2:])


def _side_by_side(
    params: dict,
    model: GridModel,
    images: Array,
    flat: Array,
    mask: Array,
    people: int,
    views: int,
    options: StnOptions,
) -> tuple[Array, Array]:
    """Flattened views of each person (people, k, g, g, 3), and their masks.

    Where a person has one view, its mirror image is the other one, as in the release.
    """
    flat = _compared(flat, mask, options)
    if views > 1:
        return (
            flat.reshape(people, views, *flat.shape[1:]),
            mask.reshape(people, views, *mask.shape[1:]),
        )
    mirrored = images[:, :, ::-1]
    theta = localiser.localise(params, mirrored, options.localiser)
    found = _flatten(model, theta, mirrored, options)
    other = _compared(found.faces, found.mask, options)
    return jnp.stack([flat, other], axis=1), jnp.stack([mask, found.mask], axis=1)
