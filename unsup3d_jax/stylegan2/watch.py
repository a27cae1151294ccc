"""Warnings about a generator's training that looks ill; rules of thumb."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

PATIENCE = 5  # lines of the log: every generator begins with one grey picture
ALIKE = 0.25  # spread of samples over that of images
SURE = 0.02  # the discriminator's loss, 2 ln 2 where it knows nothing


def warnings(line: Mapping[str, Any], history: Sequence[Mapping]) -> list[str]:
    """Says in words what looks like a collapse.

    Args:
        line: one training line of the log.
        history: earlier lines, oldest first.
    """
    if len(history) < PATIENCE:
        return []
    found = []
    spread, sure = line.get("sample_spread", math.nan), line.get("d", math.nan)
    if spread < ALIKE:
        found.append(
            f"mode collapse: samples differ {spread:.2g} times as much as images do."
        )
    if sure < SURE:
        found.append(
            f"lost game: the discriminator's loss is {sure:.2g}; a larger loss.r1 or "
            "augment.target holds it back."
        )
    return found
