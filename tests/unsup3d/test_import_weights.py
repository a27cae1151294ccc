"""The authors' checkpoints, as PyTorch itself writes and computes them."""

import collections
import dataclasses
import errno
import json
import os
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch_zip
from defaults import options

from configs import celeba
from unsup3d_jax.engine import checkpoint, packing
from unsup3d_jax.errors import UserError
from unsup3d_jax.nets import authors_files
from unsup3d_jax.unsup3d import import_weights, model, task

OPTIONS = options(
    model__width=32,
    model__encoder_width=16,
    model__bottleneck=16,
    model__confidence_bottleneck=24,
    depth__bump_height=0.0,
    depth__output_gain=1.0,
)


# --- their networks, built from the tables of the paper's supplement ------------


def _sequential(torch, layers):
    """Layers in words: ("conv", in, out, kernel, stride, padding), "relu", ..."""
    nn = torch.nn
    made = []
    for layer in layers:
        kind, *sizes = layer.split() if isinstance(layer, str) else layer
        numbers = [int(s) for s in sizes]
        if kind in ("conv", "deconv"):
            cin, cout, k, s, p = numbers
            make = nn.Conv2d if kind == "conv" else nn.ConvTranspose2d
            made.append(make(cin, cout, k, s, p, bias=False))
        elif kind == "norm":
            made.append(nn.GroupNorm(*numbers))
        else:
            made.append(
                {
                    "relu": nn.ReLU,
                    "leaky": lambda: nn.LeakyReLU(0.2),
                    "up": lambda: nn.Upsample(scale_factor=2),
                    "tanh": nn.Tanh,
                    "softplus": nn.Softplus,
                }[kind]()
            )
    return nn.Sequential(*made)


def _down(n, z):
    return [
        *("conv", 3, n, 4, 2, 1), "|", "norm", 16, n, "|", "leaky", "|",
        *("conv", n, 2 * n, 4, 2, 1), "|", "norm", 32, 2 * n, "|", "leaky", "|",
        *("conv", 2 * n, 4 * n, 4, 2, 1), "|", "norm", 64, 4 * n, "|", "leaky", "|",
        *("conv", 4 * n, 8 * n, 4, 2, 1), "|", "leaky", "|",
        *("conv", 8 * n, z, 4, 1, 0), "|", "relu",
    ]  # fmt: skip


def _split(words):
    return " ".join(str(w) for w in words).split(" | ")


def _map_network(torch, n, z, outputs, last):
    up = []
    for i, o, groups in ((8, 4, 64), (4, 2, 32), (2, 1, 16)):
        up += [f"deconv {i * n} {o * n} 4 2 1", f"norm {groups} {o * n}", "relu"]
        up += [f"conv {o * n} {o * n} 3 1 1", f"norm {groups} {o * n}", "relu"]
    head = ["up", f"conv {n} {n} 3 1 1", f"norm 16 {n}", "relu"]
    head += [f"conv {n} {n} 5 1 2", f"norm 16 {n}", "relu", f"conv {n} {outputs} 5 1 2"]
    middle = [
        f"deconv {z} {8 * n} 4 1 0",
        "relu",
        f"conv {8 * n} {8 * n} 3 1 1",
        "relu",
    ]
    return _sequential(torch, _split(_down(n, z)) + middle + up + head + last)


def _vector_network(torch, n, outputs):
    layers = []
    for i, o in ((3, n), (n, 2 * n), (2 * n, 4 * n), (4 * n, 8 * n)):
        layers += [f"conv {i} {o} 4 2 1", "relu"]
    layers += [f"conv {8 * n} {8 * n} 4 1 0", "relu"]
    layers += [f"conv {8 * n} {outputs} 1 1 0", "tanh"]
    return _sequential(torch, layers)


def _confidence_network(torch, n, z):
    trunk = _split(_down(n, z)) + [f"deconv {z} {8 * n} 4 1 0", "relu"]
    for i, o, groups in ((8, 4, 64), (4, 2, 32)):
        trunk += [f"deconv {i * n} {o * n} 4 2 1", f"norm {groups} {o * n}", "relu"]
    fine = []
    for i in (2, 1):
        fine += [f"deconv {i * n} {n} 4 2 1", f"norm 16 {n}", "relu"]
    fine += [f"conv {n} 2 5 1 2", "softplus"]
    coarse = [f"conv {2 * n} 2 3 1 1", "softplus"]
    return torch.nn.ModuleDict(
        {
            "network": _sequential(torch, trunk),
            "out_net1": _sequential(torch, fine),
            "out_net2": _sequential(torch, coarse),
        }
    )


