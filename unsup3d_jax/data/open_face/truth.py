"""What the open faces are made from, without rendering them: shape, size and pose.

    truth = load("train", image_size=64, count=1000, cache_dir="cache")
    truth["coefficients"]  # (1000, 94): of the model's identity and expression

The numbers are those of the pictures of `dataset.load` and `dataset.load_views` under
the same options, to the bit: both are placed by `render.place`. A picture shows

    (coefficients -> head, metres) * scale, turned and moved by view,

see `scene`; but for the hair, which moves the scalp outwards by some millimetres, and
for `asymmetry`, which scales the antisymmetric part of the expressions.
"""

import os
from collections.abc import Collection

import numpy as np

from unsup3d_jax.data.open_face import appearance, cache, generate, model, render
from unsup3d_jax.data.open_face.dataset import VARIES, split_seeds, view_seeds
from unsup3d_jax.data.open_face.generate import Options
from unsup3d_jax.data.open_face.model import Seeds


def load(
    split: str,
    *,
    image_size: int,
    count: int,
    views: int = 1,
    seed: int = 0,
    vary: Collection[str] = VARIES,
    pose: str = "mixed",
    asymmetry: float = 1.0,
    cache_dir: str | os.PathLike | None = None,
) -> dict[str, np.ndarray]:
    """Returns the truth of the pictures of a split, from the cache or anew.

    Args:
        image_size: of the pictures; heads are shaped as many at a time as are rendered
            at once.
        views: pictures of each person, as `dataset.load_views`; 1: those of
            `dataset.load`.
        split, count, seed, vary, pose, asymmetry, cache_dir: as there.

    Returns:
        "coefficients" (count * views, 94) float32, per standard deviation, identity 70
        and expression 24; "scale" (count * views,) float32; "view" (count * views, 6)
        float32, pitch, yaw, roll (radians), tx, ty, tz (metres).

    Raises:
        ValueError: naming the argument that is out of range.
    """
    options = Options(image_size, pose, asymmetry, perturb=False)
    people = split_seeds(split, count=count, seed=seed)
    seeds = view_seeds(people, views=views, vary=vary)
    request = {
        "split": split,
        "image_size": image_size,
        "count": count,
        "views": views,
        "seed": seed,
        "vary": sorted(vary) if views > 1 else [],
        "pose": pose,
        "asymmetry": asymmetry,
    }
    return cache.made_once(
        cache_dir, f"{split}-truth", request, lambda: truth_of(seeds, options), None
    )


def truth_of(seeds: Seeds, options: Options) -> dict[str, np.ndarray]:
    """What pictures of the given numbers are made from; the arrays of `load`."""
    parts = list(generate.by_chunks(seeds, options, _chunk))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _chunk(
    shape: model.FaceModel, mesh: render.Mesh, seeds: Seeds, options: Options
) -> dict[str, np.ndarray]:
    people = model.sample_people(shape, seeds, asymmetry=options.asymmetry)
    look = appearance.sample_appearance(
        shape, seeds.person, people.attributes, asymmetry=options.asymmetry
    )
    placed = render.place(
        mesh,
        seeds,
        people.coefficients,
        look,
        size=options.image_size,
        pose=options.pose,
    )
    count, where = len(seeds.pose), placed.where
    return {
        "coefficients": people.coefficients,
        "scale": where.scale[:count],
        "view": where.view[:count],
    }
