"""The gate: whether a generator is good enough for GAN2Shape, in numbers.

What GAN2Shape needs of a generator is that the same person can be had from other sides
and under other lights, by small steps in w. So the gate asks how much yaw and light
spread over samples, and how linear they are in w; and it asks what any generator is
asked: how far samples are from images, whether they are copies, and how well people it
has not seen are found again.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from unsup3d_jax.data.dataset import Dataset
from unsup3d_jax.data.load import Splits
from unsup3d_jax.nets.stylegan2 import GanOptions
from unsup3d_jax.stylegan2 import frechet, neighbours, panel, ruler

GATE = 0.8  # of the spread of data, and of R^2
GATED = ("yaw", "light_x")
_TRAINING = 10000  # images of the training set that are looked at
_HELD_OUT = 1000  # images of a split, and samples that are compared with them
_QUICK = 1024  # samples of an evaluation during training
_SEED = 17  # of the samples


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """What samples are compared with.

    Attributes:
        training, held_out: images.
        scale: `frechet.spread` of the training images.
        held_out_features: `frechet.features`.
        floor: distance of as many training images from the held-out ones.
        line: the ruler; None where nobody knows what images were made with, or where
            their background is not plain.
        line_r2: R^2 on held-out images.
        data_spread: standard deviation of readings of held-out images.
    """

    training: UInt8[np.ndarray, "m h w 3"]
    held_out: UInt8[np.ndarray, "n h w 3"]
    scale: Float[np.ndarray, " f"]
    held_out_features: Float[np.ndarray, "n f"]
    floor: float
    line: ruler.Linear | None
    line_r2: Float[np.ndarray, " k"]
    data_spread: Float[np.ndarray, " k"]


def judge_of(config: ConfigDict, splits: Splits, split: str = "val") -> Judge:
    """Of a config's training images and of those of another split."""
    training, held = splits("train"), splits(split)
    known = config.data.name == "open_faces" and config.data.background == "plain"
    first, second = (_taken(*x, known) for x in ((training, _TRAINING),
                                                 (held, _HELD_OUT)))  # fmt: skip
    images, others = first["image"], second["image"]
    own, their = frechet.features(images), frechet.features(others)
    scale = frechet.spread(own)
    line, line_r2, deviation = None, np.zeros(0), np.zeros(0)
    if known:
        line = ruler.fit(ruler.pixels(images), ruler.truth(first["view"],
                                                           first["light"]))  # fmt: skip
        readings = line(ruler.pixels(others))
        line_r2 = ruler.r2(readings, ruler.truth(second["view"], second["light"]))
        deviation = readings.std(0)
    return Judge(
        training=images,
        held_out=others,
        scale=scale,
        held_out_features=their,
        floor=frechet.distance(own[: len(their)], their, scale),
        line=line,
        line_r2=line_r2,
        data_spread=deviation,
    )


def _taken(dataset: Dataset, most: int, known: bool) -> dict[str, np.ndarray]:
    fields = ("image", "view", "light") if known else ("image",)
    return dataset.take(range(min(most, len(dataset))), fields)


def quick(
    generator: Any, judge: Judge, options: GanOptions, count: int = _QUICK
) -> dict[str, Any]:
    """The figures that need no more than samples.

    Args:
        generator: {"mapping", "synthesis"}.
        count: samples.

    Returns:
        {"frechet": {"samples", "real"}} and, where there is a ruler, {"spread": {name:
        over the data's}, "linear_r2": {name: of w}}.
    """
    w, images = _samples(generator, options, count)
    of_samples = frechet.features(images[: len(judge.held_out)])
    apart = frechet.distance(of_samples, judge.held_out_features, judge.scale)
    found: dict[str, Any] = {"frechet": {"samples": apart, "real": judge.floor}}
    if judge.line is not None:
        readings = judge.line(ruler.pixels(images))
        found["spread"] = _named(readings.std(0) / judge.data_spread)
        found["linear_r2"] = _named(ruler.linear_in(w, readings))
        found["ruler_r2"] = _named(judge.line_r2)
    return found


def validation(
    parts: Mapping[str, Any], judge: Judge, options: GanOptions
) -> dict[str, float]:
    """Numbers for the log of a run; "total" is the Frechet distance."""
    found = quick(parts["ema"], judge, options)
    return {
        "total": found["frechet"]["samples"],
        "total_of_real": found["frechet"]["real"],
        **{f"spread_{k}": v for k, v in found.get("spread", {}).items()},
        **{f"r2_{k}": v for k, v in found.get("linear_r2", {}).items()},
    }


def whole(
    parts: Mapping[str, Any], judge: Judge, options: GanOptions, *, count: int
) -> dict[str, Any]:
    """`quick`, whether samples are copies, and whether the gate is passed.

    Args:
        parts: "ema" is looked at.
        count: samples.
    """
    found = quick(parts["ema"], judge, options, count)
    _, images = _samples(parts["ema"], options, len(judge.held_out))
    found["nearest"] = neighbours.memory(
        neighbours.nearest(images, judge.training),
        neighbours.nearest(judge.held_out, judge.training),
    )
    found["samples"] = count
    found["passes"] = passes(found)
    return found


def passes(found: Mapping[str, Any]) -> bool | None:
    """Whether spread and linearity of yaw and of light from the side reach GATE.

    None where there is no ruler, so that nobody knows.
    """
    if "spread" not in found:
        return None
    least = min(found[kind][name] for kind in ("spread", "linear_r2") for name in GATED)
    return bool(least >= GATE)


def _samples(
    generator: Any, options: GanOptions, count: int
) -> tuple[Float[np.ndarray, "n s"], UInt8[np.ndarray, "n h w 3"]]:
    w = panel.map_all(generator, panel.fixed_latents(options, count, _SEED), options)
    images = panel.samples(generator, w, options, seed=_SEED)
    return w, np.floor(255.0 * images + 0.5).astype(np.uint8)


def _named(values: Float[np.ndarray, " k"]) -> dict[str, float]:
    return {name: float(v) for name, v in zip(ruler.NAMES, values, strict=True)}
