"""The localiser: shapes at all sizes, a quiet start, no dead layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io

from unsup3d_jax.nets import vgg_face
from unsup3d_jax.stn3dmm import compat, layers, localiser

pytestmark = pytest.mark.once

SMALL = localiser.LocaliserOptions(
    kind="small",
    coefficients=5,
    width=0.25,
    rotation_head="axis_angle",
    pool="mean_max",
    stem=2,
    subtract_mean=True,
    release_units=False,
)
VGG = dataclasses.replace(SMALL, kind="vgg_face", width=1 / 32)


def shapes_of(options, image_size):
    def run(key):
        params = localiser.init_params(key, options, image_size)
        images = jnp.zeros((2, image_size, image_size, 3))
        return params, localiser.localise(params, images, options)

    return jax.eval_shape(run, jax.random.key(0))


@pytest.mark.parametrize(
    "image_size, width, head",
    [
        (32, 0.1, "axis_angle"),
        (33, 0.25, "six"),
        (64, 0.6, "axis_angle"),
        (112, 1.0, "axis_angle"),
        (224, 2.0, "six"),
    ],
)
def test_theta_has_its_shape_at_all_sizes_and_widths(image_size, width, head):
    options = dataclasses.replace(SMALL, width=width, rotation_head=head)
    _, theta = shapes_of(options, image_size)
    assert theta.shape == (2, 6 + 5) and theta.dtype == jnp.float32


@pytest.mark.parametrize("image_size", [32, 64, 112, 128])
def test_flat_maps_have_one_size_and_know_where(image_size):
    """Where mean and maximum do not: of an image that is rolled in the last maps."""
    options = dataclasses.replace(SMALL, pool="flat")
    params, theta = shapes_of(options, image_size)
    assert theta.shape == (2, 11)
    kernel = params[localiser.NETWORK]["small"]["dense"]["layer"]["kernel"]
    assert kernel.shape == (16 * 64, 64)
    maps = jnp.arange(2.0 * 8 * 8 * 3).reshape(2, 8, 8, 3)
    means = localiser._to(maps, 4)
    np.testing.assert_allclose(means[1, 2, 3], maps[1, 4:6, 6:8].mean((0, 1)))


def test_a_stem_of_stride_4_reads_every_pixel():
    options = dataclasses.replace(SMALL, stem=4, pool="flat")
    params, theta = shapes_of(options, 64)
    assert theta.shape == (2, 11)
    small = params[localiser.NETWORK]["small"]
    sizes = [x.shape for x in jax.tree.leaves(small) if x.ndim == 4]
    assert sizes.count((3, 3, 12, 8)) == 1 and len(sizes) == 5
    for size in (32, 65):
        with pytest.raises(ValueError, match="stem=4"):
            shapes_of(options, size)


def test_flat_maps_of_no_multiple_are_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        shapes_of(dataclasses.replace(SMALL, pool="flat"), 224)


def test_the_networks_have_the_size_of_the_specification():
    options = dataclasses.replace(SMALL, coefficients=40, width=1.0)
    params, _ = shapes_of(options, 112)
    assert list(params) == [localiser.NETWORK]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert 1.0e6 < count < 1.2e6
    options = dataclasses.replace(options, kind="vgg_face", coefficients=10)
    params, theta = shapes_of(options, vgg_face.SIZE)
    assert theta.shape == (2, 16)
    head = params[localiser.NETWORK].pop("head")
    assert sum(leaf.size for leaf in jax.tree.leaves(head)) == 4097 * 16
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == pytest.approx(134.3e6, rel=1e-3)


def test_at_small_sizes_the_later_strides_stop(monkeypatch):
    seen = []

    class Spy(localiser.Conv):
        def __call__(self, x):
            y = super().__call__(x)
            seen.append(y.shape[1])
            return y

    monkeypatch.setattr(localiser, "Conv", Spy)
    found = {}
    for size in (32, 64, 112, 224):
        seen.clear()
        jax.eval_shape(
            localiser.Localiser(SMALL).init_with_output,
            jax.random.key(0),
            jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
        )
        found[size] = list(seen)
    assert found == {
        32: [16, 8, 4, 4, 4],
        64: [32, 16, 8, 4, 4],
        112: [56, 28, 14, 7, 4],
        224: [112, 56, 28, 14, 7],
    }


@pytest.mark.parametrize(
    "options, image_size",
    [
        (SMALL, 32),
        pytest.param(
            dataclasses.replace(SMALL, rotation_head="six"), 40, marks=pytest.mark.once
        ),
        pytest.param(VGG, vgg_face.SIZE, marks=pytest.mark.once),
    ],
    ids=["small", "six", "vgg_face"],
)
def test_it_starts_at_the_mean_face_and_a_loss_reaches_every_parameter(
    options, image_size
):
    shape = (3, image_size, image_size, 3)
    images = jax.random.uniform(jax.random.key(1), shape).at[2].set(0.5)
    wanted = np.random.default_rng(2).normal(size=(3, 11)).astype(np.float32)

    @jax.jit
    def check(key):
        params = localiser.init_params(key, options, image_size)

        def loss(params):
            theta = localiser.localise(params, images, options)
            return jnp.sum(jnp.square(theta - wanted)), theta

        return jax.grad(loss, has_aux=True)(params)

    grads, theta = check(jax.random.key(0, impl="rbg"))  # which compiles in no time
    # VGG-Face sees colours of up to 255, and has few channels here to average over.
    assert 0.0 < jnp.abs(theta).max() < (0.5 if options.kind == "vgg_face" else 0.1)
    # Neither normalisation nor pooling takes away what tells images apart.
    spread = np.abs(theta[:, None] - theta[None]).max(-1)
    least = 1e-5 if options.kind == "small" else 0.0  # of VGG-Face's few channels here
    assert spread[np.triu_indices(3, 1)].min() > least
    for path, grad in jax.tree.flatten_with_path(grads)[0]:
        name = jax.tree_util.keystr(path)
        assert np.isfinite(grad).all(), name
        # Of every output of the layer, not just of one; ReLUs may be off.
        reached = jnp.abs(grad.reshape(-1, grad.shape[-1])).max(0) > 0.0
        assert reached.mean() > (0.3 if options.kind == "vgg_face" else 0.99), name


def test_the_layers_of_vgg_face_come_out_of_a_file(tmp_path):
    rng = np.random.default_rng(0)
    layers = np.empty((1, 15), object)
    kernels = {}
    for i, (name, shape) in enumerate(vgg_face.layer_shapes(VGG.width).items()):
        kernels[name] = rng.normal(size=shape).astype(np.float32)
        layer = {"name": name, "filters": kernels[name]}
        layers[0, i] = layer | {"biases": np.ones((1, shape[-1]), np.float32)}
    scipy.io.savemat(tmp_path / "vgg_face.mat", {"net": {"layers": layers}})
    shapes, _ = shapes_of(VGG, vgg_face.SIZE)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    found = localiser.with_vgg_face(params, tmp_path / "vgg_face.mat", VGG)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, params)
    network = found[localiser.NETWORK]
    assert not network["head"]["layer"]["kernel"].any()
    for name, kernel in kernels.items():
        np.testing.assert_array_equal(network["vgg_face"][name]["kernel"], kernel)
        np.testing.assert_array_equal(network["vgg_face"][name]["bias"], 1.0)
    with pytest.raises(ValueError, match="'small' has no layers"):
        localiser.with_vgg_face(params, tmp_path / "vgg_face.mat", SMALL)


@pytest.mark.once
def test_units_of_the_release_are_those_of_its_theta():
    """What its numbers mean, by `compat`: pixels, and powers of 0.99."""
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    params = localiser.init_params(jax.random.key(0), SMALL, 32)

    @jax.jit
    def both(params):
        theirs = dataclasses.replace(SMALL, release_units=True)
        return [localiser.localise(params, images, o) for o in (SMALL, theirs)]

    plain, found = both(params)
    camera = layers.Camera(scale=7.5, offset=(0.0, 0.0))
    start = jnp.array([0.0, 0.0, 0.0, 112.0, 112.0, -400.0])

    def ours(numbers):
        theta = layers.split(jnp.concatenate([start, jnp.zeros(5)]) + numbers)
        return layers.join(compat.to_default(theta, camera))

    expected = jax.vmap(ours)(plain) - ours(jnp.zeros(11))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - plain)[:, 3:6].max() > 1e-4


def test_six_numbers_are_orthonormalised_by_definition():
    columns = np.random.default_rng(0).normal(size=(50, 6))
    columns[0] = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    with jax.enable_x64():
        found = jax.jit(jax.vmap(localiser.rotation_from_six))(columns)
    np.testing.assert_allclose(found[0], 0.0, atol=1e-9)
    for vector, six in zip(np.asarray(found)[1:], columns[1:], strict=True):
        q, r = np.linalg.qr(six.reshape(2, 3).T)
        first, second = (q * np.sign(np.diag(r))).T
        matrix = np.stack([first, second, np.cross(first, second)], axis=1)
        angle = np.linalg.norm(vector)
        x, y, z = vector / angle
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        turned = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
        np.testing.assert_allclose(turned, matrix, atol=1e-6)


def test_six_numbers_have_finite_gradients_also_where_they_name_no_rotation():
    cases = jnp.array(
        [
            [1.0, 0, 0, 0, 1, 0],
            [0, 0, 0, 0, 0, 0],
            [1, 2, 3, 2, 4, 6],
            [1, 0, 0, 0, 0, 0],
        ]
    )
    rotation = jax.vmap(
        jax.value_and_grad(lambda x: localiser.rotation_from_six(x).sum())
    )
    for values in jax.jit(rotation)(cases):
        assert np.isfinite(values).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "large"}, "kind"),
        ({"rotation_head": "quaternion"}, "rotation_head"),
        ({"width": 0.0}, "width"),
        ({"coefficients": -1}, "coefficients"),
    ],
)
def test_wrong_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at least 32"):
        shapes_of(SMALL, 24)
    with pytest.raises(ValueError, match="224"):
        shapes_of(VGG, 112)
