"""What networks begin with: a joint run, what ships, and what is neither."""

import json

import gan_shape_samples as samples
import jax
import numpy as np
import pytest

from configs.gan2shape import faces, faces_start
from unsup3d_jax.engine import half_precision
from unsup3d_jax.errors import UserError
from unsup3d_jax.gan2shape import networks, options, start

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    config = samples.config()
    params = networks.init_params(KEY, options.options_from_config(config).networks)
    path = tmp_path_factory.mktemp("start") / "start.npz"
    half_precision.save(path, params, start._meaning(config), step=7, seed=0)
    return config, params, path


def test_what_is_saved_is_loaded_to_half_precision(saved):
    config, params, path = saved
    found = start.load(config, path)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
        found,
        jax.device_get(params),
    )


@pytest.mark.parametrize(
    "key, value", [("model.width", 8), ("depth.min", 0.8), ("projection.layers", 3)]
)
def test_networks_of_another_config_are_refused(saved, key, value):
    _, _, path = saved
    other = samples.config(**{key.replace(".", "__"): value})
    with pytest.raises(UserError, match=f"differ: {key}"):
        start.load(other, path)


def test_a_place_that_is_no_joint_run_is_refused(tmp_path):
    config = samples.config(train__init_from=str(tmp_path))
    with pytest.raises(UserError, match="holds no config.json"):
        start.first_params(config)
    assert start.first_params(samples.config()) is None


def test_a_joint_run_of_other_networks_is_refused(tmp_path, monkeypatch):
    # Its parameters are not looked at before: no run is needed.
    monkeypatch.setattr(
        start.checkpoint, "load_parts", lambda place: ({"params": {}}, 1)
    )
    for changes in ({}, {"model__width": 8}, {"projection__layers": 3}):
        theirs = samples.config(stages__mode="joint", **changes)
        record = {"config": theirs.to_dict()}
        (tmp_path / "config.json").write_text(json.dumps(record))
        config = samples.config(train__init_from=str(tmp_path))
        if not changes:
            assert start.first_params(config) == {}
            continue
        (key,) = changes
        with pytest.raises(UserError, match=f"differ: {key.replace('__', '.')}"):
            start.first_params(config)


def test_the_run_that_ships_means_what_faces_needs():
    ours, theirs = faces.get_config(), faces_start.get_config()
    assert start._meaning(ours) == start._meaning(theirs)
    options.check_config(theirs)


def test_what_ships_is_of_the_networks_of_faces():
    config = faces.get_config()
    params = start.load(config)
    sizes = options.options_from_config(config).networks
    wanted = jax.eval_shape(lambda key: networks.init_params(key, sizes), KEY)
    for name, tree in wanted.items():
        shapes = jax.tree.map(lambda x: x.shape, params[name])
        assert shapes == jax.tree.map(lambda x: x.shape, tree)
    assert set(params) == {*wanted, "encoder"}
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    assert start.PATH.stat().st_size < 4 * 2**20
    assert start.PATH.with_suffix(".md").is_file()
