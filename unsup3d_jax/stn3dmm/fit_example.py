"""Without a network: a face in a picture, found by its landmarks and flattened.

    python -m unsup3d_jax.stn3dmm.fit_example --output=OUT

fits theta to the 21 true landmarks of a synthetic face, from theta = 0, as the
demonstration of Bas et al. (ICCVW 2017) does; says how near it comes and how long it
took; and writes `panel.png`, `flattened.png` and `theta.json`.

The face that ships has 5 + 5 coefficients and no others, as the authors' release, and
21 points in one picture tell them all. With --seed=N somebody else is rendered, who has
all 94: these and the pose are more than 42 numbers can tell apart, so that landmarks
are met as closely and the rotation is off by 0.2 to 1.8 degrees.
"""

import argparse
import functools
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from unsup3d_jax.data.tiles import to_bytes
from unsup3d_jax.evaluation.angles import rotation_angle_deg
from unsup3d_jax.formation.types import AnyArray
from unsup3d_jax.stn3dmm import example_face, layers, morphable, people, pictures
from unsup3d_jax.stn3dmm.example_face import Pictured
from unsup3d_jax.stn3dmm.fit import fit_landmarks
from unsup3d_jax.stn3dmm.flattening import flatten
from unsup3d_jax.stn3dmm.layers import Camera
from unsup3d_jax.stn3dmm.morphable import GridModel

GRID = 64
FINE_GRID = 112  # of --export
_NOISE_PX = 0.02  # the landmarks are exact


class Known(NamedTuple):
    """A face and what is known of it.

    Attributes:
        image: (s, s, 3) in [0, 1].
        theta: (6 + d,) the true one, of a model with the face's coefficients.
        landmarks: (l, 2) (u, v), pixels.
    """

    image: Float[np.ndarray, "s s 3"]
    theta: Float[np.ndarray, " p"]
    landmarks: Float[np.ndarray, "l 2"]


def model_of(grid: int, landmarks: str, *, few: bool) -> tuple[GridModel, Camera]:
    """The open model, with 5 + 5 columns or all, and the camera of the open faces."""
    count = example_face.FEW if few else None
    model = morphable.grid_model(
        morphable.load_model("open"),
        grid,
        landmarks=landmarks,
        identity=count,
        expression=count,
    )
    kappa = people.open_face_perspective()
    return model, morphable.default_camera(model, perspective=kappa)


def known_of(picture: Pictured, model: GridModel, camera: Camera) -> Known:
    """The true theta of a picture, and its landmarks.

    Args:
        picture: whose coefficients are 0 but for the model's columns.
        model, camera: of `model_of`.
    """
    view, scale = picture.view[None], picture.scale[None]
    pose = people.pose_of(scale, view, camera=camera)[0]
    alpha = morphable.alpha_of(picture.coefficients[None])[0]
    count = model.num_identity
    rest = len(model.basis) - count
    first = np.arange(count), example_face.NUM_IDENTITY + np.arange(rest)
    theta = np.concatenate([pose, alpha[np.concatenate(first)]])
    points = _landmarks(model, theta, camera, len(picture.image))
    image = picture.image.astype(np.float32) / 255.0
    return Known(image, theta, np.asarray(points))


@functools.partial(jax.jit, static_argnames=("camera", "size"))
def _landmarks(
    model: GridModel, theta: Float[AnyArray, " p"], camera: Camera, size: int
) -> Float[Array, "l 2"]:
    return layers.project_landmarks(model, layers.split(theta), camera, image_size=size)


@functools.partial(jax.jit, static_argnames="camera")
def _shown(
    model: GridModel,
    theta: Float[AnyArray, " p"],
    true_rotation: Float[AnyArray, "3"],
    image: Float[AnyArray, "s s 3"],
    camera: Camera,
) -> tuple[Array, ...]:
    """Pixels, landmarks, flattened face and mask, of one; and the turn's error."""
    # By normals, as in the paper: a z-buffer takes longer to compile than all the rest.
    found = flatten(model, theta[None], image[None], camera, mode="facing")
    turns = map(layers.rotation_matrix, (theta[:3], true_rotation))
    parts = found.posed.pixels, found.posed.landmarks, found.faces, found.mask
    return *parts, rotation_angle_deg(*turns)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="a folder")
    parser.add_argument("--seed", type=int, help="somebody else; renders half a minute")
    parser.add_argument("--landmarks", choices=("aflw21", "ibug68"), default="aflw21")
    parser.add_argument(
        "--export", action="store_true", help="all that mode reconstruct writes, too"
    )
    args = parser.parse_args()
    start = time.perf_counter()
    few = args.seed is None
    picture = example_face.shipped() if few else example_face.rendered(args.seed)
    model, camera = model_of(GRID, args.landmarks, few=few)
    face = known_of(picture, model, camera)
    size = len(face.image)
    fitting = time.perf_counter()
    fit = fit_landmarks(
        model, face.landmarks[None], camera, image_size=size, noise_px=_NOISE_PX
    )
    theta = np.asarray(fit.theta[0])
    fitted = time.perf_counter() - fitting
    *shown, error = jax.device_get(
        _shown(model, theta, face.theta[:3], face.image, camera)
    )
    args.output.mkdir(parents=True, exist_ok=True)
    panel = pictures.training_panel(
        face.image[None], *shown, truth=face.landmarks[None]
    )
    Image.fromarray(panel).save(args.output / "panel.png")
    Image.fromarray(to_bytes(shown[2][0])).save(args.output / "flattened.png")
    apart = np.linalg.norm(shown[1][0] - face.landmarks, axis=1)
    record = {
        "theta": theta.tolist(),
        "true_theta": face.theta.tolist(),
        "rotation_error_deg": float(error),
        "landmark_error_px": float(apart.max()),
        "seconds": {"fit": fitted, "all": time.perf_counter() - start},
    }
    (args.output / "theta.json").write_text(json.dumps(record, indent=1) + "\n")
    if args.export:
        # Here, as its packages take time to load.
        from unsup3d_jax.stn3dmm.export import ExportOptions, export

        fine, _ = model_of(FINE_GRID, args.landmarks, few=few)
        how = ExportOptions(photo_size=size, visibility="zbuffer", texture_scale=2)
        export(args.output, face.image, theta, fine, camera, how)
    print(
        f"{len(apart)} landmarks to {apart.max():.3f} px, rotation to {error:.3f} "
        f"degrees, fitted in {fitted:.1f} s of {record['seconds']['all']:.1f} s; see "
        f"{args.output}/"
    )


if __name__ == "__main__":
    # Each program runs once, so that it counts how long it takes to compile.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0"
    main()
