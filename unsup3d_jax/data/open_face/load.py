"""The open faces that a config asks for, as a `Dataset`."""

import time
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from ml_collections import ConfigDict

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data.batches import FACTORS
from unsup3d_jax.data.open_face import dataset as open_faces
from unsup3d_jax.data.open_face import scene, truth
from unsup3d_jax.data.open_face.model import LANDMARK_FLIP
from unsup3d_jax.data.prepare import cache_root
from unsup3d_jax.errors import UserError, refusing

BACKGROUNDS = ("rendered", "plain")
PLAIN = 128  # of 255, every channel; 0.004 in signed images


def load(config: ConfigDict, split: str) -> ds.Dataset:
    """Renders a split, or takes it from the cache, with all that is known of it.

    Raises:
        UserError: naming the key of an option that is out of range, or that does not
            agree with how the faces are rendered.
    """
    if "view" in config:  # else the method has a camera of its own, and looks itself
        check_camera(config)
    options = _options(config, split)
    plain = is_plain(config)
    start = time.monotonic()
    with refusing("config.data, open_faces: "):  # of the option, the key's name
        arrays = open_faces.load(
            split,
            cache_dir=cache_root(config.data.cache_dir),
            # Nothing reads the normals and albedo of the training set.
            fields=(*FACTORS, "keypoints") if split == "train" else None,
            **options,
        )
    if plain:
        arrays["image"] = on_plain(arrays["image"], arrays["mask"])
        options |= {"background": "plain"}
    return _dataset(config, split, options, arrays, start)


def is_plain(config: ConfigDict) -> bool:
    """Whether data.background asks for a plain one.

    Raises:
        UserError: if it is neither of BACKGROUNDS.
    """
    name = config.data.background
    if name not in BACKGROUNDS:
        raise UserError(
            f"data.background must be one of {', '.join(BACKGROUNDS)}, got {name!r}."
        )
    return name == "plain"


def on_plain(
    images: UInt8[np.ndarray, "*n h w 3"], masks: Bool[np.ndarray, "*n h w"]
) -> UInt8[np.ndarray, "*n h w 3"]:
    """The faces before grey: what the mask leaves out is PLAIN.

    Pixels are supersampled and masks are those of their centres: a pixel of the border
    keeps what it shows of the backdrop.
    """
    return np.where(masks[..., None], images, np.uint8(PLAIN))


def load_people(
    config: ConfigDict,
    split: str,
    *,
    views: int,
    count: int | None = None,
    vary: Collection[str] = open_faces.VARIES,
    fields: Collection[str] = ("image", "keypoints"),
) -> ds.Dataset:
    """Several pictures of each person, with what they are made from: `truth`.

    An example is a person: `image` is (people, views, s, s, 3), and so are the others.

    Args:
        views: pictures of each; 1: the pictures of `load`, and its cache.
        count: people; None: data.count_<split>.
        vary: what differs between the pictures of a person.
        fields: of the pictures; "coefficients", "scale" and "view" come with them.

    Raises:
        UserError: as `load`.
    """
    options = _options(config, split, count)
    cache_dir, plain = cache_root(config.data.cache_dir), is_plain(config)
    if plain:
        fields = {*fields, "mask"}
    start = time.monotonic()
    with refusing("config.data, open_faces: "):
        wanted: dict[str, Any] = {"cache_dir": cache_dir, "fields": fields}
        several = {"views": views, "vary": vary}
        arrays = (
            open_faces.load(split, **wanted, **options)
            if views == 1
            else open_faces.load_views(split, **wanted, **several, **options)
        )
        known = {k: v for k, v in options.items() if k != "perturb"}
        arrays |= truth.load(split, cache_dir=cache_dir, **several, **known)
    arrays = {k: v.reshape(-1, views, *v.shape[1:]) for k, v in arrays.items()}
    if plain:
        arrays["image"] = on_plain(arrays["image"], arrays["mask"])
        options |= {"background": "plain"}
    if views > 1:
        options |= {"views": views, "vary": sorted(vary)}
    return _dataset(config, split, options, arrays, start)


def _options(
    config: ConfigDict, split: str, count: int | None = None
) -> dict[str, Any]:
    data = config.data
    count = count or data[f"count_{split}"]
    return {
        "image_size": data.image_size,
        "count": min(count, data.max_images) if data.max_images else count,
        "seed": data.seed,
        "pose": data.pose,
        "asymmetry": data.asymmetry,
        "perturb": data.perturb,
    }


def _dataset(
    config: ConfigDict,
    split: str,
    options: Mapping[str, Any],
    arrays: dict[str, np.ndarray],
    start: float,
) -> ds.Dataset:
    size = len(arrays["image"])
    # A few hundred images stand for all: they tell versions of the renderer
    # apart, and hashing everything would read the whole cache file.
    some = np.ascontiguousarray(arrays["image"][:: max(1, size // 256)])
    return ds.Dataset(
        arrays=arrays,
        report=ds.Report(
            name=config.data.name,
            split=split,
            root="",
            found=size,
            seconds=time.monotonic() - start,
        ),
        digest=ds.digest_of("open_faces", split, options, some.tobytes().hex()),
        workers=config.data.workers,
        keypoint_flip=LANDMARK_FLIP,
    )


def check_camera(config: ConfigDict) -> None:
    """Refuses another camera than the open faces are rendered with.

    A model that looks through another one, or whose depth cannot reach the faces,
    would learn and be scored against a wrong truth without a word.

    Raises:
        UserError: naming the key.
    """
    (near, far), view, depth = scene.DEPTH_RANGE, config.view, config.depth
    centre, fov = scene.CENTRE_DEPTH, scene.FOV_DEG
    rules = (
        ("view.fov_deg", view.fov_deg == fov, f"{fov:g}"),
        (
            "view.rotation_centre_depth",
            view.rotation_centre_depth == centre,
            f"{centre:g}",
        ),
        ("depth.min", depth.min <= near, f"at most {near:g}"),
        ("depth.max", depth.max >= far, f"at least {far:g}"),
    )
    for key, holds, rule in rules:
        if not holds:
            section, name = key.split(".")
            raise UserError(
                f"{key} must be {rule} for data.name=open_faces, as they are "
                f"rendered, got {config[section][name]}."
            )
