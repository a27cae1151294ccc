"""Is the mean flattened face of several pictures nearer to the truth than one picture?

    python -m benchmarks.stn3dmm_views --output=views.json --sheet=views.png
    python -m benchmarks.stn3dmm_views --workdir=runs/stn3dmm_open_faces

Open faces of people that nobody has trained on, each in several pictures that differ in
pose, expression, light and backdrop. They are flattened at their true theta; with
--workdir (a run) or --shipped (the localiser of the package) at the localiser's theta
too. The truth is the albedo in UV space, which a picture shows times its shading: a
flattened face is compared after the best gain for each channel, by the mean absolute
difference over the texels that the single picture shows, the mean's over the same ones.
"""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks import machine
from configs.stn3dmm import default
from configs.stn3dmm import open_faces as recipe
from unsup3d_jax.configuration import Keys, of_run, record_beside
from unsup3d_jax.data.open_face import dataset as open_faces
from unsup3d_jax.data.open_face import truth
from unsup3d_jax.engine import checkpoint
from unsup3d_jax.stn3dmm import (
    evaluate,
    layers,
    morphable,
    options,
    people,
    pictures,
    shipped,
    textures,
)
from unsup3d_jax.stn3dmm.export import ExportOptions, Found, flatten, frontal_view
from unsup3d_jax.stn3dmm.true_textures import true_textures

GRID = 64
SHOWN = 4  # people of the sheet


class Faces(NamedTuple):
    """n people in v pictures.

    Attributes:
        image: (n, v, s, s, 3) uint8.
        theta: (n, v, 6 + 94) true, of the camera of `setting`.
        albedo: (n, v, g, g, 3) of each picture's face.
    """

    image: np.ndarray
    theta: np.ndarray
    albedo: np.ndarray


def setting(grid: int) -> tuple[Any, layers.Camera]:
    model = morphable.grid_model(morphable.load_model("open"), grid)
    kappa = people.open_face_perspective()
    camera = morphable.default_camera(model, perspective=kappa)
    return jax.tree.map(jnp.asarray, model), camera


def faces(count: int, views: int, size: int, grid: int, camera) -> Faces:
    """People of the test split."""
    several = open_faces.load_views(
        "test", image_size=size, count=count, views=views, fields=("image",)
    )
    known = truth.load("test", image_size=size, count=count, views=views)
    pose = people.pose_of(known["scale"], known["view"], camera=camera)
    theta = np.concatenate([pose, morphable.alpha_of(known["coefficients"])], axis=1)
    seeds = open_faces.view_seeds(
        open_faces.split_seeds("test", count=count), views=views
    )
    albedo = true_textures(seeds, grid, asymmetry=1.0)
    lead = (count, views)
    return Faces(*(a.reshape(*lead, *a.shape[1:]) for a in
                   (several["image"], theta, albedo)))  # fmt: skip


def difference(face: np.ndarray, true: np.ndarray, counted: np.ndarray) -> float:
    """Mean absolute difference over some texels, after the best gain a channel."""
    a, b = face[counted], true[counted]
    gain = (a * b).sum(0) / np.maximum((a * a).sum(0), 1e-9)
    return float(np.abs(gain * a - b).mean())


def compare(found: list[list[Found]], data: Faces) -> dict[str, float]:
    """Single pictures and the mean of all of a person's, against the truth."""
    single, best, mean, wins, coverage = [], [], [], [], []
    for person, albedo in zip(found, data.albedo, strict=True):
        pairs = [(f.flattened, f.visibility) for f in person]
        together, weight = textures.mean_flattened(pairs)
        truth_of = albedo.mean(0)  # gaze moves the iris a little with expression
        ones, means = [], []
        for face, seen in pairs:
            counted = np.asarray(seen) > 0.5
            ones.append(difference(np.asarray(face), truth_of, counted))
            means.append(difference(together, truth_of, counted))
        single.append(np.mean(ones))
        best.append(np.min(ones))
        mean.append(np.mean(means))
        wins.append(np.mean(np.array(means) < np.array(ones)))
        coverage.append([np.mean([np.mean(s) for _, s in pairs]), np.mean(weight > 0)])
    covered = np.mean(coverage, axis=0)
    return {
        "single": float(np.mean(single)),
        "best_single": float(np.mean(best)),
        "mean": float(np.mean(mean)),
        "people_whose_mean_beats_the_average_view": float(
            np.mean(np.array(mean) < np.array(single))
        ),
        "people_whose_mean_beats_every_view": float(np.mean(np.array(wins) == 1.0)),
        "views_beaten_by_the_mean": float(np.mean(wins)),
        "texels_seen_by_one": float(covered[0]),
        "texels_seen_by_any": float(covered[1]),
    }


