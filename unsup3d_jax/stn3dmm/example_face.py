"""A rendered open face for the example without a network, with what it is made from.

    python -m unsup3d_jax.stn3dmm.example_face [FILE.npz]

renders the one that ships, `example_face.npz`, of which nobody needs the renderer: a
face of the test split whose coefficients are 0 but for the first five of identity and
of expression, as many as the authors' release has.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from unsup3d_jax.data import array_files, tiles
from unsup3d_jax.data.open_face import appearance, generate, render
from unsup3d_jax.data.open_face import dataset as open_faces
from unsup3d_jax.data.open_face import model as open_face
from unsup3d_jax.data.open_face.model import Seeds
from unsup3d_jax.errors import UserError
from unsup3d_jax.files import replacing

PATH = Path(__file__).with_name("example_face.npz")
FEW = 5  # columns of identity, and of expression
NUM_IDENTITY = 70  # of the generator's 94
SIZE = 224  # pixels a side, as in Bas et al. (ICCVW 2017)
_SEED = 8  # whose face ships


class Pictured(NamedTuple):
    """A picture of an open face, and what it is made from; see `open_face.truth`.

    Attributes:
        image: (s, s, 3).
        coefficients: (94,) of the face generator.
        scale: () of the head.
        view: (6,) pitch, yaw, roll (radians), tx, ty, tz (metres).
    """

    image: UInt8[np.ndarray, "s s 3"]
    coefficients: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, ""]
    view: Float[np.ndarray, "6"]


def shipped() -> Pictured:
    """The face that ships.

    Raises:
        UserError: if its file is missing or damaged.
    """
    arrays = array_files.read(PATH)
    if arrays is None:
        raise UserError(f"{PATH}: missing or damaged; install the package again.")
    return Pictured(**arrays)


def rendered(seed: int, *, size: int = SIZE, few: bool = False) -> Pictured:
    """Renders somebody of the test split; takes half a minute, to compile.

    Args:
        seed: who.
        size: pixels a side.
        few: only the first FEW coefficients of each kind are not 0.

    Raises:
        ValueError: if a number is out of range.
    """

    def make(
        shape: open_face.FaceModel,
        mesh: render.Mesh,
        seeds: Seeds,
        options: generate.Options,
    ) -> dict[str, np.ndarray]:
        people = open_face.sample_people(shape, seeds, asymmetry=options.asymmetry)
        look = appearance.sample_appearance(
            shape, seeds.person, people.attributes, asymmetry=options.asymmetry
        )
        coefficients = people.coefficients.copy()
        if few:
            coefficients[:, FEW:NUM_IDENTITY] = 0.0
            coefficients[:, NUM_IDENTITY + FEW :] = 0.0
        pictures, where = render.render(
            mesh, seeds, coefficients, look, size=size, pose=options.pose
        )
        return {
            "image": tiles.to_bytes(pictures.image),
            "coefficients": coefficients,
            "scale": where.scale,
            "view": where.view,
        }

    seeds = open_face.of_one_number(open_faces.split_seeds("test", count=1, seed=seed))
    options = generate.Options(size, "mixed", asymmetry=1.0, perturb=False)
    (arrays,) = generate.by_chunks(seeds, options, make)
    return Pictured(**{name: array[0] for name, array in arrays.items()})


def main() -> None:
    """Writes the file; see above."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", default=PATH)
    args = parser.parse_args()
    arrays = rendered(_SEED, few=True)._asdict()
    with replacing(args.file) as file:
        # The stubs take any array for `allow_pickle`.
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    print(f"{args.file}: {args.file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
