"""What a config of this method asks for: the face model, and static options.

Numbers have no default here: `configs/stn3dmm/default.py` alone decides.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from unsup3d_jax.configs.stn3dmm import default
from unsup3d_jax.configuration import check_numbers, need
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.engine import settings
from unsup3d_jax.errors import refusing
from unsup3d_jax.stn3dmm import flattening, layers, localiser, morphable
from unsup3d_jax.stn3dmm.layers import POSE_SIZE, Camera
from unsup3d_jax.stn3dmm.localiser import LocaliserOptions
from unsup3d_jax.stn3dmm.morphable import GridModel, MorphableModel
from unsup3d_jax.stn3dmm.open_model import Columns

# Models whose people the open faces are, and which columns of theirs they have.
OPEN_MODELS: dict[str, Columns] = {"open": "raw", "open-pca40": "pca40"}
DATA_SETS = ("open_faces", "landmarks")
# Rows of the final table that need no training, and the one that does.
UNTRAINED = ("zero", "constant", "no_shape", "fit")
SUPERVISED = "supervised"


@dataclasses.dataclass(frozen=True, eq=False)
class Face:
    """The morphable model of a config.

    Attributes:
        name: as the config has it.
        model: all of it.
        grid: the columns that theta has, on the grid.
        camera: that looks at its mean face in the middle of the image.
        columns: of a theta vector with all of the model's coefficients, those that a
            theta of `grid` has.
    """

    name: str
    model: MorphableModel
    grid: GridModel
    camera: Camera
    columns: Int[np.ndarray, " p"]


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Section loss; which terms there are. Weights of 0 leave them out."""

    landmark: float
    huber: float | None
    prior: float
    symmetry: float
    multi_view: float
    contrast: int
    shape: float
    identity: float
    theta: float
    vertices: float
    outside: float
    scale: float
    visible: float

    @property
    def sees_images(self) -> bool:
        """Whether faces are flattened."""
        return self.symmetry > 0 or self.multi_view > 0


@dataclasses.dataclass(frozen=True)
class StnOptions:
    """Everything static that a training step needs; hashable."""

    image_size: int
    localiser: LocaliserOptions
    camera: Camera
    loss: LossOptions
    visibility: str
    shuffle_landmarks: bool
    release_losses: bool


@functools.lru_cache(maxsize=4)
def _face(
    model: str, size: int, landmarks: str, identity: int, expression: int
) -> tuple[MorphableModel, GridModel]:
    whole = morphable.load_model(model)
    grid = morphable.grid_model(
        whole,
        size,
        landmarks=landmarks,
        identity=identity or None,
        expression=expression or None,
    )
    return whole, grid


def load_face(config: ConfigDict) -> Face:
    """The morphable model and the camera that a config asks for.

    Raises:
        UserError: if there is no such model, or it is not usable.
    """
    face, camera = config.face, config.camera
    model = face.model
    if model not in OPEN_MODELS:
        model = str(Path(model).expanduser())
    with refusing():
        whole, grid = _face(
            model, face.grid, face.landmarks, face.identity, face.expression
        )
    count, expressions = len(whole.identity), len(whole.expression)
    columns = np.concatenate(
        [
            np.arange(POSE_SIZE + (face.identity or count)),
            POSE_SIZE + count + np.arange(face.expression or expressions),
        ]
    )
    return Face(
        name=face.model,
        model=whole,
        grid=grid,
        camera=morphable.default_camera(
            grid,
            fill=camera.fill,
            perspective=layers.perspective_of(camera.fov_deg),
        ),
        columns=columns,
    )


def options_from_config(config: ConfigDict, face: Face) -> StnOptions:
    """The static options of a checked config."""
    loss = config.loss
    return StnOptions(
        image_size=config.data.image_size,
        localiser=_network(config, len(face.columns) - POSE_SIZE),
        camera=face.camera,
        loss=LossOptions(
            landmark=loss.landmark,
            huber=loss.huber or None,
            prior=loss.prior,
            symmetry=loss.symmetry,
            multi_view=loss.multi_view,
            contrast=loss.contrast,
            shape=loss.shape,
            identity=loss.identity,
            theta=loss.theta,
            vertices=loss.vertices,
            outside=loss.outside,
            scale=loss.scale,
            visible=loss.visible,
        ),
        visibility=config.visibility.train,
        shuffle_landmarks=config.broken.landmarks,
        release_losses=config.compat.release_losses,
    )


