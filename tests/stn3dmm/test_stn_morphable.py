"""Morphable models: the one that ships, mirrors, grids, what is checked and mended."""

import dataclasses

import numpy as np
import pytest
import stn_meshes

from unsup3d_jax.data.open_face import model as open_faces
from unsup3d_jax.stn3dmm import (
    embedding,
    model_checks,
    morphable,
    open_model,
    surface,
)
from unsup3d_jax.stn3dmm.coefficients import mirror_of_columns

FLIP = np.float32([-1, 1, 1])
NAMES = ("open", "open-pca40")


@pytest.fixture(scope="module")
def people():
    head = open_faces.load_model()
    seeds = open_faces.of_one_number(np.arange(50_000, 50_200))
    return head, open_faces.sample_people(head, seeds, asymmetry=1.0).coefficients


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_model_is_sound(name):
    model = morphable.load_model(name)
    assert model_checks.checked(model) is model
    raw = name == "open"
    assert (len(model.identity), len(model.expression)) == (
        (70, 24) if raw else (40, 0)
    )
    np.testing.assert_array_equal(model.mean[model.mirror] * FLIP, model.mean)
    for count, points in ((68, "ibug68"), (21, "aflw21")):
        at = model.landmarks[points].of(model.mean)
        assert at.shape == (count, 3)
        np.testing.assert_allclose(
            at[model.landmarks[points].flip] * FLIP, at, atol=1e-7
        )


def test_aflw_points_are_where_their_names_say():
    model = morphable.load_model("open")
    many, few = (model.landmarks[k].of(model.mean) for k in ("ibug68", "aflw21"))
    same = {0: 17, 6: 36, 8: 39, 11: 45, 12: 0, 13: 31, 14: 30, 16: 16, 17: 48, 20: 8}
    for one, other in same.items():
        np.testing.assert_array_equal(few[one], many[other])
    for eye, (left, right) in ((7, (36, 39)), (10, (42, 45))):
        middle = 0.5 * (many[left] + many[right])
        assert np.abs(few[eye] - middle)[:2].max() < 0.004  # metres
        assert few[eye, 2] > middle[2]  # on the eyeball
    np.testing.assert_allclose(few[18], 0.5 * (many[62] + many[66]), atol=1e-7)


@pytest.mark.parametrize("asymmetry, atol", [(1.0, 1e-7), (0.4, 2e-4)])
def test_alpha_of_open_faces_gives_their_shape(people, asymmetry, atol):
    head, coefficients = people
    model, ids = morphable.load_model("open"), open_model._stored()["ids"]
    whole = open_faces.basis(head, asymmetry=asymmetry)[:, ids]
    alpha = morphable.alpha_of(coefficients, asymmetry=asymmetry)
    some = slice(0, 20)
    truth = np.einsum("bc,cnd->bnd", coefficients[some], whole)
    ours = np.einsum("bc,cnd->bnd", alpha[some], model.basis)
    np.testing.assert_allclose(ours, truth, atol=atol)
    if asymmetry == 1.0:
        np.testing.assert_allclose((alpha**2).mean(), 1.0, atol=0.05)


def test_forty_components_hold_most_of_the_shape(people):
    head, coefficients = people
    model, ids = morphable.load_model("open-pca40"), open_model._stored()["ids"]
    truth = head.mean[ids] + np.einsum(
        "bc,cnd->bnd", coefficients, open_faces.basis(head, asymmetry=1.0)[:, ids]
    )
    alpha = morphable.alpha_of(coefficients, columns="pca40")
    np.testing.assert_allclose((alpha**2).mean(), 1.0, atol=0.1)
    left = truth - model.mean - np.einsum("bc,cnd->bnd", alpha, model.basis)
    share = (left**2).sum() / ((truth - model.mean) ** 2).sum()
    assert 0.02 < share < 0.045  # 3 % of the variance
    # The best there is: nothing of the rest lies along a column.
    along = np.einsum("bnd,cnd->bc", left, model.basis)
    assert np.abs(along).max() < 1e-4 * np.abs(model.basis**2).sum((1, 2)).max()
    # Each is symmetric or antisymmetric, and they come by size.
    mirror = mirror_of_columns(model.basis, model.mirror)
    np.testing.assert_allclose(np.abs(mirror), np.eye(40), atol=0.02)
    size = np.linalg.norm(model.basis.reshape(40, -1), axis=1)
    assert (np.diff(size) < 0).all()


@pytest.mark.once
def test_the_shipped_file_is_what_the_script_builds():
    with np.load(open_model.PATH) as shipped:
        built = open_model.build()
        assert built.keys() == set(shipped.files)
        for name, array in built.items():
            np.testing.assert_allclose(
                array, shipped[name], rtol=1e-3, atol=1e-5, err_msg=name
            )