@pytest.fixture(scope="module")
def theirs():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    sizes = OPTIONS.networks
    n, z, e = sizes.width, sizes.bottleneck, sizes.encoder_width
    wrap = torch.nn.ModuleDict
    nets = {
        "netD": wrap({"network": _map_network(torch, n, z, 1, [])}),
        "netA": wrap({"network": _map_network(torch, n, z, 3, ["tanh"])}),
        "netL": wrap({"network": _vector_network(torch, e, 4)}),
        "netV": wrap({"network": _vector_network(torch, e, 6)}),
        "netC": _confidence_network(torch, n, sizes.confidence_bottleneck),
    }
    for net in nets.values():  # norms that do something
        for name, parameter in net.named_parameters():
            if parameter.ndim == 1:
                around = 1.0 if name.endswith("weight") else 0.0
                torch.nn.init.normal_(parameter, around, 0.2)
    return torch, nets


def _save(torch, nets, file, *, zipped, without=()):
    log = types.ModuleType("unsup3d_of_theirs")

    class MetricsTrace:
        def __init__(self):
            self.data = {"train": [{"loss": np.float64(0.5)}]}

    MetricsTrace.__module__ = log.__name__
    MetricsTrace.__qualname__ = "MetricsTrace"
    log.MetricsTrace = MetricsTrace
    sys.modules[log.__name__] = log
    try:
        checkpoint = {k: v.state_dict() for k, v in nets.items() if k not in without}
        adam = torch.optim.Adam(nets["netL"].parameters(), lr=1e-4)
        sum(p.sum() for p in nets["netL"].parameters()).backward()
        adam.step()
        nets["netL"].zero_grad()
        checkpoint |= {"optimizerL": adam.state_dict(), "epoch": 30}
        checkpoint["metrics_trace"] = MetricsTrace()
        torch.save(checkpoint, file, _use_new_zipfile_serialization=zipped)
    finally:
        del sys.modules[log.__name__]


@pytest.mark.parametrize("zipped", [False, True])
def test_imported_networks_compute_what_theirs_compute(theirs, tmp_path, zipped):
    torch, nets = theirs
    file = tmp_path / "checkpoint030.pth"
    _save(torch, nets, file, zipped=zipped)
    params = import_weights.read_authors_checkpoint(file, OPTIONS)
    expected_tree = jax.eval_shape(
        lambda k: model.init_params(k, OPTIONS), jax.random.key(0)
    )
    assert jax.tree.structure(params) == jax.tree.structure(expected_tree)
    if zipped:
        return  # the other serialisation holds the same numbers
    image = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    x, pixels = torch.tensor(image).permute(0, 3, 1, 2), jnp.asarray(image)
    with torch.no_grad():
        expected = {name: nets[name]["network"](x) for name in ("netD", "netA")}
        vectors = {
            name: nets[name]["network"](x)[..., 0, 0] for name in ("netL", "netV")
        }
        trunk = nets["netC"]["network"](x)
        conf = [nets["netC"][name](trunk) for name in ("out_net1", "out_net2")]
    found = {
        name: jax.jit(lambda p, net=net: net.apply({"params": p}, pixels))(params[name])
        for name, net in model.build_networks(OPTIONS).items()
    }
    found["albedo"] = jnp.tanh(found["albedo"])

    def check(ours, tensor):
        plain = tensor.numpy()
        plain = plain.transpose(0, 2, 3, 1) if plain.ndim == 4 else plain
        atol = 2e-5 * max(1.0, float(np.abs(plain).max()))
        np.testing.assert_allclose(ours, plain, atol=atol)

    check(found["depth"], expected["netD"])
    check(found["albedo"], expected["netA"])
    check(found["light"], vectors["netL"])
    check(found["view"], vectors["netV"])
    check(found["conf"][0], conf[0])
    check(found["conf"][1], conf[1])


