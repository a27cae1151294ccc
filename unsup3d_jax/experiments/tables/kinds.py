"""What a table asks of a method: to train and score its rows, and to show them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
from ml_collections import ConfigDict

from unsup3d_jax.data import load
from unsup3d_jax.data.load import Splits
from unsup3d_jax.engine.log import say
from unsup3d_jax.engine.task import Identity, Session
from unsup3d_jax.experiments.paper_tables import Row
from unsup3d_jax.experiments.tables.figure import Exhibit

Configs = Mapping[str, Sequence[ConfigDict]]  # row -> config of each seed


@runtime_checkable  # for checks of annotations
class Kind(Protocol):
    """A method whose rows a table can have.

    A seed's place is its workdir, `rows/<row>/seed<k>`, as the method's own training
    leaves it: such a workdir of elsewhere may be put there.
    """

    identity: Identity

    def check(self, configs: Configs) -> None:
        """Refuses, before hours are spent, what would be refused later.

        Args:
            configs: of the rows of this method.

        Raises:
            UserError: also if a place holds the run of another config.
        """
        ...

    def begin(self) -> None:
        """Does what has to be done before the first row."""
        ...

    def untrained(self, row: Row, config: ConfigDict) -> dict | None:
        """Scores of a baseline, `row.kind`; None if nothing true is known."""
        ...

    def trained(self, name: str, config: ConfigDict, place: Path) -> dict:
        """Scores of one seed; trained, or gone on with, if need be.

        Raises:
            Diverged: if it failed.
            Interrupted: if it was stopped, with everything saved.
        """
        ...

    def record_of(self, place: Path) -> Path:
        """Where the config.json of the run of a place is; may not exist."""
        ...

    def exhibit(
        self, name: str, config: ConfigDict, place: Path, count: int
    ) -> Exhibit | None:
        """What the figure shows of a row, on `count` images; None: nothing."""
        ...


class Sessions:
    """config -> its session; rows on the same data share what is loaded."""

    def __init__(self, session: Session):
        self._session = session
        self._splits: dict[str, Splits] = {}

    def __call__(self, config: ConfigDict) -> Session:
        # Depth maps on disk are decoded with section depth.
        sections = {k: config[k].to_dict() for k in ("data", "depth")}
        key = json.dumps(sections, sort_keys=True)
        if key not in self._splits:
            tell = say if jax.process_index() == 0 else None
            self._splits[key] = load.lazy_splits(config, tell)
        return Session(config, self._splits[key], self._session.interrupts)