@pytest.mark.parametrize("name", NAMES)
def test_alpha_through_the_mirror_is_the_mirrored_face(name):
    model = morphable.load_model(name)
    matrix = mirror_of_columns(model.basis, model.mirror)
    alpha = np.random.default_rng(0).normal(size=len(matrix))
    shape = model.mean + np.einsum("d,dnc->nc", alpha, model.basis)
    mirrored = model.mean + np.einsum("d,dnc->nc", matrix @ alpha, model.basis)
    gap = np.linalg.norm(mirrored - shape[model.mirror] * FLIP, axis=1)
    moved = np.linalg.norm(shape - model.mean, axis=1)
    # Not all of an expression's mirror image lies in the span of the 24.
    assert gap.max() < 5e-4 and np.sqrt((gap**2).mean() / (moved**2).mean()) < 0.02
    identity = len(model.identity)
    if name == "open":
        signs = np.diag([1.0] * 60 + [-1.0] * 10)
        np.testing.assert_allclose(matrix[:identity, :identity], signs, atol=1e-5)


def test_a_mirror_of_columns_that_know_none_is_none():
    model = stn_meshes.model()
    found = mirror_of_columns(model.basis, model.mirror)
    np.testing.assert_allclose(found, np.diag([1, -1, 1, -1, 1, -1]), atol=1e-5)
    noise = np.random.default_rng(0).normal(size=model.identity.shape)
    crooked = dataclasses.replace(model, identity=noise.astype(np.float32))
    assert mirror_of_columns(crooked.basis, model.mirror) is None
    assert mirror_of_columns(model.basis, None) is None
    assert mirror_of_columns(model.basis[:0], model.mirror).shape == (0, 0)


def _with_layout(model):
    layout, _ = embedding.embed(model.mean, model.faces, model.mirror)
    return dataclasses.replace(model, uv=layout)


def test_a_grid_keeps_landmarks_and_the_first_columns():
    model = _with_layout(stn_meshes.model())
    grid = morphable.grid_model(model, 9, landmarks="three", identity=2, expression=1)
    assert grid.basis.shape == (3, 81, 3) and grid.num_identity == 2
    assert (grid.size, grid.unit) == (9, 0.1)
    picked = np.concatenate([model.identity[:2], model.expression[:1]])
    points = model.landmarks["three"]
    np.testing.assert_array_equal(grid.landmark_mean, points.of(model.mean))
    np.testing.assert_array_equal(grid.landmark_basis, points.of(picked))
    np.testing.assert_array_equal(grid.landmark_flip, [1, 0, 2])
    np.testing.assert_allclose(grid.coefficient_mirror, np.diag([1, -1, 1]), atol=1e-5)
    # A mirrored alpha is a grid with its columns reversed.
    alpha = np.array([0.3, -0.7, 1.1])
    shape, flipped = (
        (grid.mean + np.einsum("d,dnc->nc", a, grid.basis)).reshape(9, 9, 3)
        for a in (alpha, grid.coefficient_mirror @ alpha)
    )
    np.testing.assert_allclose(flipped, shape[:, ::-1] * FLIP, atol=1e-6)


