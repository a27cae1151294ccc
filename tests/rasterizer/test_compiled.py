"""Numba's loops are compiled whether or not there is a place to keep them."""

import errno

import pytest

numba = pytest.importorskip("numba")
from numba.core import caching  # noqa: E402

from rasterizer import compiled  # noqa: E402


def _twice(x):
    return 2 * x


def _fresh():
    """As in a process of its own."""
    return compiled.njit()(_twice)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def _kept(place):
    return sorted(path.suffix for path in place.rglob("*.nb*"))


def test_what_was_compiled_is_kept_and_found_again(place):
    assert _fresh()(21) == 42 and _kept(place) == [".nbc", ".nbi"]
    again = _fresh()
    assert again(21) == 42 and sum(again.stats.cache_hits.values()) == 1


def test_without_any_place_it_is_compiled_all_the_same(monkeypatch):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="no locator available"):
        numba.njit(cache=True)(_twice)
    assert _fresh()(21) == 42


@pytest.mark.parametrize("what", ["save", "load"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), PermissionError(13, "no"), EOFError()]
)
def test_a_place_that_goes_away_is_no_matter(place, monkeypatch, what, error):
    asked = []

    def fail(*_, **__):
        asked.append(what)
        raise error

    monkeypatch.setattr(caching.IndexDataCacheFile, what, fail)
    assert _fresh()(21) == 42 and asked


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_a_torn_file_is_no_matter(place, suffix):
    assert _fresh()(21) == 42
    (path,) = place.rglob(f"*{suffix}")
    path.write_bytes(path.read_bytes()[:40])
    assert _fresh()(21) == 42
