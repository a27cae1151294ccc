"""The rows of unsup3d's tables: what each changes, and what the paper published.

Numbers of Wu et al., CVPR 2020, Tables 2-5, on their Basel Face Model images
(Table 5: 3DFAW), and of GAN2Shape (Pan et al., ICLR 2021), Table 1. Ours are on
other faces, so orders are comparable, not values. The table of recipes against
collapse is not the paper's.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Published:
    """Mean and spread over images; SIDE x 100, MAD in degrees."""

    side: float
    side_std: float | None
    mad: float
    mad_std: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        label: for people.
        kind: trained | supervised (trained on true depth), or the name of a
            baseline that needs no training (`evaluate.DESCRIPTIONS`).
        method: that is trained.
        changes: config keys that make the row, over the table's recipe.
        shares: more of them, counted in steps, as shares of train.steps; so that a
            schedule fits every scale.
        published: None where the paper has no such row.
        needs_encoder: the perceptual loss uses the self-supervised encoder.
    """

    label: str
    kind: str = "trained"
    method: str = "unsup3d"
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    published: Published | None = None
    needs_encoder: bool = False


@dataclasses.dataclass(frozen=True)
class Claim:
    """An order that the paper calls large: `better` has the smaller errors."""

    better: str
    worse: str


@dataclasses.dataclass(frozen=True)
class Near:
    """That a row should have about the errors of another: at most a share away."""

    row: str
    to: str
    share: float


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper, or one like it.

    Attributes:
        title: for people.
        rows: in the paper's order.
        method: whose keys its config has; there may be rows of others.
        changes: config keys that hold for all rows, over the scale's recipe; what the
            user sets wins over them.
        claims: see `Claim`.
        near: see `Near`.
        drops: pairs of rows, the second without a part of the first.
        keypoints: whether the measure is Table 5's, not SIDE and MAD.
        notes: shown under the table.
    """

    title: str
    rows: Mapping[str, Row]
    method: str = "unsup3d"
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    near: tuple[Near, ...] = ()
    drops: tuple[tuple[str, str], ...] = ()
    keypoints: bool = False
    notes: tuple[str, ...] = ()


NO_SYMMETRY = {
    "model.albedo_flip": False,
    "model.depth_flip": False,
    "loss.flip": 0.0,
    "loss.flip_start": 0,
}

_FULL = Published(0.793, 0.140, 16.51, 1.56)
_NO_CONFIDENCE = Published(0.829, 0.213, 16.39, 2.12)

_BASELINES = {
    "supervised": Row(
        "Supervised", "supervised", published=Published(0.410, 0.103, 10.78, 1.01)
    ),
    "constant": Row(
        "Const. null depth", "constant", published=Published(2.723, 0.371, 43.34, 2.25)
    ),
    "average_background": Row(
        "Average g.t. depth",
        "average_background",
        published=Published(1.990, 0.556, 23.26, 2.85),
    ),
    "average": Row("Average g.t. depth, on the object", "average"),
}

_ABLATIONS = {
    "full": Row("Ours full", published=_FULL),
    "no_albedo_flip": Row(
        "w/o albedo flip",
        changes={"model.albedo_flip": False},
        published=Published(2.916, 0.300, 39.04, 1.80),
    ),
    "no_depth_flip": Row(
        "w/o depth flip",
        changes={"model.depth_flip": False},
        published=Published(1.139, 0.244, 27.06, 2.33),
    ),
    "no_light": Row(
        "w/o light",
        changes={"model.shading": "map"},
        published=Published(2.406, 0.676, 41.64, 8.48),
    ),
    "no_perceptual": Row(
        "w/o perc. loss",
        changes={"loss.perceptual": 0.0},
        published=Published(0.931, 0.269, 17.90, 2.31),
    ),
    "self_supervised": Row(
        "w/ self-sup. perc. loss",
        published=Published(0.815, 0.145, 15.88, 1.57),
        needs_encoder=True,
    ),
    "no_confidence": Row(
        "w/o confidence",
        changes={"model.use_confidence": False},
        published=_NO_CONFIDENCE,
    ),
    "no_symmetry": Row(
        "w/o symmetry (GAN2Shape, Table 1)",
        changes=NO_SYMMETRY,
        published=Published(1.334, None, 33.79, None),
    ),
}

_ABLATION_CLAIMS = (
    Claim("full", "no_albedo_flip"),
    Claim("full", "no_depth_flip"),
    Claim("full", "no_light"),
)
# The quickstart recipe, where `small` comes from, has no perceptual loss.
_WITH_PERCEPTUAL = {"loss.perceptual": 1.0}

# How the paper starts: rough depth from the first step on, nothing held back.
_PAPER_START = {
    "depth.bump_height": 0.0,
    "depth.output_gain": 1.0,
    "train.depth_start": 0,
    "train.depth_full": 0,
    "train.lr_scale.depth": 1.0,
    "train.lr_scale.view": 1.0,
    "train.clip_norm": 0.0,
    "train.optimizer": "adam",
    "loss.flip": 0.5,
    "loss.light_prior": 0.0,
    "view.warmup_steps": 0,
}
_BUMP = {"depth.bump_height": 0.5, "depth.output_gain": 0.03}
_LATE_DEPTH = {"train.depth_start": 0.075, "train.depth_full": 0.2}
_CLIP_VIEW = {"train.clip_norm": 1.0, "train.lr_scale.view": 2.0}
_RECIPES = {
    "constant": Row("Const. null depth", "constant"),
    "average": Row("Average g.t. depth, on the object", "average"),
    "untrained_bump": Row("Bump, quiet network; untrained", "untrained", changes=_BUMP),
    "paper_start": Row("Paper's start"),
    "bump": Row("+ bump, quiet network: the default", changes=_BUMP),
    "late_depth": Row("+ late depth", shares=_LATE_DEPTH),
    "slow_depth": Row("+ slow depth", changes={"train.lr_scale.depth": 0.1}),
    "view_warmup": Row("+ view warm-up", shares={"view.warmup_steps": 0.2}),
    "light_prior": Row(
        "+ light prior",
        changes={"loss.light_prior": 0.1},
        shares={"loss.light_prior_steps": 0.5},
    ),
    "clip": Row("+ clipped gradients", changes={"train.clip_norm": 1.0}),
    "muon": Row("+ Muon", changes={"train.optimizer": "muon"}),
    "bump_clip_view": Row("Bump, clipped, fast view", changes=_BUMP | _CLIP_VIEW),
    "robust": Row(
        "Robust: bump, late depth, clipped, fast view",
        changes=_BUMP | _CLIP_VIEW,
        shares=_LATE_DEPTH,
    ),
}

TABLES: dict[str, Table] = {
    "table2": Table(
        "Table 2: comparison with baselines",
        _BASELINES | {"ours": Row("Ours (unsupervised)", published=_FULL)},
        claims=(
            Claim("supervised", "ours"),
            Claim("ours", "average_background"),
            Claim("ours", "constant"),
        ),
        notes=(
            "The paper's average depth is read as averaged with the background; on "
            "the object alone it is a much stronger baseline.",
        ),
    ),
    "table3": Table(
        "Table 3: ablation study",
        _ABLATIONS,
        changes=_WITH_PERCEPTUAL,
        claims=_ABLATION_CLAIMS,
        notes=(
            "w/o light: the predicted shading map is not mirrored, as light is not.",
        ),
    ),
    "table4": Table(
        "Table 4: asymmetric perturbation",
        {
            "plain_no_confidence": Row(
                "No perturb, no conf.",
                changes={"model.use_confidence": False},
                published=_NO_CONFIDENCE,
            ),
            "plain_confidence": Row("No perturb, conf.", published=_FULL),
            "perturb_no_confidence": Row(
                "Perturb, no conf.",
                changes={"model.use_confidence": False, "data.perturb": True},
                published=Published(2.141, 0.842, 26.61, 5.39),
            ),
            "perturb_confidence": Row(
                "Perturb, conf.",
                changes={"data.perturb": True},
                published=Published(0.878, 0.169, 17.14, 1.90),
            ),
        },
        claims=(Claim("perturb_confidence", "perturb_no_confidence"),),
        notes=("Perturbed rows are trained and scored on perturbed images.",),
    ),
    "table5": Table(
        "Table 5: depth at keypoints",
        {
            "constant": _BASELINES["constant"],
            "average": _BASELINES["average"],
            "supervised": _BASELINES["supervised"],
            "ours": Row("Ours (unsupervised)"),
        },
        keypoints=True,
        notes=(
            "An average depth map, the same for every image, scores well because it "
            "is read off at the true 2D keypoints, which follow the viewpoint: the "
            "row shows how much of the measure needs no knowledge of the face.",
            "The paper's figures are on 3DFAW (66 keypoints): ground truth 66, AIGN "
            "50.81, DepthNetGAN 58.68, MOFA 15.97, DepthNet 26.32 and 35.77, the "
            "paper's method 48.98, with CelebA pre-training 54.65. Those who have "
            "3DFAW run python -m unsup3d_jax.keypoints --layout=3dfaw.",
        ),
    ),
    "synface": Table(
        "Tables 2 and 3 on the authors' Basel Face Model images",
        _BASELINES | _ABLATIONS,
        changes=_WITH_PERCEPTUAL,
        claims=(
            Claim("supervised", "full"),
            Claim("full", "average_background"),
            Claim("full", "constant"),
            *_ABLATION_CLAIMS,
        ),
    ),
    "stability": Table(
        "Stability: recipes against collapse",
        _RECIPES,
        changes=_PAPER_START,
        notes=(
            "Each + adds one thing to the paper's start; all else, the learning rate "
            "among it, is that of the scale.",
            "A bump as initial depth scores well before any training: compare with "
            "its untrained row.",
        ),
    ),
}
