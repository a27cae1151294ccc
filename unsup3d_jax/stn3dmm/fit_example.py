"""Without a network: a face in a picture, found by its landmarks and flattened.

    python -m unsup3d_jax.stn3dmm.fit_example --output=OUT

makes an open face that nobody has trained on, fits theta to its 21 true landmarks, as
the demonstration of Bas et al. (ICCVW 2017) does, says how near it comes, and writes
what mode `reconstruct` writes of a photo.
"""

import argparse
import functools
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unsup3d_jax.data.open_face import dataset as open_faces
from unsup3d_jax.data.open_face import model as open_face
from unsup3d_jax.data.open_face import truth
from unsup3d_jax.data.open_face.generate import Options
from unsup3d_jax.evaluation.angles import rotation_angle_deg
from unsup3d_jax.formation.types import AnyArray
from unsup3d_jax.stn3dmm import layers, morphable, people
from unsup3d_jax.stn3dmm.export import ExportOptions, export
from unsup3d_jax.stn3dmm.fit import fit_landmarks
from unsup3d_jax.stn3dmm.layers import Camera
from unsup3d_jax.stn3dmm.morphable import GridModel

GRID = 112


class Known(NamedTuple):
    """An open face and what is known of it.

    Attributes:
        image: (s, s, 3) in [0, 1].
        theta: (6 + 94,) the true one.
        landmarks: (l, 2) (u, v), pixels.
    """

    image: Float[np.ndarray, "s s 3"]
    theta: Float[np.ndarray, " p"]
    landmarks: Float[np.ndarray, "l 2"]


def a_face(model: GridModel, camera: Camera, *, seed: int, size: int) -> Known:
    """A picture of somebody of the test split, with its true theta and landmarks.

    Args:
        model: of the open faces.
        camera: with their perspective.
        seed: who.
        size: pixels a side.
    """
    numbers = open_faces.split_seeds("test", count=1, seed=seed)
    picture = open_faces.generate(numbers, image_size=size)["image"][0]
    options = Options(size, "mixed", asymmetry=1.0, perturb=False)
    known = truth.truth_of(open_face.of_one_number(numbers), options)
    pose = people.pose_of(known["scale"], known["view"], camera=camera)
    alpha = morphable.alpha_of(known["coefficients"])
    theta = np.concatenate([pose, alpha], axis=1)[0]
    points = _landmarks(model, theta, camera, size)
    return Known(picture.astype(np.float32) / 255.0, theta, np.asarray(points))


@jax.jit
def _turn_error(a: Float[Array, "3"], b: Float[Array, "3"]) -> Float[Array, ""]:
    return rotation_angle_deg(*map(layers.rotation_matrix, (a, b)))


@functools.partial(jax.jit, static_argnames=("camera", "size"))
def _landmarks(
    model: GridModel, theta: Float[AnyArray, " p"], camera: Camera, size: int
) -> Float[Array, "l 2"]:
    return layers.project_landmarks(model, layers.split(theta), camera, image_size=size)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="a folder")
    parser.add_argument("--seed", type=int, default=0, help="whose face")
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--landmarks", choices=("aflw21", "ibug68"), default="aflw21")
    args = parser.parse_args()
    whole = morphable.load_model("open")
    model = morphable.grid_model(whole, GRID, landmarks=args.landmarks)
    kappa = people.open_face_perspective()
    camera = morphable.default_camera(model, perspective=kappa)
    face = a_face(model, camera, seed=args.seed, size=args.size)
    start = time.perf_counter()
    fit = fit_landmarks(
        model,
        face.landmarks[None],
        camera,
        image_size=args.size,
        noise_px=0.1,  # they are exact
    )
    found = np.asarray(fit.theta[0])
    seconds = time.perf_counter() - start
    error = float(_turn_error(jnp.asarray(found[:3]), jnp.asarray(face.theta[:3])))
    args.output.mkdir(parents=True, exist_ok=True)
    options = ExportOptions(photo_size=args.size, visibility="zbuffer", texture_scale=2)
    numbers = export(args.output, face.image, found, model, camera, options)
    pose = ", ".join(
        f"{name} {numbers['pose'][f'{name}_deg']:+.1f}"
        for name in ("yaw", "pitch", "roll")
    )
    print(
        f"{len(face.landmarks)} landmarks to {float(fit.error_px[0]):.2f} px, rotation "
        f"to {error:.2f} degrees in {seconds:.1f} s ({pose}); see {args.output}/"
    )


if __name__ == "__main__":
    main()
