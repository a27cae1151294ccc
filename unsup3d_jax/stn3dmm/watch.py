"""The collapse watch: cheap statistics of a step, and warnings in words.

The image terms alone have a worthless minimum (`losses`): a face that shrinks, slides
out of the image or hides itself. The thresholds are rules of thumb; they ask a person
to look, and change the run only where config.train.rollbacks allows it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from unsup3d_jax.stn3dmm.layers import POSE_SIZE
from unsup3d_jax.stn3dmm.objective import Outputs

SMALL_SCALE = 0.5  # of the mean face's size at theta = 0
OUTSIDE_MOST = 0.2  # of the landmarks; a face turned to the side loses none
SEEN_LEAST = 0.3  # of the grid; from the side about half of it is seen
TURN_SPREAD_DEG = 1.0  # photo collections have a yaw spread of 15 to 30 degrees
PATIENCE = 5  # lines of the log, as every face is the mean face at first
CARICATURE = 2.5  # root mean square of the coefficients, which are about 1


def moments(outputs: Outputs, image_size: int) -> dict[str, Float[Array, "..."]]:
    """Sums over this device's images; sum them over devices, then `statistics`."""
    theta, points = outputs.theta, outputs.landmarks
    turn, alpha = theta[:, :3], theta[:, POSE_SIZE:]
    outside = jnp.any((points < 0) | (points > image_size - 1), axis=-1)
    result = {
        "count": jnp.asarray(len(theta), jnp.float32),
        "log_scale": jnp.sum(theta[:, 5]),
        "turn": jnp.sum(turn, axis=0),
        "turn2": jnp.sum(jnp.square(turn), axis=0),
        "alpha2": jnp.sum(jnp.mean(jnp.square(alpha), axis=1)),
        "outside": jnp.sum(jnp.mean(outside, axis=1)),
    }
    if outputs.seen is not None:
        result["seen"] = jnp.sum(outputs.seen)
    return result


def statistics(moments: Mapping[str, Float[Array, "..."]]) -> dict[str, Array]:
    """What the log shows, from moments summed over all devices.

    Returns:
        Over the whole batch: `face_scale` (geometric mean, 1 is the mean face at theta
        = 0), `turn_std_{x,y,z}_deg` (over images), `alpha_rms` (standard deviations),
        `outside_share` (of the landmarks), `seen_share` (of the grid, where faces are
        flattened).
    """
    n = moments["count"]
    variance = moments["turn2"] / n - jnp.square(moments["turn"] / n)
    spread = jnp.degrees(jnp.sqrt(jnp.maximum(variance, 0.0)))
    result = {
        "face_scale": jnp.exp(moments["log_scale"] / n),
        "alpha_rms": jnp.sqrt(moments["alpha2"] / n),
        "outside_share": moments["outside"] / n,
        **{f"turn_std_{axis}_deg": spread[i] for i, axis in enumerate("xyz")},
    }
    if "seen" in moments:
        result["seen_share"] = moments["seen"] / n
    return result


def warnings(line: Mapping[str, Any], history: Sequence[Mapping]) -> list[str]:
    """Says in words what looks like a collapse.

    Args:
        line: one training line of the log.
        history: earlier lines, oldest first.

    Returns:
        One sentence for each warning; a statistic that is missing raises none.
    """
    found = []

    def value(name: str) -> float:
        return line.get(name, math.nan)

    if value("face_scale") < SMALL_SCALE:
        found.append(
            f"shrinking face: it has {value('face_scale'):.2g} of the mean face's size."
        )
    if value("outside_share") > OUTSIDE_MOST:
        found.append(
            f"lost face: {value('outside_share'):.0%} of the landmarks lie outside of "
            "the image."
        )
    if value("seen_share") < SEEN_LEAST:
        found.append(
            f"hidden face: {value('seen_share'):.0%} of its surface is turned to the "
            "camera."
        )
    if value("alpha_rms") > CARICATURE:
        found.append(
            f"caricature: coefficients are {value('alpha_rms'):.2g} standard "
            "deviations; a larger loss.prior keeps them near people."
        )
    spreads = [value(f"turn_std_{axis}_deg") for axis in "xyz"]
    if len(history) >= PATIENCE and all(spread < TURN_SPREAD_DEG for spread in spreads):
        found.append(
            "pose collapse: rotations spread by less than "
            f"{TURN_SPREAD_DEG:g} degree over the batch."
        )
    return found
