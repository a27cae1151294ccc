"""A run that begins from the parameters of another: `train.init_from`.

They become the run's own checkpoint of step 0, with a fresh optimizer and the images
from the first one on. From then on the run is like any other: it is resumed without
the files that it came from, and would not read them again. `init_from.json` in its
workdir says what it began from.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from unsup3d_jax.engine import checkpoint, packing
from unsup3d_jax.engine.task import Identity, Task, initial_state
from unsup3d_jax.engine.workdir import check_meaning
from unsup3d_jax.errors import UserError, writing
from unsup3d_jax.files import write_atomically

RECORD = "init_from.json"


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run begins from.

    Attributes:
        parts: of a state, {part: tree of host arrays}.
        step: that they have reached; None: nobody knows.
        path: where they were.
    """

    parts: Mapping[str, Any]
    step: int | None
    path: Path

    def __str__(self) -> str:
        return f"step {self.step} of {self.path}"


def read(config: ConfigDict, like: Mapping[str, Any], identity: Identity) -> Start:
    """Reads what `train.init_from` names, a workdir or one checkpoint folder.

    Args:
        like: {part: tree of arrays, or shapes} that a run of the config begins with.
        identity: of the method.

    Raises:
        UserError: naming the key, if nothing is there, or it is damaged, or of a
            model with other keys or shapes.
    """
    place = Path(config.train.init_from).expanduser()
    try:
        parts, step = checkpoint.load_parts(place, tuple(like))
        check_meaning(config, place, identity, but=identity.on_the_way)
        for name, tree in like.items():
            packing.check_shapes(parts[name], tree, f"the checkpoint in {place}")
    except UserError as error:
        raise UserError(f"train.init_from: {error}") from None
    return Start(parts, step, place)


def begin(workdir: Path, task: Task, seed: int, start: Start) -> None:
    """Makes it the first checkpoint of a workdir; it is on disk then.

    Raises:
        UserError: if it cannot be written.
    """
    state = initial_state(task, seed)
    note(workdir, start)
    parts = state.parts | dict(start.parts)
    checkpoint.write_first(workdir, dataclasses.replace(state, parts=parts))


def note(workdir: Path, start: Start) -> None:
    """Writes `init_from.json`.

    Raises:
        UserError: if it cannot be written.
    """
    record = {
        "path": str(start.path.resolve()),
        "step": start.step,
        # As in the checkpoints themselves.
        "checksums": packing.checksums(start.parts),
    }
    place = workdir / RECORD
    with writing(place):
        write_atomically(place, json.dumps(record, indent=2) + "\n")
