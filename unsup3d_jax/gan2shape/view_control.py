"""Whether the generator turns the head that it is asked to turn, and keeps the person.

Pseudo samples of each image are drawn at known yaws and projected; V reads the yaw off
each projected picture. A generator that answers with the same picture to all of them
teaches no shape.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import stats

from unsup3d_jax.engine import checkpoint
from unsup3d_jax.flags import Arguments
from unsup3d_jax.formation.types import Conditions, Surface
from unsup3d_jax.gan2shape import (
    generated,
    losses,
    networks,
    options,
    run,
    subjects,
)
from unsup3d_jax.gan2shape.generator_projection import GeneratorProjection, Own
from unsup3d_jax.gan2shape.options import ShapeOptions
from unsup3d_jax.gan2shape.sampling import Statistics
from unsup3d_jax.gan2shape.through_generator import turned
from unsup3d_jax.nets.stylegan2 import StyleGan, discriminator_features

YAWS_DEG = tuple(np.linspace(-30.0, 30.0, 7))


@dataclasses.dataclass(frozen=True)
class ViewControl:
    """Of some images.

    Attributes:
        spearman: rank correlation of the yaw read with the yaw asked for, mean over
            the images; 1: the order is kept.
        slope: of the straight line through them, mean over the images; 1: turned as
            far as asked.
        same: distance of projected pictures to the frontal one of the same image, by
            the discriminator's last features.
        other: the same to the frontal one of another image, at the same yaw.
    """

    spearman: float
    slope: float
    same: float
    other: float


def of_run(args: Arguments) -> ViewControl:
    """Of a finished run with a generator, whose config and workdir `args` have.

    Raises:
        UserError: if it is not finished.
        ValueError: if it has no generator.
    """
    config, workdir = args.config, args.workdir
    static = options.check_config(config)
    projection, gan = generated.make(config)
    if not isinstance(projection, GeneratorProjection):
        raise ValueError("projection.kind must be generator.")
    found = subjects.of_config(config, args.input)
    found = generated.known(config, found, gan, workdir)
    record = run.read_record(config, workdir, len(found))
    parts = []
    for lot in run.lots_of(config, workdir, len(found)):
        groups = checkpoint.load_parts(lot.folder, ("params",))[0]["params"]
        parts.append(_of_each(groups, lot.rows.stop - lot.rows.start))
    params = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    names = ("canon_depth", "canon_albedo", "light")
    return measure(
        params,
        found.image,
        tuple(record[name][-1] for name in names),
        run.common_of(config, found).statistics,
        static,
        projection,
        gan,
        found.own,
    )


def _of_each(groups: dict[str, Any], images: int) -> dict[str, Any]:
    """Parameters of each image: those of its group, leading axis of groups -> images.

    In joint mode all images are one group, whatever `stages.group` says.
    """

    def each(x: Any) -> np.ndarray:
        x = np.asarray(x)
        return np.repeat(x, images // len(x), axis=0)

    return jax.tree.map(each, groups)


def measure(
    params: dict[str, Any],
    images: Float[np.ndarray, "n h w 3"],
    looks: tuple[Any, ...],
    statistics: Statistics,
    static: ShapeOptions,
    projection: GeneratorProjection,
    gan: StyleGan,
    own: Own,
) -> ViewControl:
    """Measures it for a finished run.

    Args:
        params: of each image, leading axis n.
        images: whose shapes they are.
        looks: canonical depth, albedo and light of each, of the last row of its record.
        own: leading axis n.
    """
    read, features = [], []
    ask = _compiled(static, projection)
    for i in range(len(images)):
        one = jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), (params, looks, own))
        yaws, described = ask(*one, statistics, gan)
        read.append(np.degrees(np.asarray(yaws)))
        features.append(np.asarray(described))
    return summarise(np.stack(read), np.stack(features), YAWS_DEG)


def summarise(
    read: Float[np.ndarray, "n t"],
    features: Float[np.ndarray, "n t f"],
    asked: Sequence[float],
) -> ViewControl:
    """The figures of yaws that were read, degrees, and features of the pictures."""
    ranks = [float(np.asarray(stats.spearmanr(asked, one))[0]) for one in read]
    slopes = [np.polyfit(asked, one, 1)[0] for one in read]
    frontal = features[:, len(asked) // 2]
    same = np.abs(features - frontal[:, None]).mean()
    other = np.abs(features - np.roll(frontal, 1, axis=0)[:, None]).mean()
    return ViewControl(
        spearman=float(np.mean(ranks)),
        slope=float(np.mean(slopes)),
        same=float(same),
        other=float(other),
    )


@functools.lru_cache(maxsize=4)
def _compiled(static: ShapeOptions, projection: GeneratorProjection) -> Any:
    @jax.jit
    def ask(
        params: dict[str, Any],
        looks: tuple[Array, Array, Array],
        own: Own,
        statistics: Statistics,
        gan: StyleGan,
    ) -> tuple[Array, Array]:
        depth, albedo, light = (x[None] for x in looks)
        surface = Surface(raw_depth=depth, canon_depth=depth, canon_albedo=albedo)
        views = jnp.asarray(turned(1, YAWS_DEG))
        lights = jnp.repeat(light, len(views), axis=0)
        drawn = losses.render(surface, Conditions(light=lights, view=views), static)
        answer = projection.project_pictures(
            params["encoder"], drawn.warped.image, gan, own
        )
        seen = networks.read_conditions(params, answer, statistics, static)
        maps = discriminator_features(
            gan.discriminator, 2.0 * answer - 1.0, gan.options
        )
        return seen.view[:, 1], maps[-1].reshape(len(views), -1)

    return ask
