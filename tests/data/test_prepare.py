"""Many files are read in parts, and an interrupted reading goes on."""

import numpy as np
import pytest

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import prepare

COUNT = 11


@pytest.fixture
def items(tmp_path, monkeypatch):
    """Eleven files that hold their number, in parts of four; the third is broken."""
    monkeypatch.setattr(prepare, "_PART", 4)
    paths = [tmp_path / f"{i:02d}" for i in range(COUNT)]
    for i, path in enumerate(paths):
        path.write_text("x" if i == 2 else str(i))
    return [ds.Item(path.name, (str(path),)) for path in paths]


class _Reader:
    """Reads a number; breaks off after `most` files."""

    def __init__(self, most=COUNT):
        self.read, self.most = [], most

    def __call__(self, item):
        with open(item.paths[0]) as file:
            number = int(file.read())
        if len(self.read) >= self.most:
            raise BrokenOff
        self.read.append(number)
        return {"image": np.full((2, 2), number)}, (number, 1)


class BrokenOff(BaseException):
    pass


def _prepare(items, read, tmp_path, keep=True):
    return prepare.prepare(
        items, read, options={}, keep=keep, workers=0,
        cache_dir=str(tmp_path / "cache"), label="reading",
    )  # fmt: skip


@pytest.mark.parametrize("keep", [True, False])
def test_what_was_read_before_an_interruption_is_not_read_again(items, tmp_path, keep):
    with pytest.raises(BrokenOff):
        _prepare(items, _Reader(most=8), tmp_path, keep)
    (parts,) = (tmp_path / "cache" / "prepared").iterdir()  # and nothing whole
    assert sorted(p.name for p in parts.iterdir()) == [
        "000000000.npz",
        "000000004.npz",
    ]
    second = _Reader()
    found = _prepare(items, second, tmp_path, keep)
    assert second.read == [8, 9, 10]
    assert [index for index, _ in found.broken] == [2]
    want = [i for i in range(COUNT) if i != 2]
    assert found.sizes == {f"{i}x1": 1 for i in want}
    if keep:
        assert found.arrays["image"][:, 0, 0].tolist() == want
    (whole,) = (tmp_path / "cache" / "prepared").iterdir()
    assert whole.suffix == ".npz"
    assert _prepare(items, second, tmp_path, keep).cached and len(second.read) == 3


def test_a_damaged_part_is_read_again(items, tmp_path, caplog):
    with pytest.raises(BrokenOff):
        _prepare(items, _Reader(most=8), tmp_path)
    part = next((tmp_path / "cache" / "prepared").rglob("000000004.npz"))
    part.write_bytes(part.read_bytes()[:-30])
    second = _Reader()
    _prepare(items, second, tmp_path)
    assert second.read == [4, 5, 6, 7, 8, 9, 10] and "is damaged" in caplog.text


def test_the_parts_of_another_folder_are_not_taken(items, tmp_path):
    with pytest.raises(BrokenOff):
        _prepare(items, _Reader(most=8), tmp_path)
    with open(items[0].paths[0], "a") as file:
        file.write("7")
    second = _Reader()
    _prepare(items, second, tmp_path)
    assert second.read == [7, 1, 3, 4, 5, 6, 7, 8, 9, 10]
