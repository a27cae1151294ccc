"""Learning which way up images are, and what becomes of the weights."""

import functools
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors
from PIL import Image

from configs import default
from unsup3d_jax.data.source import TrainSource
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.task import Session, StepContext
from unsup3d_jax.errors import UserError
from unsup3d_jax.experiments import rotnet
from unsup3d_jax.formation.types import Batch
from unsup3d_jax.nets import vgg16, vgg16_files
from unsup3d_jax.unsup3d.task import lazy_splits

pytestmark = pytest.mark.once

SIZE = 8


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise, bright at the top: which way is up is plain to see."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(24):
        pixels = rng.integers(0, 100, (SIZE, SIZE, 3)).astype(np.uint8)
        pixels[:2] += 120
        Image.fromarray(pixels).save(root / f"{i:02d}.png")
    return root


def _config(photos, tmp_path, **changes):
    config = default.get_config()
    config.data.path, config.data.image_size = str(photos), SIZE
    config.data.min_images, config.data.cache_dir = 4, str(tmp_path / "cache")
    config.data.hash_split_percent = (60, 20, 20)
    config.rotnet.steps, config.rotnet.batch_size = 30, 8
    config.rotnet.convolutions = 2
    for key, value in changes.items():
        config.rotnet[key] = value
    config.lock()
    return config


def _pretrain(config, output):
    with Interrupts() as interrupts:
        session = Session(config, lazy_splits(config), interrupts)
        return rotnet.pretrain(session, output)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("run")
    config = _config(photos, tmp_path)
    output = tmp_path / "weights" / "encoder.npz"
    return _pretrain(config, output), output


def test_every_image_is_turned_four_ways_and_labelled():
    image = jax.random.uniform(jax.random.key(0), (3, SIZE, SIZE, 3))
    pictures, labels = rotnet.turned(image)
    assert pictures.shape == (12, SIZE, SIZE, 3)
    for k in range(4):
        for i in range(3):
            expected = np.rot90(image[i], k)
            np.testing.assert_array_equal(pictures[3 * k + i], expected)
            assert labels[3 * k + i] == k


@pytest.mark.once
def test_it_learns_which_way_is_up(trained):
    record, output = trained
    assert record["val_accuracy"] > 0.9 and record["steps"] == 30
    assert json.loads(output.with_suffix(".json").read_text()) == record
    lines = (output.with_suffix("") / "metrics.jsonl").read_text().splitlines()
    first, last = (json.loads(lines[i])["total"] for i in (0, -1))
    assert last < first


def test_the_weights_serve_the_perceptual_loss(trained):
    vgg = vgg16_files.load_vgg16(str(trained[1]), "relu1_2")
    shapes = [layer["kernel"].shape for layer in vgg]
    assert shapes == [(3, 3, 3, 64), (3, 3, 64, 64)]
    with pytest.raises(UserError, match=r"features\.5\.weight.*missing"):
        vgg16_files.load_vgg16(str(trained[1]), "relu3_3")  # it has two layers only


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
def test_weights_come_back_and_safetensors_say_whose_they_are(
    photos, tmp_path, trained, ending
):
    """A finished run writes them anew, in another format if that is asked for."""
    record, output = trained
    shutil.copytree(output.with_suffix(""), tmp_path / "encoder")
    config = _config(photos, tmp_path)
    path = tmp_path / f"encoder{ending}"
    assert _pretrain(config, path) == record
    found, expected = (
        vgg16_files.load_vgg16(str(file), "relu1_2") for file in (path, output)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    if ending == ".safetensors":
        with safetensors.safe_open(path, "np") as file:
            about = file.metadata()
        assert about["network"] == "VGG16" and "2 convolutions" in about["layers"]
        assert "--mode=rotnet" in about["made_by"]
        assert {name: json.loads(about[name]) for name in record} == record


def test_an_output_of_another_format_is_refused(photos, tmp_path):
    with pytest.raises(UserError, match=r"\.safetensors or \.npz file, got .*enc\.pth"):
        _pretrain(_config(photos, tmp_path), tmp_path / "enc.pth")
    assert not list(tmp_path.iterdir())


def _initial(network, image):
    init = jax.jit(functools.partial(network.init, is_training=False))
    return init(jax.random.key(0), image)


@pytest.mark.once
def test_stored_convolutions_contain_the_normalisation():
    """Features of the file are what the network computes in evaluation mode."""
    network = rotnet.RotNet(4)
    image = jax.random.uniform(jax.random.key(1), (2, SIZE, SIZE, 3))
    variables = _initial(network, image)
    rng = np.random.default_rng(2)
    # Running statistics, scales and shifts of a network in the middle of its life.
    variables = jax.tree.map(
        lambda x: x + rng.uniform(0, 0.3, x.shape).astype(np.float32), variables
    )
    state = {
        "params": variables["params"],
        "statistics": variables["batch_stats"],
    }

    @jax.jit
    def normed_features(variables):
        _, kept = network.apply(
            variables, image, is_training=False, capture_intermediates=True
        )
        return kept["intermediates"]["norm3"]["__call__"][0]

    normed = normed_features(variables)
    features = jax.jit(functools.partial(vgg16.features, layer="relu2_2"))
    found = features(rotnet.convolutions_of(state), image)
    expected = np.maximum(normed, 0)
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())