def test_missing_network_and_wrong_width_are_named(theirs, tmp_path):
    torch, nets = theirs
    file = tmp_path / "checkpoint100.pth"
    _save(torch, nets, file, zipped=True, without=("netC",))
    with pytest.raises(UserError, match="netC.*use_confidence=False"):
        import_weights.read_authors_checkpoint(file, OPTIONS)
    sizes = dataclasses.replace(OPTIONS.networks, use_confidence=False)
    cars = dataclasses.replace(OPTIONS, networks=sizes)
    assert "conf" not in import_weights.read_authors_checkpoint(file, cars)

    wide = dataclasses.replace(cars, networks=dataclasses.replace(sizes, width=64))
    with pytest.raises(
        UserError, match=r"netA.*must have shape \(64, 3, 4, 4\), found"
    ):
        import_weights.read_authors_checkpoint(file, wide)


def test_unknown_key_and_other_sizes_are_errors():
    options = dataclasses.replace(
        OPTIONS, networks=dataclasses.replace(OPTIONS.networks, image_size=32)
    )
    with pytest.raises(UserError, match="image_size=64"):
        import_weights.read_authors_checkpoint("x.pth", options)
    shapes = {"Conv_0": {"kernel": jax.ShapeDtypeStruct((1, 1, 2, 3), jnp.float32)}}
    state = {"network.0.weight": np.zeros((3, 2, 1, 1), np.float32), "extra": 1}
    with pytest.raises(UserError, match="unknown key 'extra'"):
        authors_files.convert_network(state, shapes, {"Conv_0": "network.0"}, "file")


