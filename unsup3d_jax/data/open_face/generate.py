"""Faces from their numbers, a chunk at a time, in the form in which they are kept."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np

from unsup3d_jax.data.open_face import appearance, model, render
from unsup3d_jax.data.open_face.appearance import Numbers
from unsup3d_jax.data.open_face.model import Seeds
from unsup3d_jax.data.open_face.scene import POSES

NORMAL_STEPS = 127  # normals are kept as int8: 0.3 degrees


@dataclasses.dataclass(frozen=True)
class Options:
    """What all pictures of a set have in common; see `dataset.load`.

    Raises:
        ValueError: naming the one that is out of range.
    """

    image_size: int
    pose: str
    asymmetry: float
    perturb: bool

    def __post_init__(self):
        if self.image_size < 8:
            raise ValueError(f"image_size must be at least 8, got {self.image_size}.")
        if not 0.0 <= self.asymmetry <= 2.0:
            raise ValueError(f"asymmetry must lie in [0, 2], got {self.asymmetry}.")
        if self.pose not in POSES:
            raise ValueError(f"pose must be one of {POSES}, got {self.pose!r}.")


def chunks(seeds: Seeds, options: Options) -> Iterator[dict[str, np.ndarray]]:
    """Makes the faces of the given numbers, `render.chunk_size` at a time.

    On a CPU, whatever else there is: a data set does not depend on what is trained on
    it, and an accelerator rounds otherwise.

    Returns:
        Of each chunk the arrays of `dataset`, with normals as int8 and without what
        follows from depth; a face is the same in whatever chunk it is made.
    """
    return by_chunks(seeds, options, _chunk)


T = TypeVar("T")
# (model, its mesh, numbers of at most `render.chunk_size` faces, options) -> a chunk.
MakeChunk = Callable[[model.FaceModel, render.Mesh, Seeds, Options], T]


def by_chunks(seeds: Seeds, options: Options, make: MakeChunk[T]) -> Iterator[T]:
    """What `make` gives for the faces, `render.chunk_size` at a time, on a CPU."""
    shape = model.load_model()
    with on_cpu():
        basis = model.basis(shape, asymmetry=options.asymmetry)
        mesh = render.make_mesh(shape, basis)
    step = render.chunk_size(options.image_size)
    for start in range(0, len(seeds.person), step):
        chunk = Seeds(*(numbers[start : start + step] for numbers in seeds))
        with on_cpu():
            yield make(shape, mesh, chunk, options)


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Computes on a CPU in the body, if there is one."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        device = None
    with jax.default_device(device):
        yield


def _chunk(
    shape: model.FaceModel, mesh: render.Mesh, seeds: Seeds, options: Options
) -> dict[str, np.ndarray]:
    people = model.sample_people(shape, seeds, asymmetry=options.asymmetry)
    look = appearance.sample_appearance(
        shape, seeds.person, people.attributes, asymmetry=options.asymmetry
    )
    pictures, where = render.render(
        mesh,
        seeds,
        people.coefficients,
        look,
        size=options.image_size,
        pose=options.pose,
    )
    arrays = {
        "image": _byte(pictures.image),
        "depth": pictures.depth,
        "normal": np.rint(pictures.normal * NORMAL_STEPS).astype(np.int8),
        "albedo": _byte(pictures.albedo),
        "light": where.light,
        "view": where.view,
        "keypoints": pictures.keypoints,
        "keypoints_visible": pictures.keypoints_visible,
        "seed": seeds.person,
    }
    if options.perturb:
        arrays["image"], arrays["perturb"] = lay_patches(arrays["image"], seeds.patch)
    return arrays


def _byte(color: Numbers) -> np.ndarray:
    return np.floor(255 * color + 0.5).astype(np.uint8)


def lay_patches(images: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One patch an image: random colour and place, 20-50 % of the size, alpha 0.5-1.

    The asymmetric perturbation of Wu et al., Sec. 4. It changes the image alone.

    Args:
        images: uint8 (n, h, w, 3).
        seeds: (n,).

    Returns:
        The images, and where the patches are: bool (n, h, w).
    """
    n, h, w, _ = images.shape
    draws = model.Draws(seeds, "patch", 8)
    size = draws.uniform(0.2, 0.5, 2) * [h, w]
    corner = draws.unit(2) * ([h, w] - size)
    alpha = draws.uniform(0.5, 1.0)[:, None, None, None]
    color = 255 * draws.unit(3)[:, None, None, :]
    first, last = np.rint(corner), np.rint(corner + size)
    row, column = np.arange(h), np.arange(w)
    rows = (row >= first[:, :1]) & (row < last[:, :1])
    columns = (column >= first[:, 1:]) & (column < last[:, 1:])
    covered = rows[:, :, None] & columns[:, None, :]
    mixed = np.rint((1 - alpha) * images + alpha * color)
    images = np.where(covered[..., None], mixed, images).astype(np.uint8)
    return images, covered