def _start(optimizer):
    network = rotnet.RotNet(2)
    state = rotnet.init(
        jax.random.key(0), network=network, optimizer=optimizer, image_size=SIZE
    )
    step = functools.partial(rotnet.update, network=network, optimizer=optimizer)
    return state, step


def _context(axis_name=None):
    zero = jnp.zeros((), jnp.int32)
    return StepContext(zero, jax.random.key(0), (), (), axis_name)


def test_a_step_changes_parameters_and_statistics():
    state, step = _start(optax.sgd(0.1))
    batch = Batch(image=jax.random.uniform(jax.random.key(1), (2, SIZE, SIZE, 3)))
    after, metrics = jax.jit(step)(state, batch, _context())
    np.testing.assert_allclose(metrics["total"], np.log(4), atol=0.5)
    change = after["params"]["head"]["kernel"] - state["params"]["head"]["kernel"]
    assert jnp.abs(change).max() > 0 and metrics["finite"]
    means = (x["statistics"]["norm0"]["mean"] for x in (state, after))
    assert jnp.abs(jnp.subtract(*means)).max() > 0


@pytest.mark.once
def test_devices_share_a_batch_and_its_statistics():
    """As one device would have it, to rounding; images of unlike brightness."""
    state, step = _start(optax.sgd(0.1))
    image = jax.random.uniform(jax.random.key(1), (4, SIZE, SIZE, 3))
    image = image * jnp.linspace(0.2, 1.0, 4)[:, None, None, None]
    one, numbers = jax.jit(step)(state, Batch(image=image), _context())

    def part(image):
        return step(state, Batch(image=image), _context("devices"))

    halves = image.reshape(2, 2, SIZE, SIZE, 3)
    both, metrics = jax.jit(jax.vmap(part, axis_name="devices"))(halves)
    for found, expected in ((metrics, numbers), (both, one)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                a, np.broadcast_to(b, a.shape), rtol=2e-4, atol=1e-5
            ),
            found,
            expected,
        )


def test_a_signal_keeps_what_is_learnt_and_resuming_is_bit_equal(
    photos, tmp_path, trained, monkeypatch
):
    config = _config(photos, tmp_path)
    output, steps = tmp_path / "weights" / "encoder.npz", []
    make = TrainSource.__next__

    def stopped(self):
        steps.append(1)
        if len(steps) == 11:
            signal.raise_signal(signal.SIGTERM)
        return make(self)

    with monkeypatch.context() as patch:
        patch.setattr(TrainSource, "__next__", stopped)
        record = _pretrain(config, output)
    assert record["steps"] == 10 and record["val_accuracy"] is None
    assert not output.exists()
    record = _pretrain(config, output)
    assert record == trained[0]
    found, expected = (np.load(path) for path in (output, trained[1]))
    for name in expected.files:
        np.testing.assert_array_equal(found[name], expected[name])


def test_another_rotnet_in_the_same_place_is_refused(photos, tmp_path, trained):
    output = trained[1]
    with pytest.raises(UserError, match=r"rotnet.convolutions \(2 there, 4 now\)"):
        _pretrain(_config(photos, tmp_path, convolutions=4), output)
    config = _config(photos, tmp_path)
    with config.unlocked():
        config.loss.flip = 0.25  # of the method, which has no part in this
    assert _pretrain(config, output) == trained[0]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"convolutions": 3}, "rotnet.convolutions must be one of 2, 4, 7"),
        ({"steps": 0}, "rotnet.steps"),
        ({"learning_rate": 0.0}, "rotnet.learning_rate"),
    ],
)
def test_wrong_options_are_named(photos, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        rotnet.check_config(_config(photos, tmp_path, **changes))
