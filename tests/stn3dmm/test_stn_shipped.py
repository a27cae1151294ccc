"""Parameters that ship: kept in half precision, refused for another model."""

import jax
import numpy as np
import pytest
import stn_people

from configs.stn3dmm import default, open_faces
from unsup3d_jax.engine import half_precision
from unsup3d_jax.engine.task import run_keys
from unsup3d_jax.errors import UserError
from unsup3d_jax.stn3dmm import localiser, options, shipped, task


def test_what_is_saved_is_loaded_to_half_precision(tmp_path, monkeypatch):
    config = stn_people.config()
    static = options.options_from_config(config, options.load_face(config))
    params = localiser.init_params(run_keys(0)[0], static.localiser, 32)
    path = tmp_path / "weights.npz"
    meaning = half_precision.meaning_of(config, task.IDENTITY)
    half_precision.save(path, params, meaning, step=9, seed=0)
    found, step = shipped.load(config, path)
    assert step == 9
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
        found,
        jax.device_get(params),
    )
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype("float32")}
    for change in ({"localiser__width": 0.04}, {"camera__fov_deg": 0.0}):
        other = stn_people.config(**change)
        (key,) = change
        with pytest.raises(UserError, match=key.replace("__", ".")):
            shipped.load(other, path)
    # A key that the file knows nothing of could mean anything.
    monkeypatch.setattr(
        half_precision, "meaning_of", lambda config, identity: {"face.new": 1}
    )
    with pytest.raises(UserError, match=r"face\.new, camera\.fill"):
        shipped.load(config, path)
    monkeypatch.setitem(default.YOUNGER, "face.new", 1)
    with pytest.raises(UserError, match=r"differ: camera\.fill"):
        shipped.load(config, path)
    monkeypatch.undo()
    # What says how it was trained does not count.
    shipped.load(stn_people.config(loss__symmetry=1.0), path)
    with pytest.raises(UserError, match="nowhere"):
        shipped.load(config, tmp_path / "nowhere.npz")


def test_the_localiser_that_ships_is_of_its_config():
    config = open_faces.get_config()
    assert shipped.PATH.stat().st_size <= 2 * 10**6
    params, step = shipped.load(config)
    assert step >= config.train.steps
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    assert shipped.PATH.with_suffix(".md").is_file()