def _network(config: ConfigDict, coefficients: int) -> LocaliserOptions:
    network = config.localiser
    return LocaliserOptions(
        kind=network.kind,
        coefficients=coefficients,
        width=network.width,
        rotation_head=network.rotation_head,
        pool=network.pool,
        stem=network.stem,
        subtract_mean=network.subtract_mean,
        release_units=network.release_units,
    )


def check_config(config: ConfigDict) -> None:
    """Checks what a run would otherwise trip over late.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    with refusing():
        check_numbers(config, default.RANGES)
        settings.check(config)
        _check_words(config)
        _check_together(config)
        # How many coefficients it gives does not matter to what it takes.
        localiser.check_size(_network(config, 0), config.data.image_size)


def _check_words(config: ConfigDict) -> None:
    def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
        need(config, key, value in allowed, f"one of {', '.join(allowed)}")

    ev, network = config.eval, config.localiser
    one_of("data.name", config.data.name, DATA_SETS)
    one_of("localiser.kind", network.kind, localiser.KINDS)
    one_of("localiser.rotation_head", network.rotation_head, localiser.ROTATION_HEADS)
    one_of("localiser.pool", network.pool, localiser.POOLS)
    need(config, "localiser.stem", network.stem in localiser.STEMS, "2 or 4")
    one_of("visibility.train", config.visibility.train, flattening.MODES)
    # To score and to show, what is seen must be known.
    one_of("visibility.eval", config.visibility.eval, ("facing", "zbuffer"))
    one_of("eval.split", ev.split, ds.SPLITS)
    rows = (*UNTRAINED, SUPERVISED)
    known = all(name in rows for name in ev.baselines)
    need(config, "eval.baselines", known, f"any of {', '.join(rows)}")


def _check_together(config: ConfigDict) -> None:
    """What keys have to do with each other."""
    data, loss, face = config.data, config.loss, config.face
    least = 32
    size_rule = "224 for localiser.kind=vgg_face, else at least 32"
    fits = data.image_size >= least
    if config.localiser.kind == "vgg_face":
        fits = data.image_size == 224
    need(config, "data.image_size", fits, size_rule)
    loads = not config.localiser.weights or config.localiser.kind == "vgg_face"
    need(config, "localiser.weights", loads, "empty unless localiser.kind=vgg_face")
    odd = loss.contrast == 0 or (loss.contrast >= 3 and loss.contrast % 2 == 1)
    need(config, "loss.contrast", odd, "0, or odd and at least 3")
    is_open = data.name == "open_faces"
    if is_open:
        need(config, "face.landmarks", face.landmarks == "ibug68", "ibug68 for "
             "data.name=open_faces")  # fmt: skip
    single = is_open or data.views == 1
    need(config, "data.views", single, "1 unless data.name=open_faces")
    several = loss.identity == 0 or data.views > 1
    need(config, "loss.identity", several, "0 where data.views is 1")
    known = is_open and face.model in OPEN_MODELS
    truth = f"0 unless data.name=open_faces and face.model {' or '.join(OPEN_MODELS)}"
    need(config, "loss.vertices", loss.vertices == 0 or known, truth)
    need(config, "loss.theta", loss.theta == 0 or known, truth)
    supervised = SUPERVISED in config.eval.baselines
    without = f"without supervised {truth[2:]}"
    need(config, "eval.baselines", known or not supervised, without)
    # The row is trained by the config's optimizer, whose rate is that of other sums.
    means = not (supervised and config.compat.release_losses)
    need(config, "eval.baselines", means, "without supervised for "
         "compat.release_losses=True")  # fmt: skip
    # Theta shows the same place through no other camera.
    if loss.theta > 0:
        exact = config.camera.fov_deg == 10.0
        need(config, "camera.fov_deg", exact, "10 for loss.theta > 0")