def sheet(found: list[list[Found]], data: Faces) -> np.ndarray:
    """True albedo, mean of all, and single pictures with their flattened faces."""
    columns: dict[str, list] = {}
    for person, image, albedo in zip(found, data.image, data.albedo, strict=True):
        shown = [(f.flattened, f.visibility) for f in person]
        columns.setdefault("true albedo", []).append(albedo[0])
        mean, _ = textures.mean_flattened(shown)
        columns.setdefault(f"mean of {len(shown)}", []).append(mean)
        for k, pair in enumerate(shown[:4]):
            photo = image[k].astype(np.float32) / 255
            columns.setdefault(f"photo {k + 1}", []).append(photo)
            columns.setdefault(f"face {k + 1}", []).append(pictures.masked(*pair))
    return pictures.labelled(columns, side=160)


def picture(found: list[list[Found]], data: Faces, thetas: Any, model, camera, how):
    """The first picture of each person, and all that is made of it."""
    columns: dict[str, list] = {}
    for person, image, vectors in zip(found, data.image, thetas, strict=True):
        one, photo = person[0], image[0].astype(np.float32) / 255
        _, view = frontal_view(one, vectors[0], model, camera, how)
        shown = {
            "picture": photo,
            "mesh": pictures.mesh_overlay(photo, one.posed.pixels, one.visibility),
            "flattened": one.flattened,
            "visible": one.visibility,
            "frontal": view[..., :3],
            "frontal, filled parts tinted": pictures.marked(
                view[..., :3], view[..., 3:]
            ),
        }
        for name, part in shown.items():
            columns.setdefault(name, []).append(part)
    return pictures.labelled(columns, side=160)


def localised(args: argparse.Namespace, data: Faces) -> tuple[Any, Any, np.ndarray]:
    """Model and camera of a run (or what ships), and its theta of the pictures."""
    if args.shipped:
        config = recipe.get_config()
        params, _ = shipped.load(config)
    else:
        keys = Keys(default.get_config, default.RANGES, default.YOUNGER)
        record = record_beside(args.workdir)
        if record is None:
            raise SystemExit(f"{args.workdir} holds no config.json of a run.")
        config = of_run(record, {"stn3dmm": keys})
        params = checkpoint.load_parts(args.workdir)[0]["params"]
    face = options.load_face(config)
    static = options.options_from_config(config, face)
    size = config.data.image_size
    count, views = data.image.shape[:2]
    small = [
        np.asarray(
            Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
        )
        for image in data.image.reshape(-1, *data.image.shape[2:])
    ]
    theta = evaluate.predict(params, np.stack(small), static.localiser, 64)
    model = morphable.grid_model(
        face.model,
        GRID,
        identity=config.face.identity or None,
        expression=config.face.expression or None,
    )
    return (
        jax.tree.map(jnp.asarray, model),
        face.camera,
        theta.reshape(count, views, -1),
    )


def _save(path: Path, row: str, picture: np.ndarray) -> None:
    stem = f"{path.stem}_{row.replace(' ', '_')}{path.suffix}"
    Image.fromarray(picture).save(path.with_name(stem))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=24)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--workdir", type=Path, help="of a run")
    parser.add_argument(
        "--shipped", action="store_true", help="the package's localiser"
    )
    parser.add_argument("--sheet", type=Path, help="a picture of people in views")
    parser.add_argument("--picture", type=Path, help="one of all that is made of one")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    model, camera = setting(GRID)
    data = faces(args.people, args.views, args.image_size, GRID, camera)
    thetas = {"true theta": (model, camera, data.theta)}
    if args.shipped or args.workdir:
        thetas["localiser"] = localised(args, data)
    how = ExportOptions(args.image_size, "zbuffer", 3)
    rows = {}
    for name, (of, through, theta) in thetas.items():
        draw = functools.partial(flatten, of, camera=through, options=how)
        found = [
            [
                jax.device_get(draw(vector, image.astype(np.float32) / 255))
                for vector, image in zip(vectors, images, strict=True)
            ]
            for vectors, images in zip(theta, data.image, strict=True)
        ]
        rows[name] = compare(found, data)
        print(name, json.dumps(rows[name], indent=1))
        few = Faces(*(a[:SHOWN] for a in data))
        if args.sheet:
            _save(args.sheet, name, sheet(found[:SHOWN], few))
        if args.picture:
            shown = picture(found[:SHOWN], few, theta[:SHOWN], of, through, how)
            _save(args.picture, name, shown)
    if args.output:
        content = {
            "question": "is the mean of several flattened faces nearer to the truth",
            "machine": machine.describe("numba"),
            "settings": {
                name: getattr(args, name) for name in ("people", "views", "image_size")
            },
            "rows": rows,
        }
        args.output.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
