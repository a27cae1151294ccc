"""The steps of GAN2Shape for one group of images, pure (Pan et al., ICLR 2021, Sec. 3).

A group is some images, often one, that share a set of networks. All there is to know of
it lies in a `Group`; `iterate` does one iteration of one kind. `stages` maps these
functions over groups. What an iteration draws follows from the key of its image and the
number of the iteration alone: groups may be worked on in any company, and again.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from unsup3d_jax.formation import heads, reprojection, sampling
from unsup3d_jax.formation.types import Conditions, Leaf, Surface
from unsup3d_jax.gan2shape import losses, networks
from unsup3d_jax.gan2shape.options import ShapeOptions
from unsup3d_jax.gan2shape.projection import Projection, Pseudo
from unsup3d_jax.gan2shape.sampling import Statistics, sample_lights, sample_views
from unsup3d_jax.nets.lpips import Lpips

# Networks that an iteration of each kind moves; "collect" moves none.
TRAINED = {
    "prior": ("depth",),
    "lesson": ("encoder",),
    "albedo": ("albedo",),
    "encoder": ("encoder",),
    "shape": ("depth", "albedo", "view", "light"),
}
# Radians squared: of no spread at all the logarithm is finite.
_LEAST = 1e-6
# What the draws of an iteration are for: a number of their own each.
_ACTIVE, _PSEUDO, _ORDER, _LESSON = range(4)


@struct.dataclass
class Common:
    """What all groups share, as arguments of the programs.

    Attributes:
        statistics: of views and lights.
        perceptual: LPIPS; None: no such term.
        projection: its `shared`.
    """

    statistics: Statistics
    perceptual: Lpips | None
    projection: Any


@struct.dataclass
class Given:
    """What is known of a group, and stays.

    Attributes:
        image: (g, h, w, 3) in [0, 1].
        mask: (g, h, w) true on the object.
        prior: (g, h, w) depth that step 0 fits, scene units.
        key: (g,) of each image.
        own: the projection's arrays of each image.
    """

    image: Float[Leaf, "*n g h w 3"]
    mask: Bool[Leaf, "*n g h w"]
    prior: Float[Leaf, "*n g h w"]
    key: Key[Leaf, "*n g"]
    own: Any


@struct.dataclass
class Group:
    """What becomes of a group.

    Attributes:
        params: {network: parameters}.
        moments: {network: state of its optimizer}.
        store_image: (g, s, h, w, 3) projected samples, half precision, in [0, 1].
        store_mask: (g, s, h, w) where they count.
    """

    params: dict[str, Any]
    moments: dict[str, Any]
    store_image: Float[Leaf, "*n g s h w 3"]
    store_mask: Bool[Leaf, "*n g s h w"]


@struct.dataclass
class Stored:
    """Some projected samples of one image; fields as of `Group`."""

    image: Float[Leaf, "b h w 3"]
    mask: Bool[Leaf, "b h w"]


@struct.dataclass
class Moment:
    """When an iteration is.

    Attributes:
        step: its number in the whole run.
        first: that of the phase's first one.
    """

    step: Int[Leaf, ""]
    first: Int[Leaf, ""]


@struct.dataclass
class Looks:
    """What the networks say of each image of a group; a row of the record.

    Attributes:
        canon_depth, canon_albedo, view, light: as `formation.types.Factors`.
        depth, valid, image: as `formation.types.Warped`: in the image's view.
    """

    canon_depth: Float[Leaf, "*n g h w"]
    canon_albedo: Float[Leaf, "*n g h w 3"]
    view: Float[Leaf, "*n g 6"]
    light: Float[Leaf, "*n g 5"]
    depth: Float[Leaf, "*n g h w"]
    valid: Bool[Leaf, "*n g h w"]
    image: Float[Leaf, "*n g h w 3"]


def begin(
    key: Key[Array, ""],
    images: int,
    options: ShapeOptions,
    projection: Projection,
    optimizer: optax.GradientTransformation,
) -> Group:
    """A group before its first iteration.

    Args:
        images: of the group.
    """
    size, stored = options.networks.image_size, options.collect * options.samples
    net_key, encoder_key = jax.random.split(key)
    params = networks.init_params(net_key, options.networks)
    if projection.learns:
        params["encoder"] = projection.init_encoder(encoder_key)
    return Group(
        params=params,
        moments={name: optimizer.init(p) for name, p in params.items()},
        store_image=jnp.zeros((images, stored, size, size, 3), jnp.float16),
        store_mask=jnp.zeros((images, stored, size, size), bool),
    )


def trained(kind: str, options: ShapeOptions) -> tuple[str, ...]:
    """Names of the networks that an iteration of a kind moves."""
    anchored = kind == "encoder" and options.loss.view > 0
    return TRAINED.get(kind, ()) + (("view", "light") if anchored else ())


def renew(
    group: Group,
    kind: str,
    options: ShapeOptions,
    optimizer: optax.GradientTransformation,
) -> Group:
    """The group as a step begins: with a new optimizer for what it trains (code)."""
    fresh = {n: optimizer.init(group.params[n]) for n in trained(kind, options)}
    return dataclasses.replace(group, moments={**group.moments, **fresh})


def look(params: dict, given: Given, common: Common, options: ShapeOptions) -> Looks:
    """What the networks of a group say of its images now."""
    surface = networks.read_surface(params, given.image, options)
    conditions = networks.read_conditions(
        params, given.image, common.statistics, options
    )
    drawn = losses.render(surface, conditions, options).warped
    return Looks(
        canon_depth=surface.canon_depth,
        canon_albedo=surface.canon_albedo,
        view=conditions.view,
        light=conditions.light,
        depth=drawn.depth,
        valid=drawn.valid,
        image=drawn.image,
    )


def pseudo_samples(
    key: Key[Array, ""],
    seen: tuple[Surface, Conditions],
    mask: Bool[Array, "h w"],
    common: Common,
    options: ShapeOptions,
) -> Pseudo:
    """Step 2: one image's shape under random views and lights, without gradients.

    Args:
        seen: of the one image, leading axes of 1.
        mask: true on the object, in the image's own view.
    """
    surface, conditions = jax.lax.stop_gradient(seen)
    view_key, light_key = jax.random.split(key)
    view = sample_views(
        view_key,
        options.samples,
        common.statistics,
        reach=options.reach,
        yaw_scale=options.view_scale,
    )
    light = sample_lights(
        light_key, options.samples, conditions.light[0], options.light
    )
    sampled = Conditions(light=light, view=view)
    drawn = losses.render(surface, sampled, options).warped
    grid = reprojection.canonical_grid(drawn.depth, view, options.scene)
    counts = jnp.ones_like(surface.canon_depth, bool)
    if options.object_only:
        counts = canonical_mask(mask, surface, conditions, options)
    counts = jnp.broadcast_to(counts, drawn.valid.shape)
    return Pseudo(
        image=drawn.image,
        mask=sampling.sample_nearest(counts[..., None], grid)[..., 0],
        view=view,
        light=light,
        image_view=conditions.view[0],
    )


def canonical_mask(
    mask: Bool[Array, "h w"],
    surface: Surface,
    conditions: Conditions,
    options: ShapeOptions,
) -> Bool[Array, "1 h w"]:
    """Where the canonical view shows the object.

    The release keeps such a mask from one step 3 to the next; between them neither
    depth nor the image's view moves, so that it can as well be made when it is asked
    for.

    Args:
        mask: true on the object, in the image's own view.
        surface, conditions: of that image, leading axes of 1.
    """
    places = reprojection.on_screen(surface.canon_depth, conditions.view, options.scene)
    return sampling.sample_nearest(mask[None, ..., None], places[..., :2])[..., 0]


def iterate(
    group: Group,
    given: Given,
    common: Common,
    at: Moment,
    *,
    kind: str,
    flip: bool,
    options: ShapeOptions,
    projection: Projection,
    optimizer: optax.GradientTransformation,
) -> tuple[Group, Float[Array, ""]]:
    """One iteration of one group; returns its loss, 0 where there is none.

    Args:
        kind: of `options.KINDS`; static, as all that follow.
        flip: whether the mirrored reconstruction counts, too.
    """
    if kind == "collect":
        stored = _collect(group, given, common, at, options, projection)
        return stored, jnp.zeros(())
    active = _active(given, at, options)

    def loss_of(trained: dict[str, Any]) -> Float[Array, ""]:
        params = {**group.params, **trained}
        if kind == "lesson":  # of no image
            key = _key(given.key[0], at.step, _LESSON)
            return projection.lesson(params["encoder"], key, common.projection)

        def of_image(place: Int[Array, ""]) -> Float[Array, ""]:
            image = given.image[place][None]
            if kind == "prior":  # depth before the border, as in the release
                depth = networks.read_depth(params, image, options)
                return jnp.mean(jnp.square(depth[0] - given.prior[place]))
            if kind == "encoder":
                seen = _seen(params, image, common, options)
                key = _key(given.key[place], at.step, _PSEUDO)
                pseudo = pseudo_samples(key, seen, given.mask[place], common, options)
                own = jax.tree.map(lambda x: x[place], given.own)
                found = projection.loss(
                    params["encoder"], pseudo, common.projection, own
                )
                return found + _misread(params, pseudo, common, options)
            if kind == "albedo":
                return _albedo_loss(params, image, common, flip, options)
            rows = _rows(given.key[place], at, options)
            stored = Stored(
                image=group.store_image[place][rows].astype(jnp.float32),
                mask=group.store_mask[place][rows],
            )
            total = shape_loss(params, image, stored, common, flip, options)
            if options.loss.view > 0:
                seen = _seen(params, image, common, options)
                key = _key(given.key[place], at.step, _PSEUDO)
                pseudo = pseudo_samples(key, seen, given.mask[place], common, options)
                total += _misread(params, pseudo, common, options)
            return total

        if len(active) == 1:  # one image needs no axis of images
            total = of_image(active[0])
        else:
            total = jnp.mean(jax.vmap(of_image)(active))
        if kind == "shape" and options.loss.spread > 0:
            total += _spread(params, given.image, common, options)
        return total

    names = trained(kind, options)
    loss, grads = jax.value_and_grad(loss_of)({n: group.params[n] for n in names})
    rates = dict(options.rates)
    params, moments = dict(group.params), dict(group.moments)
    updates: Any
    for name in names:
        updates, moments[name] = optimizer.update(
            grads[name], moments[name], params[name]
        )
        params[name] = jax.tree.map(
            lambda p, u, rate=rates[name]: p - rate * u, params[name], updates
        )
    return dataclasses.replace(group, params=params, moments=moments), loss


def _misread(
    params: dict[str, Any], pseudo: Pseudo, common: Common, options: ShapeOptions
) -> Float[Array, ""]:
    """How far V and L are from the view and light that samples were drawn with.

    Those of projected samples are not known; of pseudo samples they are. Without it
    nothing says how far a head has turned: twice the relief turned half as far looks
    nearly the same (the bas-relief ambiguity), and a V that begins at no rotation at
    all takes that way out.

    Returns:
        loss.view times (L1 of the three angles, radians, plus L1 of the five numbers of
        the light, which have no unit), means over samples.
    """
    if not options.loss.view:
        return jnp.zeros(())
    found = networks.read_conditions(params, pseudo.image, common.statistics, options)
    turned = jnp.abs(found.view - pseudo.view)[:, :3]
    light = jnp.abs(found.light - pseudo.light)
    return options.loss.view * (jnp.mean(turned) + jnp.mean(light))


def _spread(
    params: dict[str, Any],
    images: Float[Leaf, "g h w 3"],
    common: Common,
    options: ShapeOptions,
) -> Float[Array, ""]:
    """How far the views of all images are distributed otherwise than their category's.

    Of each angle the squared distance of the means, in standard deviations, and the
    squared logarithm of the standard deviations' ratio. The second settles how deep the
    relief is, the first which way the canonical head looks: both are free otherwise.

    Args:
        images: of the whole group, in [0, 1].
    """
    statistics = common.statistics
    read = networks.read_conditions(params, images, statistics, options).view[:, :3]
    wanted_mean, root = (
        heads.view_from_raw(x, options.reach)[:, :3]
        for x in (statistics.view_mean[None], statistics.view_root)
    )
    wanted = jnp.sum(jnp.square(root), axis=0)
    mean = jnp.mean(read, axis=0)
    found = jnp.mean(jnp.square(read - mean), axis=0)
    ratio = 0.5 * jnp.log((found + _LEAST) / (wanted + _LEAST))
    apart = jnp.square(mean - wanted_mean[0]) / (wanted + _LEAST)
    return options.loss.spread * jnp.mean(jnp.square(ratio) + apart)


def _key(key: Key[Array, ""], step: Int[Array, ""], what: int) -> Key[Array, ""]:
    return jax.random.fold_in(jax.random.fold_in(key, step), what)


def _active(given: Given, at: Moment, options: ShapeOptions) -> Int[Array, " k"]:
    """Places in the group of the images of this iteration."""
    count = len(given.image)
    if options.active is None or options.active >= count:
        return jnp.arange(count)
    # By the first image's key, as there is none of the group.
    key = _key(given.key[0], at.step, _ACTIVE)
    return jax.random.permutation(key, count)[: options.active]


def _albedo_loss(
    params: dict[str, Any],
    image: Float[Array, "1 h w 3"],
    common: Common,
    flip: bool,
    options: ShapeOptions,
) -> Float[Array, ""]:
    """Step 1: the image is explained by its albedo; all else is as it is."""
    surface = networks.read_surface(params, image, options)
    conditions = networks.read_conditions(params, image, common.statistics, options)
    return _explain_image(surface, conditions, image, common, flip, options)


def shape_loss(
    params: dict[str, Any],
    image: Float[Array, "1 h w 3"],
    stored: Stored,
    common: Common,
    flip: bool,
    options: ShapeOptions,
) -> Float[Array, ""]:
    """Step 3: step 1's loss, and one surface explains all samples as well.

    Depth and albedo are the image's; view and light are read off each sample.
    """
    surface = networks.read_surface(params, image, options)
    # The image and the samples in one pass of V and L.
    pictures = jnp.concatenate([image, stored.image])
    conditions = networks.read_conditions(params, pictures, common.statistics, options)
    first, others = (
        jax.tree.map(lambda x, part=part: x[part], conditions)
        for part in (slice(0, 1), slice(1, None))
    )
    found = losses.explain(
        surface,
        others,
        stored.image,
        stored.mask,
        options,
        flip=flip,
        perceptual=common.perceptual,
    )
    return found.loss + _explain_image(surface, first, image, common, flip, options)


def _explain_image(
    surface: Surface,
    conditions: Conditions,
    image: Float[Array, "1 h w 3"],
    common: Common,
    flip: bool,
    options: ShapeOptions,
) -> Float[Array, ""]:
    found = losses.explain(
        surface,
        conditions,
        image,
        None,
        options,
        flip=flip,
        perceptual=common.perceptual,
    )
    return found.loss + losses.smoothness(surface, found.plain, options)


def _rows(key: Key[Array, ""], at: Moment, options: ShapeOptions) -> Int[Array, " b"]:
    """Which stored samples an iteration of step 3 sees.

    The store from end to end in a random order, then in another one. In joint mode at
    random each time, as an image's turn comes now and then.
    """
    batches, size, done = options.collect, options.samples, at.step - at.first
    if options.active is not None:
        draw = _key(key, at.step, _ORDER)
        return jax.random.randint(draw, (size,), 0, batches * size)
    order = _key(jax.random.fold_in(key, at.first), done // batches, _ORDER)
    rows = jax.random.permutation(order, batches * size)
    return jax.lax.dynamic_slice(rows, (done % batches * size,), (size,))


def _seen(
    params: dict, image: Float[Array, "1 h w 3"], common: Common, options: ShapeOptions
) -> tuple[Surface, Conditions]:
    return (
        networks.read_surface(params, image, options),
        networks.read_conditions(params, image, common.statistics, options),
    )


def _collect(
    group: Group,
    given: Given,
    common: Common,
    at: Moment,
    options: ShapeOptions,
    projection: Projection,
) -> Group:
    """Projects a batch of new pseudo samples of every image, and stores it."""

    def project(args: Any) -> tuple[Array, Array]:
        image, mask, key, own = args
        key = _key(key, at.step, _PSEUDO)
        seen = _seen(group.params, image[None], common, options)
        pseudo = pseudo_samples(key, seen, mask, common, options)
        found = projection.project(
            group.params.get("encoder"), pseudo, common.projection, own
        )
        return found.image.astype(jnp.float16), pseudo.mask

    images, masks = jax.lax.map(
        project, (given.image, given.mask, given.key, given.own)
    )
    row = (at.step - at.first) * options.samples
    return dataclasses.replace(
        group,
        store_image=jax.lax.dynamic_update_slice_in_dim(
            group.store_image, images, row, axis=1
        ),
        store_mask=jax.lax.dynamic_update_slice_in_dim(
            group.store_mask, masks, row, axis=1
        ),
    )
