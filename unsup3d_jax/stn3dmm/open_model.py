"""The morphable model that ships: the face disc of the open face model.

    python -m unsup3d_jax.stn3dmm.open_model

writes `open_model.npz`: which vertices of `data/open_face/open_face.npz` lie on the
disc, its triangles, its UV layout, and how much people differ. Shapes are not stored
twice. The file is committed; using the model needs only both files. Lengths in metres.
"""

import argparse
import functools
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from unsup3d_jax.data import array_files
from unsup3d_jax.data.landmark_files import AFLW_FLIP
from unsup3d_jax.data.open_face import model as open_face
from unsup3d_jax.stn3dmm import coefficients as mirrored
from unsup3d_jax.stn3dmm import embedding, surface
from unsup3d_jax.stn3dmm.types import LandmarkSet, MorphableModel

PATH = Path(__file__).with_name("open_model.npz")
NUM_PEOPLE = 10_000  # whose deviations are taken
NUM_PCA = 40  # 97 % of the variance
Columns = Literal["raw", "pca40"]

# iBUG-68 landmarks that AFLW's 21 are made of, half of each; -1, -2: the middle of
# the eye on the left and right of the picture. In the order of Bas et al.: brows,
# eyes, ear, nose, ear, mouth, chin.
_AFLW_OF_IBUG = (
    *((17, 17), (19, 19), (21, 21), (22, 22), (24, 24), (26, 26)),
    *((36, 36), (-1, -1), (39, 39), (42, 42), (-2, -2), (45, 45)),
    *((0, 0), (31, 31), (30, 30), (35, 35), (16, 16)),
    *((48, 48), (62, 66), (54, 54), (8, 8)),
)


@functools.cache
def open_model(columns: Columns = "raw") -> MorphableModel:
    """The model of 2,188 vertices; its coefficients have a mean square of about one.

    Args:
        columns: "raw" are the 70 identity and 24 expression columns of the open faces,
            about the neutral mean; "pca40" are 40 principal components of both
            together, all as identity, about the mean of sampled people.
    """
    head, stored = open_face.load_model(), _stored()
    ids = stored["ids"]
    new_id = _numbers_on_disc(head, ids)
    mirror = new_id[head.mirror[ids]]
    mean = head.mean[ids]
    raw = np.concatenate([head.identity, head.expression])[:, ids]
    if columns == "raw":
        basis = raw * stored["deviations"][:, None, None]
        first = len(head.identity)
    else:
        flat = raw.reshape(len(raw), -1)
        mean = mean + (stored["pca_mean"] @ flat).reshape(mean.shape)
        # What the expressions' mirror leaves, 0.02 mm, is taken out.
        mean = 0.5 * (mean + mean[mirror] * np.array([-1, 1, 1], np.float32))
        basis = (stored["pca"] @ flat).reshape(-1, *mean.shape)
        first = len(basis)
    return MorphableModel(
        mean=mean,
        identity=basis[:first],
        expression=basis[first:],
        faces=stored["faces"].astype(np.int32),
        landmarks=_landmarks(new_id[head.landmarks], new_id[stored["eyes"]]),
        mirror=mirror,
        uv=stored["uv"],
        unit=1.0,
        name="open" if columns == "raw" else f"open-{columns}",
        licence="CC0 1.0",
    )


def alpha_of(
    coefficients: Float[np.ndarray, "b 94"],
    *,
    columns: Columns = "raw",
    asymmetry: float = 1.0,
) -> Float32[np.ndarray, "b d"]:
    """The model's alpha of open faces, from the coefficients of their generator.

    Exact for "raw" and an asymmetry of 1; for another the mirror image of an
    expression is taken from the span of the 24 (off by 0.05 mm at most); for "pca40"
    the projection onto the components.

    Args:
        coefficients: of `open_face.model.Person`.
        asymmetry: with which the faces were made: `open_face.model.basis`.
    """
    stored = _stored()
    full = np.asarray(coefficients, np.float64)
    if asymmetry != 1.0:
        full = full.copy()
        mirror = _expression_mirror().astype(np.float64)
        same, other = (1.0 + asymmetry) / 2.0, (1.0 - asymmetry) / 2.0
        full[:, -len(mirror) :] = full[:, -len(mirror) :] @ (
            same * np.eye(len(mirror)) + other * mirror.T
        )
    if columns == "raw":
        return (full / stored["deviations"]).astype(np.float32)
    return ((full - stored["pca_mean"]) @ stored["pca_dual"].T).astype(np.float32)


def head_vertices() -> Int[np.ndarray, " n"]:
    """Which vertices of the open face's whole head the model's are."""
    return _stored()["ids"].astype(np.int64)


def _numbers_on_disc(
    head: open_face.FaceModel, ids: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " v"]:
    """Of each vertex of the head its number among `ids`; -1 for the others."""
    new_id = np.full(len(head.mean), -1, np.int32)
    new_id[ids] = np.arange(len(ids))
    return new_id


@functools.cache
def _expression_mirror() -> Float32[np.ndarray, "e e"]:
    """Of the coefficients, not of alpha."""
    head, ids = open_face.load_model(), _stored()["ids"]
    new_id = _numbers_on_disc(head, ids)
    found = mirrored.mirror_of_columns(
        head.expression[:, ids], new_id[head.mirror[ids]]
    )
    if found is None:
        raise ValueError("the open expressions have no mirror.")
    return found


