"""Members of zip files, such as PyTorch and numpy write, within a budget."""

import io
import zipfile
from pathlib import Path

from unsup3d_jax.nets.file_guard import Budget, Refused

# Others can ask for a dictionary of gigabytes before they give a byte.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Archive:
    """A zip file whose members are read one by one; not kept open.

    Attributes:
        sizes: {name: bytes of the member, once it is expanded}.

    Raises:
        Refused: if it declares more than the budget allows. Anything else, here and
            in `read`, if it is damaged.
    """

    def __init__(self, path: Path, budget: Budget):
        self._path, self._budget = path, budget
        self._booked: set[str] = set()  # tensors may share a member
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        self.sizes = {member.filename: member.file_size for member in members}
        if any(m.compress_type not in _METHODS for m in members):
            raise Refused("compressed in a way that no file of weights is; refused.")
        budget.may_hold(sum(member.file_size for member in members))

    def read(self, name: str) -> bytes:
        """A whole member; its checksum is right."""
        if name not in self._booked:
            self._budget.take(self.sizes[name])
            self._booked.add(name)
        with zipfile.ZipFile(self._path) as archive:
            return archive.read(name)

    def head(self, name: str, count: int) -> io.BytesIO:
        """The first bytes of a member, at most `count`, unchecked."""
        with zipfile.ZipFile(self._path) as archive, archive.open(name) as member:
            return io.BytesIO(member.read(min(count, self.sizes[name])))
