"""Fixtures that several files of tests share."""

import pytest
from samples import write_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Root of eleven photos and a broken file; see `samples.write_photos`."""
    return write_photos(tmp_path_factory.mktemp("photos"))