def made(networks):
    """Their state dictionaries with random numbers, by our map of their layers."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda k: model.init_params(k, NO_TORCH), jax.random.key(0))
    nets = {}
    for name in networks:
        state = nets[import_weights._NETWORKS[name]] = collections.OrderedDict()
        for module, leaves in shapes[name].items():
            for leaf, x in leaves.items():
                kind = "bias" if leaf == "bias" else "weight"
                key = f"{import_weights._LAYERS[name][module]}.{kind}"
                shape = x.shape
                if len(shape) == 4:
                    h, w, i, o = shape
                    front = (i, o) if module.startswith("Deconv") else (o, i)
                    shape = (*front, h, w)
                state[key] = rng.normal(0, 0.1, shape).astype(np.float32)
    return nets


def before(prefix, state):
    return collections.OrderedDict((prefix + k, v) for k, v in state.items())


NO_TORCH = options(
    model__width=16,
    model__encoder_width=16,
    model__bottleneck=8,
    model__confidence_bottleneck=8,
    depth__bump_height=0.0,
    depth__output_gain=1.0,
)


@pytest.mark.once
def test_prefixes_and_wrappers_are_seen_through(tmp_path):
    nets = made(import_weights._NETWORKS)
    parallel = {k: before("module.", v) for k, v in nets.items()}
    flat = {f"{n}.{k}": v for n, state in nets.items() for k, v in state.items()}
    trees = {
        "plain": nets | {"epoch": 30},
        "parallel": parallel | {"epoch": 30},
        "wrapped": {"model": nets | {"epoch": 30}},
        "flat": {"state_dict": flat},
        "both": {"model": before("module.", flat)},
        "inside": {f"{n}.module.{k}": v for n, s in nets.items() for k, v in s.items()},
    }
    for name, tree in trees.items():
        torch_zip.save(tree, tmp_path / f"{name}.pth")
    read = [
        import_weights.read_authors_checkpoint(tmp_path / f"{name}.pth", NO_TORCH)
        for name in trees
    ]
    for params in read[1:]:
        jax.tree.map(np.testing.assert_array_equal, params, read[0])
    np.testing.assert_array_equal(
        read[0]["depth"]["Conv_0"]["kernel"],
        nets["netD"]["network.0.weight"].transpose(2, 3, 1, 0),
    )
    del nets["netC"]
    for tree in (nets, {"model": nets}):
        torch_zip.save(tree, tmp_path / "no_netC.pth")
        with pytest.raises(UserError, match="netC.*use_confidence=False"):
            import_weights.read_authors_checkpoint(tmp_path / "no_netC.pth", NO_TORCH)
    nets["netD"]["network.99.weight"] = np.zeros(1, np.float32)
    torch_zip.save(nets | {"netC": made(["conf"])["netC"]}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="unknown key 'network.99.weight'"):
        import_weights.read_authors_checkpoint(tmp_path / "other.pth", NO_TORCH)


def test_encoders_of_8_channels_are_read():
    """They have no group norm, whose counts want multiples of 16."""
    rng = np.random.default_rng(0)
    sizes = [(3, 8), (8, 16), (16, 32), (32, 64), (64, 64), (64, 4)]
    layers = import_weights._LAYERS["light"]
    ours, theirs = {}, {}
    for number, (i, o) in enumerate(sizes):
        k = 1 if number == 5 else 4
        weight = rng.normal(size=(o, i, k, k)).astype(np.float32)
        theirs[f"{layers[f'Conv_{number}']}.weight"] = weight
        ours[f"Conv_{number}"] = {
            "kernel": jax.ShapeDtypeStruct((k, k, i, o), jnp.float32)
        }
    found = authors_files.convert_network(theirs, ours, layers, "file")
    np.testing.assert_array_equal(
        found["Conv_0"]["kernel"], theirs["network.0.weight"].transpose(2, 3, 1, 0)
    )


@pytest.fixture
def run(tmp_path):
    """A config, a file of theirs that fits it, and a workdir."""
    torch_zip.save(made(import_weights._NETWORKS), tmp_path / "checkpoint030.pth")
    config = celeba.get_config()
    config.model.width = config.model.encoder_width = 16
    config.model.bottleneck = config.model.confidence_bottleneck = 8
    config.depth.bump_height, config.depth.output_gain = 0.0, 1.0
    return config, tmp_path / "checkpoint030.pth", tmp_path / "run"


@pytest.mark.once
def test_an_imported_checkpoint_is_step_0_of_a_run(run):
    config, file, workdir = run
    config.depth.bump_height = 0.5
    with pytest.raises(UserError, match="add --config.depth.bump_height=0"):
        import_weights.import_checkpoint(config, file, workdir)
    config.depth.bump_height = 0.0
    text = import_weights.import_checkpoint(config, file, workdir)
    assert "parameters of " in text and "conf" in text and str(file) in text
    parts, step = checkpoint.load_parts(workdir)
    assert step == 0
    record = json.loads((workdir / "init_from.json").read_text())
    assert record["path"] == str(file) and record["step"] is None
    assert record["checksums"] == packing.checksums(parts)
    expected = import_weights.read_authors_checkpoint(file, NO_TORCH)
    jax.tree.map(np.testing.assert_array_equal, parts["params"], expected)
    with pytest.raises(UserError, match="holds checkpoints already"):
        import_weights.import_checkpoint(config, file, workdir)


@pytest.mark.once
def test_another_run_begins_from_an_imported_one(run):
    config, file, workdir = run
    import_weights.import_checkpoint(config, file, workdir)
    config.train.init_from, config.view.warmup_steps = str(workdir), 100
    start = task.read_start(config)
    assert str(start) == f"step 0 of {workdir}"
    expected = import_weights.read_authors_checkpoint(file, NO_TORCH)
    jax.tree.map(np.testing.assert_array_equal, start.parts["params"], expected)
    config.model.width = 32
    with pytest.raises(UserError, match=r"init_from: .*model.width \(16 there, 32 now"):
        task.read_start(config)
    (workdir / "config.json").unlink()  # nobody knows what it was trained with
    with pytest.raises(
        UserError, match=r"Conv_0/kernel has shape .*16\), expected .*32"
    ):
        task.read_start(config)


@pytest.mark.once
def test_success_is_said_only_of_what_is_on_disk(run, monkeypatch):
    config, file, workdir = run
    finish = ocp.CheckpointManager.wait_until_finished
    save, saved = checkpoint.Checkpoints.save, []

    def begin(checkpoints, *args):
        save(checkpoints, *args)  # goes on in the background
        saved.append(True)

    def full(manager):
        finish(manager)
        if saved:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.Checkpoints, "save", begin)
    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", full)
    with pytest.raises(checkpoint.NotSaved, match="No space left on device"):
        import_weights.import_checkpoint(config, file, workdir)
