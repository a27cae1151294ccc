"""A small problem for the steps of GAN2Shape: balls, narrow networks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from configs.gan2shape import default
from unsup3d_jax.engine import optimizer as optimizers
from unsup3d_jax.gan2shape import options, prior, sampling, stages
from unsup3d_jax.gan2shape.projection import Projected
from unsup3d_jax.gan2shape.steps import Common, Given

SIZE = 32


@dataclasses.dataclass(frozen=True)
class Tinted:
    """A projection whose encoder learns one colour, to make all samples darker."""

    learns: bool = True

    def init_encoder(self, key):
        return {"colour": 0.1 * jax.random.normal(key, (3,))}

    def project(self, encoder, pseudo, shared, own):
        return Projected((pseudo.image + encoder["colour"]).clip(0.0, 1.0))

    def loss(self, encoder, pseudo, shared, own):
        found = self.project(encoder, pseudo, shared, own).image
        return jnp.mean(jnp.square(found - 0.9 * pseudo.image))

    def lesson(self, encoder, key, shared):
        return jnp.mean(jnp.square(encoder["colour"] + 0.05))


def config(**changes):
    """Of 32 px; two stages of a few iterations, two samples an iteration."""
    c = default.get_config()
    c.data.image_size = SIZE
    c.projection.kind = "generator"
    c.model.width, c.model.encoder_width, c.model.bottleneck = 4, 4, 8
    c.stages.count, c.stages.collect = 1, 2
    c.stages.prior_steps, c.stages.first_steps = 3, (3, 3, 3)
    c.stages.later_steps = (2, 2, 2)
    c.stages.flip_all = (False,)
    c.loss.perceptual_kind = "none"
    c.train.batch_size, c.train.learning_rate = 2, 1e-3
    c.raster.supersample = 1
    c.log.every, c.checkpoint.every = 2, 100
    for key, value in changes.items():
        section, name = key.split("__")
        c[section][name] = value
    return c


def balls(count):
    """Images (n, h, w, 3) of lit balls of several colours, and their masks."""
    axis = np.linspace(-1.0, 1.0, SIZE)
    x, y = np.meshgrid(axis, axis)
    images, masks = [], []
    for i in range(count):
        r2 = (x / 0.7) ** 2 + (y / (0.6 + 0.1 * (i % 3))) ** 2
        mask = r2 < 1.0
        height = np.sqrt(np.clip(1.0 - r2, 0.0, None))
        shade = 0.4 + 0.5 * np.clip(height + (0.3 * i % 1.0 - 0.5) * x, 0.0, 1.0)
        color = np.array([0.9, 0.6 + 0.05 * i, 0.5])
        images.append(np.where(mask[..., None], shade[..., None] * color, 0.5))
        masks.append(mask)
    return np.stack(images).astype(np.float32).clip(0, 1), np.stack(masks)


def plan(config, projection=None, side_by_side=1, devices=1):
    return stages.Plan(
        phases=options.phases(config),
        options=options.check_config(config),
        projection=projection or Tinted(),
        optimizer=optimizers.make_optimizer(config),
        side_by_side=side_by_side,
        devices=tuple(jax.local_devices()[:devices]),
        log_every=config.log.every,
        checkpoint_every=config.checkpoint.every,
        keep=2,
    )


def work(config, rows, group=1):
    """The balls of some numbers, in groups."""
    images, masks = balls(max(rows) + 1)
    rows = np.asarray(rows)
    count = len(rows) // group
    given = prior.PriorOptions("ellipsoid", 0.91, 1.02, 0.4, "none", True)
    depth = np.stack(
        [prior.prior_depth(masks[i].astype(np.float32), given) for i in rows]
    )
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(
        jnp.asarray(rows)
    )
    return stages.Work(
        given=Given(
            image=jnp.asarray(images[rows]).reshape(count, group, SIZE, SIZE, 3),
            mask=jnp.asarray(masks[rows]).reshape(count, group, SIZE, SIZE),
            prior=jnp.asarray(depth).reshape(count, group, SIZE, SIZE),
            key=keys.reshape(count, group),
            own=(),
        ),
        common=Common(statistics=sampling.load(""), perceptual=None, projection=()),
        key=keys[::group],
        params=None,
        images={"rows": [int(i) for i in rows]},
    )
