"""The shipped head model, and random draws of who a face is and what it does.

Every random number comes from numpy's Philox, keyed by (seed, topic): the same
seed is the same face on every platform, and a new draw in one topic leaves the
other topics alone. Arrays here are numpy, with a leading axis n of faces.
"""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MODEL_PATH = Path(__file__).with_name("open_face.npz")
NUM_SYM = 60  # identity components that are mirror-symmetric; the rest negate

# iBUG-68: the landmark that each one becomes in a mirror.
LANDMARK_FLIP = (
    *range(16, -1, -1),
    *range(26, 16, -1),
    *(27, 28, 29, 30, 35, 34, 33, 32, 31),
    *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),
    *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55),
    *(64, 63, 62, 61, 60, 67, 66, 65),
)

# unit without its side: (largest weight, probability)
EXPRESSIONS = {
    "eye-closure": (0.35, 0.35),
    "eye-opened-up": (0.8, 0.25),
    "eye-slit": (0.8, 0.3),
    "eyebrows-down": (0.5, 0.18),
    "eyebrows-extern-up": (0.7, 0.2),
    "eyebrows-inner-up": (0.8, 0.2),
    "eyebrows-up": (0.8, 0.25),
    "mouth-open": (0.4, 0.2),
    "mouth-corner-puller": (0.7, 0.35),
    "mouth-depression": (0.6, 0.15),
    "mouth-depression-retraction": (0.5, 0.1),
    "mouth-elevation": (0.7, 0.15),
    "mouth-eversion": (0.5, 0.1),
    "mouth-compression": (0.6, 0.1),
    "mouth-parling": (0.7, 0.15),
    "mouth-part-later": (0.3, 0.07),
    "mouth-protusion": (0.5, 0.1),
    "mouth-pursing": (0.4, 0.1),
    "mouth-retraction": (0.6, 0.15),
    "mouth-upward-retraction": (0.5, 0.12),
    "neck-platysma": (0.5, 0.05),
    "nose-compression": (0.8, 0.1),
    "nose-depression": (0.6, 0.1),
    "nose-dilatation": (0.9, 0.15),
    "nose-elevation": (0.6, 0.15),
}


class Draws:
    """A row of numbers for each seed, handed out column by column.

    Args:
        seeds: (n,) int64, non-negative.
        topic: separates independent streams of one seed.
        capacity: how many uniform numbers a row holds.
    """

    def __init__(self, seeds: np.ndarray, topic: str, capacity: int):
        stream = int.from_bytes(topic.encode()[:8].ljust(8), "little")
        self._rows = np.stack(
            [
                np.random.Generator(np.random.Philox(key=[int(s), stream])).random(
                    capacity
                )
                for s in seeds
            ]
        )
        self._used = 0

    def unit(self, size: int | None = None) -> np.ndarray:
        """Uniform on [0, 1): (n,), or (n, size)."""
        start, self._used = self._used, self._used + (size or 1)
        if self._used > self._rows.shape[1]:
            raise ValueError(f"drew {self._used} numbers of {self._rows.shape[1]}.")
        columns = self._rows[:, start : self._used]
        return columns[:, 0] if size is None else columns

    def uniform(self, low, high, size: int | None = None) -> np.ndarray:
        return low + (np.asarray(high) - low) * self.unit(size)

    def normal(self, mean, std, size: int | None = None) -> np.ndarray:
        """Box-Muller; 1 - u keeps the logarithm finite."""
        radius = np.sqrt(-2.0 * np.log(1.0 - self.unit(size)))
        return mean + std * radius * np.cos(2 * np.pi * self.unit(size))

    def chance(self, probability) -> np.ndarray:
        """True with the given probability: (n,) bool."""
        return self.unit() < probability

    def choice(self, count: int) -> np.ndarray:
        return np.minimum((self.unit() * count).astype(int), count - 1)


@dataclasses.dataclass(frozen=True)
class FaceModel:
    """A linear head: vertices = mean + identity . a + expression . b.

    Frame: metres, x to the subject's left, y up, z out of the face, origin where
    the head turns. The last two of v + 2 points are the centres of the eyes.
    """

    rest: np.ndarray  # (v, 3) decimetres: the coordinates of the albedo
    mean: np.ndarray  # (v + 2, 3)
    identity: np.ndarray  # (70, v + 2, 3), per standard deviation
    expression: np.ndarray  # (24, v + 2, 3)
    unit_map: np.ndarray  # (34, 24) unit weights -> expression coefficients
    unit_names: tuple[str, ...]
    attribute_map: np.ndarray  # (71, 8) identity and 1 -> Attributes
    faces: np.ndarray  # (f, 3) int32
    labels: np.ndarray  # (f,) 0 skin, 1 left eye, 2 right eye, 3 inside the mouth
    mirror: np.ndarray  # (v + 2,) index of the mirrored point
    landmarks: np.ndarray  # (68,) iBUG order
    uv: np.ndarray  # (v, 2)
    masks: np.ndarray  # (v, 4) lips, eyelids, ears, face
    occlusion: np.ndarray  # (v,) share of the sky that is seen
    lash: np.ndarray  # (v,) 1 on the upper rim of the eye, 0.45 on the lower
    membrane: np.ndarray  # (v,) 0 at the upper lid or lip, 1 at the lower
    num_core: int  # vertices before the stub of the neck


