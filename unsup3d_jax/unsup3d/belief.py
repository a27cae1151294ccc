"""How far what is made of a photo may be believed.

Networks answer whatever they are shown: a cup becomes a confident face. What betrays it
is how badly the answer explains the photo. So the same is measured on photos of the
validation split, of the kind that the model was trained on and never learnt from, and a
photo's place among them is its *doubt*: the share of them, in percent, that are
explained better. Above `LIMIT` there is a warning, which 5 % of those photos would get.

With the model that ships, which knows synthetic faces, 90 % of cats, 97 % of rendered
cars and all of noise get it, but all of real faces, too (60 each). The error of the
mirrored reconstruction adds nothing to that.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from unsup3d_jax.configuration import about_weights, record_beside
from unsup3d_jax.evaluation.scores import ImageScores
from unsup3d_jax.files import finite, write_atomically
from unsup3d_jax.formation.types import AnyArray, Reconstruction

NAME = "belief.json"  # in a workdir
LIMIT = 95.0  # percent
MOST_IMAGES = 1000  # of the validation split: more make nothing surer
# In the order of `factors.npz`; of `ImageScores`.
MEASURES = {
    "error": "recon_l1",
    "coverage": "valid_share",
}
_QUANTILES = 101  # 0, 1 ... 100 %: a place among them is a percentage


@dataclasses.dataclass(frozen=True)
class Usual:
    """What is usual for photos of the kind that a model knows.

    Attributes:
        step: that its parameters were trained to.
        images: that were measured.
        quantiles: of each of `MEASURES`, ascending.
        worst: quantiles of the greatest percentage among the measures of one photo.
    """

    step: int
    images: int
    quantiles: Mapping[str, tuple[float, ...]]
    worst: tuple[float, ...]

    @classmethod
    def of(cls, scores: ImageScores, step: int) -> "Usual":
        """Of the photos of a validation split."""
        found = {k: np.asarray(getattr(scores, v)) for k, v in MEASURES.items()}
        quantiles = {name: _quantiles(values) for name, values in found.items()}
        rows = _rows(found)
        worst = [max(_percentages(row, quantiles).values()) for row in rows]
        return cls(step, len(rows), quantiles, _quantiles(np.array(worst)))

    @classmethod
    def read(cls, stored: Any) -> "Usual | None":
        """Of what `as_json` gave; None if it is something else."""
        try:
            quantiles = {k: _numbers(stored["quantiles"][k]) for k in MEASURES}
            worst = _numbers(stored["worst"])
            return cls(int(stored["step"]), int(stored["images"]), quantiles, worst)
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return dataclasses.asdict(self)

    def doubt(self, measured: Mapping[str, float]) -> float:
        """Percent of the validation photos that are explained better."""
        percentages = _percentages(measured, self.quantiles)
        return min(100.0, _percent(max(percentages.values()), self.worst))

    def median(self, measure: str) -> float:
        """What is in the middle."""
        return self.quantiles[measure][_QUANTILES // 2]


def measure(
    reconstruction: Reconstruction, images: Float[AnyArray, "b h w 3"]
) -> list[dict[str, float]]:
    """The measures of every photo of a batch, on the host.

    Returns:
        "error": mean absolute difference of colours in [0, 1] where the reconstruction
        covers the photo; "coverage": the share of it that it covers. As
        `evaluate.score_images` has them.
    """
    warped = reconstruction.plain
    valid = np.asarray(warped.valid)
    difference = np.abs(np.asarray(warped.image) - images).mean(-1)
    total = np.where(valid, difference, 0.0).sum((1, 2))
    error = total / np.maximum(valid.sum((1, 2)), 1)
    return _rows({"error": error, "coverage": valid.mean((1, 2))})


def numbers(measured: Mapping[str, float], usual: Usual | None) -> dict[str, Any]:
    """For a photo's record: the measures, its doubt, and whether that is too much."""
    if usual is None:
        return {**measured, "doubt": None, "doubtful": None}
    doubt = usual.doubt(measured)
    more = {"usual_error": usual.median("error")}
    return {**measured, **more, "doubt": doubt, "doubtful": doubt > LIMIT}


def as_array(found: Mapping[str, Any]) -> Float[np.ndarray, "3"]:
    """For `factors.npz`: error, coverage, doubt in percent or NaN."""
    doubt = np.nan if found["doubt"] is None else found["doubt"]
    return np.array([*(found[k] for k in MEASURES), doubt], np.float32)


def save(workdir: Path, usual: Usual) -> None:
    """Leaves it beside the checkpoints that it is of.

    Raises:
        OSError: if it cannot be written.
    """
    text = json.dumps(finite(usual.as_json())) + "\n"
    write_atomically(workdir / NAME, text)


def find(place: Path, step: int) -> Usual | None:
    """What is known of the parameters of a workdir, a checkpoint in it, or a file.

    Args:
        step: of the parameters; what is known of others does not count.
    """
    if place.is_file():
        stored = (about_weights(place) or {}).get("belief")
    else:
        record = record_beside(place)
        try:
            stored = json.loads(((record or place).parent / NAME).read_text())
        except (OSError, ValueError, RecursionError):
            return None
    usual = Usual.read(stored)
    return usual if usual is not None and usual.step == step else None


def _rows(found: Mapping[str, Float[np.ndarray, " n"]]) -> list[dict[str, float]]:
    return [
        dict(zip(found, map(float, row), strict=True))
        for row in zip(*found.values(), strict=True)
    ]


def _quantiles(values: Float[np.ndarray, " n"]) -> tuple[float, ...]:
    levels = np.linspace(0.0, 1.0, _QUANTILES)
    return tuple(float(f"{x:.6g}") for x in np.quantile(values, levels))


def _numbers(values: Any) -> tuple[float, ...]:
    found = tuple(map(float, values))
    if len(found) != _QUANTILES or list(found) != sorted(found):
        raise ValueError
    return found


def _percentages(
    measured: Mapping[str, float], quantiles: Mapping[str, tuple[float, ...]]
) -> dict[str, float]:
    """How odd each measure is: of coverage, too little is."""
    found = {}
    for name in MEASURES:
        value, among = measured[name], quantiles[name]
        if name == "coverage":
            value, among = -value, tuple(-x for x in reversed(among))
        found[name] = _percent(value, among)
    return found


def _percent(value: float, among: tuple[float, ...]) -> float:
    """The share of what is less, in percent; 101 beyond all, where NaN is, too."""
    i = int(np.searchsorted(among, value, side="left"))
    if i == 0:
        return 0.0
    if i == len(among):
        return 101.0
    return i - 1 + (value - among[i - 1]) / (among[i] - among[i - 1])
