"""SIDE and MAD by stage, beside the prior and rows that need no method."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from unsup3d_jax.data.batches import eval_batches
from unsup3d_jax.engine import scored
from unsup3d_jax.engine.log import say
from unsup3d_jax.engine.scored import Scored
from unsup3d_jax.evaluation import baselines, report, summary
from unsup3d_jax.evaluation import scores as scoring
from unsup3d_jax.evaluation.scores import ImageScores, Limits
from unsup3d_jax.formation.types import AnyArray, Truth
from unsup3d_jax.gan2shape.options import options_from_config, start_name
from unsup3d_jax.gan2shape.subjects import Subjects


def score(
    config: ConfigDict,
    workdir: Path,
    found: Subjects,
    record: Mapping[str, np.ndarray],
    step: int,
) -> str:
    """Scores every row of the record; writes `eval/<split>.json`.

    Args:
        record: of `run.read_record`.
        step: that it was reached at.

    Returns:
        The table, whose last row is the last stage; where no depth is true, a line.

    Raises:
        UserError: if the scores cannot be written.
    """
    dataset = found.dataset
    if dataset is None:
        return "photos: nothing true is known of them."
    static = options_from_config(config)
    fov, count = static.scene.fov_deg, len(found)
    batch, _ = next(iter(eval_batches(dataset, count)))

    def images_of(depth: Any, valid: Any, shared: Any = None) -> ImageScores:
        scores = scoring.score_depth(
            jnp.asarray(depth), jnp.asarray(valid), batch, Truth(), shared, fov_deg=fov
        )
        return jax.device_get(scores)

    last = images_of(record["depth"][-1], record["valid"][-1])
    usable: Bool[AnyArray, "n h w"] | None = last.usable
    rows = []
    if last.depth is not None:
        limits = Limits(count, count)
        for name in ("constant", "average"):
            rows.append(
                baselines.baseline_row(
                    name, dataset, static.scene, limits, shared=usable
                )
            )
        everywhere = np.ones(found.prior.shape, bool)
        rows.append(_row("prior as drawn", images_of(found.prior, everywhere, usable)))
        rows[-1]["description"] = "the convex depth that step 0 fits, in image space"
    first = start_name(config)
    for number, (depth, valid) in enumerate(
        zip(record["depth"][:-1], record["valid"][:-1], strict=True)
    ):
        name = f"stage {number}" if number else first
        rows.append(_row(name, images_of(depth, valid, usable)))
        rows[-1]["description"] = f"the networks' depth after {name}"
    row = _row(f"stage {len(record['depth']) - 1}", last)
    path = report.write_scores(
        workdir,
        row,
        scored.provenance(
            config,
            dataset,
            Scored(None, step),
            config.eval.split,
            conditions(config),
        ),
        baseline_rows=rows,
    )
    say(f"scores of {count} images of split {config.eval.split}: {path}")
    return report.format_table([*rows, row])


def conditions(config: ConfigDict) -> dict[str, Any]:
    """What of a config may change the scores of a finished run; see `engine.scored`."""
    return {"max_images": config.eval.max_images, "crop": list(config.data.crop)}


def _row(name: str, scores: ImageScores) -> dict[str, Any]:
    return summary.row_of(name, scores)