@functools.cache
def load_model() -> FaceModel:
    with np.load(MODEL_PATH) as stored:
        arrays = {k: stored[k] for k in stored.files}
    integer = {k: arrays[k].astype(np.int32) for k in ("faces", "mirror", "landmarks")}
    scalar = {"num_core": int(arrays["num_core"])}
    names = {"unit_names": tuple(str(n) for n in arrays["unit_names"])}
    labels = {"labels": arrays["labels"].astype(np.int32)}
    done: dict[str, Any] = {**integer, **scalar, **names, **labels}
    rest = {k: v.astype(np.float32) for k, v in arrays.items() if k not in done}
    return FaceModel(**rest, **done)


def basis(model: FaceModel, *, asymmetry: float) -> np.ndarray:
    """Identity and expression components (94, v + 2, 3).

    The antisymmetric part of the expression scales with `asymmetry`; at 0 every
    component but the antisymmetric identities is mirror-symmetric exactly.
    """
    flipped = model.expression[:, model.mirror] * np.asarray([-1, 1, 1], np.float32)
    even, odd = model.expression + flipped, model.expression - flipped
    return np.concatenate([model.identity, (even + np.float32(asymmetry) * odd) / 2])


@dataclasses.dataclass(frozen=True)
class Attributes:
    """What the shape says about a person; names are the source's targets."""

    male: np.ndarray  # (n,) 0..1, as all
    old: np.ndarray
    child: np.ndarray
    african: np.ndarray
    asian: np.ndarray
    caucasian: np.ndarray


@dataclasses.dataclass(frozen=True)
class Person:
    coefficients: np.ndarray  # (n, 94) float32: identity 70, expression 24
    attributes: Attributes


class Seeds(NamedTuple):
    """What each of n pictures draws its parts from; (n,) int64, non-negative.

    Equal numbers give equal parts: with one `person` and many `pose`s somebody is
    seen from many sides.
    """

    person: np.ndarray  # shape of the head, skin, hair, eyes and their gaze
    expression: np.ndarray
    pose: np.ndarray
    light: np.ndarray
    backdrop: np.ndarray
    patch: np.ndarray  # the coloured one, where asked for


def of_one_number(seeds: np.ndarray) -> Seeds:
    """All of a picture from one number, as in the data sets of single pictures."""
    return Seeds(*[np.asarray(seeds, np.int64)] * len(Seeds._fields))


def sample_people(model: FaceModel, seeds: Seeds, *, asymmetry: float) -> Person:
    """Draws who the people are (`seeds.person`) and what their faces do."""
    draws = Draws(seeds.person, "shape", 140)
    sym = (0.9 * draws.normal(0, 1, NUM_SYM)).clip(-2.5, 2.5)
    anti = 0.8 * draws.normal(0, 1, len(model.identity) - NUM_SYM)
    identity = np.concatenate([sym, asymmetry * anti], axis=1)

    # Attributes must not depend on asymmetry, so they are read off `sym` alone.
    bare = np.concatenate([sym, 0 * anti, np.ones((len(sym), 1))], axis=1)
    predicted = (bare @ model.attribute_map).clip(0.0, 1.0)
    ancestry = predicted[:, 3:6] / predicted[:, 3:6].sum(1, keepdims=True).clip(1e-3)

    units = sample_expressions(model, seeds.expression, asymmetry=asymmetry)
    coefficients = np.concatenate([identity, units @ model.unit_map], axis=1)
    return Person(
        coefficients=coefficients.astype(np.float32),
        attributes=Attributes(*predicted[:, :3].T, *ancestry.T),
    )


def sample_expressions(
    model: FaceModel, seeds: np.ndarray, *, asymmetry: float
) -> np.ndarray:
    """Weights (n, 34) of the expression units; a third of the faces are neutral."""
    draws = Draws(seeds, "express", 200)
    shown = ~draws.chance(0.35)
    weights = np.zeros((len(seeds), len(model.unit_names)))
    plain = [re.sub("-(left|right)", "", u) for u in model.unit_names]
    for name, (largest, probability) in EXPRESSIONS.items():
        active = shown & draws.chance(probability)
        shared = draws.uniform(0.0, largest)
        noise = draws.normal(0.0, 0.3 if name.startswith("eyebrows") else 0.15, 2)
        columns = [i for i, unit in enumerate(plain) if unit == name]
        for side, column in enumerate(columns):
            factor = 1.0 + asymmetry * noise[:, side] if len(columns) == 2 else 1.0
            weights[:, column] = active * (shared * factor).clip(0.0)
    return weights
