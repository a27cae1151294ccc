"""The collapse watch: cheap statistics of a step, and warnings in words.

`moments` and `statistics` run inside the train step; `warnings` is a pure
function of numbers that were logged. The thresholds are rules of thumb: they
ask a person to look at a picture, and change the run only where
config.train.rollbacks allows it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

FLAT_DEPTH_SHARE = 0.01  # relief of a healthy face: 0.05-0.3 of the depth range
VIEW_SPREAD_DEG = 1.0  # photo collections have a yaw spread of 15-30 degrees
CONFIDENCE_LOW = 1e-3  # sigma of an error in [-1, 1]: 0.1 grey levels of 255
CONFIDENCE_HIGH = 2.0  # the largest possible error: the image is ignored
COVERAGE_LOW = 0.3  # of the input's pixels that the reconstruction covers
GRADIENT_FACTOR = 50.0  # times the median of the recent past
HISTORY_LEAST = 5  # lines of the past needed to call a gradient exploded


# numpy makes scalars of its own of what has no axes.
AnyNumbers = Array | np.ndarray | np.float64


def _regions(h: int, w: int) -> tuple[Array, Array]:
    """Weights of the central half of the image and of a frame around it.

    The frame leaves out the outermost eighth, where backgrounds and the
    clamped border columns live. Each weight sums to 1 over the (h, w) image.
    """
    y = jnp.abs(jnp.arange(h) - (h - 1) / 2)[:, None] / (h / 2)
    x = jnp.abs(jnp.arange(w) - (w - 1) / 2)[None, :] / (w / 2)
    radius = jnp.maximum(y, x)
    centre = (radius < 0.375).astype(jnp.float32)
    frame = ((radius >= 0.5) & (radius < 0.75)).astype(jnp.float32)
    return centre / centre.sum(), frame / frame.sum()


def moments(outputs: Any) -> dict[str, Float[Array, "..."]]:
    """Sums over this device's images; sum them over devices, then `statistics`.

    Args:
        outputs: `model.Outputs` (factors and reconstruction).
    """
    factors = outputs.factors
    depth = factors.raw_depth  # before the border clamp, which is never flat
    b, h, w = depth.shape
    centre, frame = _regions(h, w)
    relief = jnp.sum(depth * (frame - centre), axis=(1, 2))
    rotation = factors.view[:, :3]
    result = {
        "count": jnp.asarray(b, jnp.float32),
        "depth_std": jnp.sum(jnp.std(depth, axis=(1, 2))),
        "depth_relief": jnp.sum(relief),
        "hollow_share": jnp.sum(relief < 0).astype(jnp.float32),
        "rotation": jnp.sum(rotation, axis=0),
        "rotation2": jnp.sum(jnp.square(rotation), axis=0),
        "light_ambient": jnp.sum(factors.light[:, 0]),
        "light_diffuse": jnp.sum(factors.light[:, 1]),
        "coverage": jnp.sum(outputs.reconstruction.plain.valid.mean((1, 2))),
    }
    if factors.conf_sigma is not None:
        log_sigma = jnp.log(factors.conf_sigma + 1e-7)  # epsilon of the losses
        result["log_conf_sigma"] = jnp.sum(log_sigma.mean((1, 2)))
    return result


def statistics(
    moments: Mapping[str, Float[AnyNumbers, "..."]],
) -> dict[str, Float[AnyNumbers, ""]]:
    """What the log shows, from moments summed over all devices.

    Args:
        moments: also of numpy, float64, where images are summed up on the host.

    Returns:
        Scalars over the whole batch: `depth_std` (within an image, scene
        units), `depth_relief` (frame minus centre, scene units; negative is
        hollow), `hollow_share` (of the images), `view_std_{x,y,z}_deg` (over
        images), mean `light_ambient` and `light_diffuse`, `coverage`,
        `conf_sigma` (geometric mean).
    """
    n = moments["count"]
    variance = moments["rotation2"] / n - jnp.square(moments["rotation"] / n)
    spread = jnp.degrees(jnp.sqrt(jnp.maximum(variance, 0.0)))
    names = (
        "depth_std",
        "depth_relief",
        "hollow_share",
        "light_ambient",
        "light_diffuse",
        "coverage",
    )
    result = {name: moments[name] / n for name in names}
    result |= {f"view_std_{a}_deg": spread[i] for i, a in enumerate("xyz")}
    if "log_conf_sigma" in moments:
        result["conf_sigma"] = jnp.exp(moments["log_conf_sigma"] / n)
    return result


def warnings(
    metrics: Mapping[str, float],
    history: Sequence[Mapping[str, float]] = (),
    *,
    depth_range: float,
    learns_view: bool = True,
) -> list[str]:
    """Says in words what looks like a collapse.

    Args:
        metrics: one training line of the log.
        history: earlier lines, oldest first; the gradient's yardstick.
        depth_range: largest minus smallest depth, scene units.
        learns_view: false where the viewpoint is given (oracle, supervised).

    Returns:
        One sentence for each warning; a statistic that is missing raises none.
    """
    found = []

    def value(name: str) -> float:
        return metrics.get(name, math.nan)

    if value("learning_rate_depth") == 0.0:
        pass  # frozen: its start says nothing about what is learnt
    elif value("depth_std") < FLAT_DEPTH_SHARE * depth_range:
        found.append(
            f"flat depth: it varies by {value('depth_std'):.2g} inside an image, "
            f"less than {FLAT_DEPTH_SHARE:.0%} of the depth range {depth_range:g}."
        )
    elif value("hollow_share") > 0.5:
        found.append(
            f"hollow faces: in {value('hollow_share'):.0%} of the images the centre "
            f"is farther than what surrounds it (relief {value('depth_relief'):.2g})."
        )
    spreads = [value(f"view_std_{a}_deg") for a in "xyz"]
    if learns_view and all(s < VIEW_SPREAD_DEG for s in spreads):
        found.append(
            "viewpoint collapse: rotations spread by less than "
            f"{VIEW_SPREAD_DEG:g} degree over the batch "
            f"(x {spreads[0]:.2g}, y {spreads[1]:.2g}, z {spreads[2]:.2g})."
        )
    sigma = value("conf_sigma")
    if sigma > CONFIDENCE_HIGH:
        found.append(
            f"saturated confidence: mean sigma {sigma:.2g} exceeds every possible "
            "error, so the image is ignored."
        )
    elif sigma < CONFIDENCE_LOW:
        found.append(f"saturated confidence: mean sigma {sigma:.2g} is close to 0.")
    if value("coverage") < COVERAGE_LOW:
        found.append(
            f"lost object: the reconstruction covers {value('coverage'):.0%} of the "
            "pixels."
        )
    norms = (line.get("grad_norm", math.nan) for line in history)
    past = sorted(norm for norm in norms if math.isfinite(norm))
    if len(past) >= HISTORY_LEAST:
        usual = past[len(past) // 2]
        if value("grad_norm") > GRADIENT_FACTOR * usual:
            found.append(
                f"gradient explosion: norm {value('grad_norm'):.2g} is more than "
                f"{GRADIENT_FACTOR:g} times the recent median {usual:.2g}."
            )
    return found