def test_a_grid_says_what_it_lacks():
    bare = stn_meshes.model()
    model = _with_layout(bare)
    for call, words in (
        (lambda: morphable.grid_model(bare, 9, landmarks="three"), "no UV layout"),
        (lambda: morphable.grid_model(model, 9), "no landmarks 'ibug68'; has three"),
        (lambda: morphable.grid_model(model, 1, landmarks="three"), "at least 2"),
        (
            lambda: morphable.grid_model(model, 9, landmarks="three", identity=9),
            "identity must be from 0 to the 4",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize("perspective", [0.0, 0.0875, 0.3])
def test_the_mean_face_is_centred_and_fills_the_image(perspective):
    grid = morphable.grid_model(_with_layout(stn_meshes.model()), 9, landmarks="three")
    grid = grid.replace(mean=grid.mean + np.float32([0.4, -0.2, 0.1]))
    camera = morphable.default_camera(grid, fill=0.6, perspective=perspective)
    x, y, z = camera.scale * np.asarray(grid.mean, float).T  # the camera, by hand
    shown = np.stack([x, y]) + np.array(camera.offset)[:, None]
    pixels = 50.0 + 50.0 * (shown / (1.0 - perspective * z)).T
    low, high = pixels.min(0), pixels.max(0)
    np.testing.assert_allclose(0.5 * (low + high), 50.0, atol=1e-3)
    np.testing.assert_allclose((high - low).max(), 60.0, atol=1e-3)
    with pytest.raises(ValueError, match="0 < fill <= 1"):
        morphable.default_camera(grid, fill=0.0)


# ---- checked and mended -------------------------------------------------------------


def _turned(model, matrix):
    """The model in other axes; its triangles keep their corners."""

    def turned(x):
        return (x @ np.asarray(matrix, np.float32).T).astype(np.float32)

    return dataclasses.replace(
        model,
        mean=turned(model.mean),
        identity=turned(model.identity),
        expression=turned(model.expression),
    )


def _same(one, other):
    for name in ("mean", "identity", "expression"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-6)
    area = surface.normals(one.mean, one.faces)
    np.testing.assert_allclose(
        area, surface.normals(other.mean, other.faces), atol=1e-6
    )


def test_inward_triangles_are_turned(caplog):
    model = stn_meshes.model()
    assert model_checks.checked(model) is model
    inward = dataclasses.replace(model, faces=model.faces[:, [0, 2, 1]])
    _same(model_checks.checked(inward), model)
    assert "bump: triangles were clockwise" in caplog.text


@pytest.mark.parametrize(
    "matrix",
    [
        [[-1, 0, 0], [0, 1, 0], [0, 0, -1]],  # looks back
        [[1, 0, 0], [0, 0, -1], [0, 1, 0]],  # z up
        [[-1, 0, 0], [0, -1, 0], [0, 0, 1]],  # upside down
        [[1, 0, 0], [0, 1, 0], [0, 0, -1]],  # left-handed
        [[0, 0, 1], [1, 0, 0], [0, -1, 0]],
    ],
)
def test_axes_are_told_by_the_landmarks(matrix, caplog):
    model = morphable.load_model("open")
    model = dataclasses.replace(
        model, identity=model.identity[:2], expression=model.expression[:1]
    )
    _same(model_checks.checked(_turned(model, matrix)), model)
    assert "became (x, y, z)" in caplog.text


def test_without_landmarks_a_face_that_looks_back_is_turned_about():
    model = dataclasses.replace(stn_meshes.model(), landmarks={})
    back = _turned(model, np.diag([-1, 1, -1]))
    _same(model_checks.checked(back), model)
    with pytest.raises(ValueError, match="the face looks along x"):
        model_checks.checked(_turned(model, [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]))


def test_a_bad_layout_is_left_out(caplog):
    model = _with_layout(stn_meshes.model())
    assert model_checks.checked(model).uv is not None
    wrong = dataclasses.replace(model, uv=np.float32(1) - model.uv[:, ::-1])
    assert model_checks.checked(wrong).uv is None
    assert "turns" in caplog.text and "left out" in caplog.text


def _changed(**changes):
    return dataclasses.replace(stn_meshes.model(), **changes)


def _spoilt(array, value):
    array = array.copy()
    array.flat[0] = value
    return array


def test_what_is_wrong_is_named():
    model = stn_meshes.model()
    points = model.landmarks["three"]
    turned = np.roll(np.arange(len(model.mean), dtype=np.int32), 1)

    def other(**changes):
        return {"landmarks": {"a": dataclasses.replace(points, **changes)}}

    for changes, words in (
        ({"mean": _spoilt(model.mean, np.nan)}, "mean must hold finite"),
        ({"identity": _spoilt(model.identity, np.inf)}, "identity must hold finite"),
        ({"faces": _spoilt(model.faces, -1)}, "faces must number vertices"),
        ({"faces": _spoilt(model.faces, 10_000)}, "faces must number vertices"),
        ({"faces": model.faces[:0]}, "needs triangles"),
        ({"unit": 0.0}, "unit must be"),
        ({"unit": float("nan")}, "unit must be"),
        ({"mirror": turned}, "mirror must lead back"),
        ({"mean": 0 * model.mean}, "no area"),
        (other(weights=points.weights / 2), "landmarks a: the weights"),
        (other(ids=points.ids - 10_000), "landmarks a must number vertices"),
        (other(flip=np.int32([1, 2, 0])), "landmarks a: flip must lead back"),
        (other(flip=np.int32([0, 1, 3])), "landmarks a, flip must number"),
    ):
        with pytest.raises(ValueError, match=words):
            model_checks.checked(_changed(**changes))


def test_a_mirror_is_found_where_there_is_one():
    points, _, mirror = stn_meshes.symmetric_disc(2)
    np.testing.assert_array_equal(model_checks.find_mirror(points), mirror)
    points[3] += 0.01
    assert model_checks.find_mirror(points) is None