@functools.cache
def _stored() -> dict[str, np.ndarray]:
    with np.load(PATH, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _landmarks(
    ibug: Int[np.ndarray, " l"], eyes: Int[np.ndarray, " e"]
) -> dict[str, LandmarkSet]:
    pairs = np.array(_AFLW_OF_IBUG)
    ids = np.where(pairs < 0, eyes[-1 - np.minimum(pairs, -1)], ibug[pairs.clip(0)])
    return {
        "ibug68": LandmarkSet(
            ids=ibug[:, None].astype(np.int32),
            weights=np.ones((len(ibug), 1), np.float32),
            flip=np.array(open_face.LANDMARK_FLIP, np.int32),
        ),
        "aflw21": LandmarkSet(
            ids=ids.astype(np.int32),
            weights=np.full(ids.shape, 0.5, np.float32),
            flip=np.array(AFLW_FLIP, np.int32),
        ),
    }


# ---- how the file is made -----------------------------------------------------------


def build() -> dict[str, np.ndarray]:
    """Everything in open_model.npz, from the open face model alone.

    Returns:
        name -> array: "ids" (n,) vertices of the head, "faces" (f, 3) of the disc's
        own numbers, "uv" (n, 2), "eyes" (2,) vertices of the head in the middle of
        the eyes on the left and right of the picture, "deviations" (94,) root mean
        squares of the coefficients; of the principal components "pca_mean" (94,),
        "pca" (40, 94) coefficients of a unit of each, "pca_dual" (40, 94) which reads
        them off coefficients.

    Raises:
        ValueError: if the disc is not the one this is written for.
    """
    head = open_face.load_model()
    faces = head.faces[surface.disc(head.faces, _face_part(head))]
    ids = np.unique(faces)
    if (len(ids), len(faces)) != (2188, 4286):
        raise ValueError(f"the disc has {len(ids)} vertices, {len(faces)} triangles.")
    new_id = _numbers_on_disc(head, ids)
    mirror = new_id[head.mirror[ids]]
    if (mirror < 0).any() or (new_id[head.landmarks] < 0).any():
        raise ValueError("the disc lacks mirrored vertices or landmarks.")
    uv, _ = embedding.embed(head.mean[ids], new_id[faces], mirror)

    people = open_face.sample_people(
        head, open_face.of_one_number(np.arange(NUM_PEOPLE)), asymmetry=1.0
    )
    drawn = people.coefficients.astype(np.float64)
    raw = np.concatenate([head.identity, head.expression])[:, ids]
    components = _components(raw.astype(np.float64), drawn, mirror)
    return {
        "ids": ids.astype(np.int16),
        "faces": new_id[faces].astype(np.int16),
        "uv": uv,
        "eyes": _eye_centres(head).astype(np.int16),
        "deviations": np.sqrt((drawn**2).mean(0)).astype(np.float32),
        **{name: a.astype(np.float32) for name, a in components.items()},
    }


def _face_part(head: open_face.FaceModel) -> np.ndarray:
    """Triangles (f,) from the hairline to below the chin, without ears."""
    x, y, z = head.rest[head.faces].mean(1).T  # decimetres, y from the ground
    ears = head.masks[head.faces, 2].max(1)
    front = np.abs(np.arctan2(x, z - 0.45)) < np.radians(79.0)
    part = front & (y > 6.14) & (y < 8.12) & (z > 0.5) & (ears < 0.15)
    return part & ~((y < 6.3) & (z < 1.0))


def _eye_centres(head: open_face.FaceModel) -> np.ndarray:
    """Vertices (2,) half-way between the lids and between the corners of each eye."""
    found = []
    for label, corners in ((2, (36, 39)), (1, (42, 45))):
        eye = np.unique(head.faces[head.labels == label])
        between = eye[(head.membrane[eye] == 0.5) & (head.lash[eye] == 0.0)]
        x = head.rest[head.landmarks[list(corners)], 0].mean()
        found.append(between[np.abs(head.rest[between, 0] - x).argmin()])
    if head.mirror[found[0]] != found[1]:
        raise ValueError("the middles of the eyes are not mirror images.")
    return np.array(found)


def _components(
    raw: Float64[np.ndarray, "c n 3"],
    drawn: Float64[np.ndarray, "b c"],
    mirror: Int[np.ndarray, " n"],
) -> dict[str, np.ndarray]:
    """Principal components of the drawn people together with their mirror images.

    With those every component is symmetric or antisymmetric.
    """
    flip = mirrored.mirror_of_columns(raw, mirror)
    if flip is None:
        raise ValueError("the open faces have no mirror.")
    both = np.concatenate([drawn, drawn @ flip.T.astype(np.float64)])
    mean = both.mean(0)
    flat = raw.reshape(len(raw), -1)
    # Lengths are those of the surface, not of coefficients: with gram = L L', the
    # coefficients' covariance C has the shapes' eigenvectors as those of L' C L.
    lower = np.linalg.cholesky(flat @ flat.T)
    shares, vectors = np.linalg.eigh(lower.T @ np.cov(both.T, bias=True) @ lower)
    order = np.argsort(shares)[::-1][:NUM_PCA]
    deviation, vectors = np.sqrt(shares[order]), vectors[:, order]
    vectors *= np.sign(vectors[np.abs(vectors).argmax(0), np.arange(NUM_PCA)])
    print(f"{NUM_PCA} components hold {shares[order].sum() / shares.sum():.2%}")
    return {
        "pca_mean": mean,
        "pca": (np.linalg.solve(lower.T, vectors) * deviation).T,
        "pca_dual": (lower @ vectors / deviation).T,
    }


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=PATH)
    args = parser.parse_args()
    arrays = build()
    array_files.write(args.output, arrays)
    size = args.output.stat().st_size
    print(f"{args.output}: {len(arrays['ids']):,} vertices, {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
