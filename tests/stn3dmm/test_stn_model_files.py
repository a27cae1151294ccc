"""Files of models: round trips, one known vertex of each format, and damage."""

import dataclasses
import io as text_io
import sys

import h5py
import numpy as np
import pytest
import stn_meshes
from scipy import io

from unsup3d_jax.errors import UserError
from unsup3d_jax.stn3dmm import ict_files, morphable, surface

COEFFICIENTS = np.array([0.5, -1.25, 2.0])
DEVIATIONS = np.array([3.0, 2.0, 0.5])


@pytest.fixture
def bump():
    return stn_meshes.model(identity=3, expression=2)


def _flat(columns):
    """(3 n, d) of (d, n, 3), x, y, z of each vertex in turn."""
    return columns.reshape(len(columns), -1).T.astype(np.float64)


def _expected(model, vertex, expression=()):
    """Position of a vertex, by hand: mean + sum of column * deviation * coefficient."""
    moved = sum(
        c * d * column[vertex].astype(float)
        for c, d, column in zip(COEFFICIENTS, DEVIATIONS, model.identity, strict=True)
    )
    for c, column in zip(expression, model.expression, strict=False):
        moved = moved + c * column[vertex].astype(float)
    return model.mean[vertex].astype(float) + moved


def _vertex(model, vertex, expression=()):
    alpha = np.concatenate([COEFFICIENTS, expression])
    return model.mean[vertex] + alpha @ model.basis[: len(alpha), vertex]


# ---- our own ------------------------------------------------------------------------


@pytest.mark.parametrize("bare", [False, True])
def test_a_model_comes_back_as_it_was(tmp_path, bump, bare):
    path = tmp_path / "face.npz"
    model = dataclasses.replace(
        morphable.load_model("open"), identity=np.zeros((0, 2188, 3), np.float32)
    )
    if bare:
        model = dataclasses.replace(bump, mirror=None, landmarks={}, licence="")
    morphable.save_model(path, model)
    back = morphable.load_model(path)
    for field in dataclasses.fields(model):
        one, other = getattr(model, field.name), getattr(back, field.name)
        if field.name == "landmarks":
            assert one.keys() == other.keys()
            for name in one:
                for part in ("ids", "weights", "flip"):
                    np.testing.assert_array_equal(
                        getattr(one[name], part), getattr(other[name], part)
                    )
        elif isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other


def _arrays(model, tmp_path):
    path = tmp_path / "sound.npz"
    morphable.save_model(path, model)
    with np.load(path) as stored:
        return {k: stored[k] for k in stored.files}


def test_a_file_that_is_wrong_is_refused_by_name(tmp_path, bump):
    sound, path = _arrays(bump, tmp_path), tmp_path / "bad.npz"
    for changes, words in (
        ({"mean": None}, "'mean' is missing"),
        ({"faces": None}, "'faces' is missing"),
        ({"identity": sound["identity"][:, :5]}, "'identity' must have shape"),
        ({"faces": sound["faces"][:, :2]}, "'faces' must have shape"),
        ({"faces": sound["faces"] + 0.5}, "'faces' must hold whole numbers"),
        (
            {"faces": sound["faces"].astype(np.int64) + 2**40},
            "'faces' must hold whole numbers",
        ),
        ({"faces": sound["faces"] + 1000}, "faces must number vertices"),
        ({"mean": sound["mean"] * np.nan}, "'mean' must hold finite"),
        ({"mean": np.float32(3)}, "'mean' must have axes"),
        ({"mirror": sound["mirror"][:-1]}, "'mirror' must have shape"),
        ({"unit": np.array([1.0, 2.0])}, "'unit' must have shape"),
        ({"name": np.zeros(20_000, np.uint8)}, "'name' must be a text"),
        ({"landmarks.three.flip": None}, "'landmarks.three.flip' must have shape"),
        ({"landmarks.three.ids": None}, "'landmarks.three.ids' is missing"),
        ({"mean": np.array([{}] * 4, object)}, "'mean' is missing"),
    ):
        merged = {k: v for k, v in {**sound, **changes}.items() if v is not None}
        np.savez(path, **merged)
        with pytest.raises(UserError, match="bad.npz") as caught:
            morphable.load_model(path)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def _make(kind, tmp_path, model):
    if kind == ".npz":
        path = tmp_path / "face.npz"
        morphable.save_model(path, model)
        return path
    return {".mat": _write_mat, ".h5": _write_h5}[kind](tmp_path, model)


@pytest.mark.parametrize("kind", [".npz", ".mat", ".h5"])
def test_a_damaged_file_never_ends_in_a_trace(kind, tmp_path, bump):
    path = _make(kind, tmp_path, bump)
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(12):
        damaged = bytearray(sound)
        if trial % 3 == 0:
            del damaged[int(rng.integers(len(sound))) :]
        else:
            for place in rng.integers(0, len(sound) if trial % 3 == 1 else 600, 8):
                damaged[place] = int(rng.integers(256))
        path.write_bytes(bytes(damaged))
        try:
            morphable.load_model(path)
        except UserError as error:
            assert path.name in str(error) and "\n" not in str(error)


def test_what_is_no_model_is_said(tmp_path):
    other = tmp_path / "face.ply"
    other.write_text("ply")
    with pytest.raises(UserError, match="face.ply: is no morphable model"):
        morphable.load_model(other)
    for name in ("none.npz", "none.mat", "none.h5"):
        with pytest.raises(UserError, match=f"{name}: no such file"):
            morphable.load_model(tmp_path / name)


# ---- Basel --------------------------------------------------------------------------


def _write_mat(tmp_path, model, **changes):
    """As Basel's of 2009: micrometres, deviations, triangles from 1, clockwise."""
    path = tmp_path / "01_MorphableModel.mat"
    arrays = {
        "shapeMU": 1e3 * _flat(model.mean[None]),
        "shapePC": 1e3 * _flat(model.identity),
        "shapeEV": DEVIATIONS[:, None],
        "texMU": np.zeros((len(model.mean) * 3, 1)),
        "tl": model.faces[:, [0, 2, 1]].astype(np.float64) + 1,
    }
    arrays = {k: v for k, v in {**arrays, **changes}.items() if v is not None}
    io.savemat(path, arrays, do_compression=True)
    return path


def test_basel_2009_gives_one_known_vertex(tmp_path, bump, caplog):
    """Deviations, from 1, micrometres: here the bump's numbers are millimetres."""
    model = morphable.load_model(_write_mat(tmp_path, bump))
    for vertex in (0, 17):
        np.testing.assert_allclose(
            _vertex(model, vertex), _expected(bump, vertex), rtol=1e-5, atol=1e-6
        )
    assert model.unit == 1e-3 and not len(model.expression)
    np.testing.assert_array_equal(np.sort(model.faces), np.sort(bump.faces))
    np.testing.assert_array_equal(model.mirror, bump.mirror)
    assert "clockwise" in caplog.text  # as that model's are
    normal = surface.normals(model.mean, model.faces)
    assert normal[:, 2].min() > 0


def test_a_wrong_mat_is_refused_by_name(tmp_path, bump):
    triangles = bump.faces + 1.0
    for changes, words in (
        ({"shapeMU": None}, "'shapeMU' is missing"),
        ({"shapeEV": DEVIATIONS[:2, None]}, "'shapeEV' must have shape"),
        ({"shapePC": np.ones((6, 3))}, "'shapePC' must have shape"),
        ({"tl": triangles - 1}, "faces must number vertices"),
        ({"tl": triangles + 0.5}, "'tl' must hold whole numbers"),
        ({"tl": triangles.T}, "'tl' must have shape"),
        ({"shapeMU": {"a": 1}}, "'shapeMU' must hold numbers"),
        ({"tl": "faces"}, "'tl' must hold numbers"),
    ):
        path = _write_mat(tmp_path, bump, **changes)
        with pytest.raises(UserError, match="01_MorphableModel.mat") as caught:
            morphable.load_model(path)
        assert words in str(caught.value)


def test_a_wrong_kind_of_numbers_in_a_mat_is_refused(tmp_path, bump):
    """A byte at which SciPy's reader may end the process."""
    path = _write_mat(tmp_path, bump)
    arrays = io.loadmat(path, variable_names=["shapeMU", "shapePC", "shapeEV", "tl"])
    io.savemat(path, {k: v for k, v in arrays.items() if k[0] != "_"})
    data = bytearray(path.read_bytes())
    data[data.index(arrays["shapePC"].tobytes("F")) - 8] = 10
    path.write_bytes(data)
    with pytest.raises(UserError, match="01_MorphableModel.mat.*unknown kind"):
        morphable.load_model(path)


def _write_h5(tmp_path, model, change=None):
    """As Basel's of 2017 and 2019: millimetres, variances, triangles from 0."""
    path = tmp_path / "model2017-1_tiny.h5"
    neutral = 0.01 * np.arange(model.mean.size)
    with h5py.File(path, "w") as file:
        for part, mean, columns, deviation in (
            ("shape", model.mean.ravel() - neutral, model.identity, DEVIATIONS),
            ("expression", neutral, model.expression, np.array([1.0, 4.0])),
        ):
            file[f"{part}/model/mean"] = mean
            file[f"{part}/model/pcaBasis"] = _flat(columns)
            file[f"{part}/model/pcaVariance"] = deviation**2
        file["shape/representer/cells"] = model.faces.T
        file["shape/representer/points"] = model.mean.T
        if change:
            change(file)
    return path


def test_basel_2017_gives_one_known_vertex(tmp_path, bump):
    """Variances, from 0, millimetres; the mean of the expressions counts."""
    model = morphable.load_model(_write_h5(tmp_path, bump))
    weights = np.array([0.7, -0.3])
    for vertex in (0, 17):
        np.testing.assert_allclose(
            _vertex(model, vertex, weights),
            _expected(bump, vertex, weights * [1.0, 4.0]),
            rtol=1e-5,
            atol=1e-5,
        )
    assert model.unit == 1e-3 and len(model.expression) == 2
    np.testing.assert_array_equal(model.faces, bump.faces)


def _replaced(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


def test_a_wrong_h5_is_refused_by_name(tmp_path, bump):
    secret = tmp_path / "other.h5"
    with h5py.File(secret, "w") as file:
        file["secret"] = np.ones(bump.mean.size)
    (tmp_path / "raw").write_bytes(bytes(8 * bump.mean.size))
    mean = "shape/model/mean"

    def outside(file):
        del file[mean]
        file["shape/model"].create_dataset(
            "mean",
            (bump.mean.size,),
            "f8",
            external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)],
        )

    def virtual(file):
        layout = h5py.VirtualLayout((bump.mean.size,), "f8")
        layout[:] = h5py.VirtualSource(str(secret), "secret", (bump.mean.size,))
        del file[mean]
        file["shape/model"].create_virtual_dataset("mean", layout)

    def endless(file):
        del file[mean]
        file["shape/model"].create_dataset("mean", (2**40,), "f8", chunks=(2**10,))

    for change, words in (
        (lambda file: file.pop(mean), f"{mean!r} is missing"),
        (_replaced("shape/model/pcaVariance", -DEVIATIONS), "found negative"),
        (_replaced("shape/model/pcaVariance", DEVIATIONS[:2]), "must have shape"),
        (_replaced("shape/representer/cells", bump.faces), "must have shape"),
        (_replaced("shape/representer/cells", bump.faces.T + 999), "must number"),
        (_replaced("expression/model/mean", np.ones(5)), "must have shape"),
        (_replaced(mean, [b"text"] * 3), "must hold numbers"),
        (_replaced(mean, h5py.ExternalLink(str(secret), "secret")), "another place"),
        (_replaced(mean, h5py.SoftLink("/shape/representer")), "another place"),
        (outside, "lies in another file"),
        (virtual, "lies in another file"),
        (endless, "expands to more than"),
    ):
        path = _write_h5(tmp_path, bump, change)
        with pytest.raises(UserError, match="model2017-1_tiny.h5") as caught:
            morphable.load_model(path)
        assert words in str(caught.value)


def test_without_h5py_the_extra_is_named(tmp_path, bump, monkeypatch):
    path = _write_h5(tmp_path, bump)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install 'unsup3d_jax\[h5\]'"):
        morphable.load_model(path)


# ---- ICT ----------------------------------------------------------------------------


def _obj(points, faces=(), *, slashes=True):
    out = text_io.StringIO()
    out.write("# a comment\nmtllib none.mtl\n")
    for x, y, z in points.tolist():
        out.write(f"v {x!r} {y!r} {z!r}\nvn 0 0 1\n")
    for polygon in faces:
        words = [f"{i + 1}/{i + 1}/1" if slashes else str(i + 1) for i in polygon]
        out.write("f " + " ".join(words) + "\n")
    return out.getvalue()


def _write_ict(tmp_path, model):
    folder = tmp_path / "FaceXModel"
    folder.mkdir()
    neutral = 10 * model.mean.astype(float)  # centimetres for a bump of 20
    (folder / ict_files.NEUTRAL).write_text(_obj(neutral, model.faces.tolist()))
    names = ["identity000", "identity001", "identity002", "jawOpen", "mouthSmile_L"]
    for name, column in zip(names, model.basis, strict=True):
        moved = neutral + column.astype(float)
        (folder / f"{name}.obj").write_text(_obj(moved, model.faces.tolist()))
    return folder


def test_a_folder_of_meshes_gives_differences_to_the_neutral_one(tmp_path, bump):
    model = morphable.load_model(_write_ict(tmp_path, bump))
    np.testing.assert_allclose(model.mean, 10 * bump.mean, rtol=1e-6)
    np.testing.assert_allclose(model.identity, bump.identity, atol=1e-5)
    np.testing.assert_allclose(model.expression, bump.expression, atol=1e-5)
    np.testing.assert_array_equal(model.faces, bump.faces)
    assert model.unit == 1e-2 and model.mirror is not None


def test_polygons_become_fans_and_may_count_back():
    lines = [*["v 0 0 0"] * 4, "f -4 -3 -2 -1", "f 1 2 3"]
    found = ict_files._triangles(lines)
    np.testing.assert_array_equal(found, [[0, 1, 2], [0, 2, 3], [0, 1, 2]])


def test_a_wrong_mesh_is_refused_by_name(tmp_path, bump):
    folder = _write_ict(tmp_path, bump)
    neutral = (folder / ict_files.NEUTRAL).read_text()
    for name, text, words in (
        ("jawOpen", _obj(bump.mean[:-1]), "has "),
        ("jawOpen", "v 1 2\n", "not a readable OBJ mesh"),
        ("jawOpen", "v 1 2 nan\n", "not a readable OBJ mesh"),
        ("jawOpen", "", "not a readable OBJ mesh"),
        (ict_files.NEUTRAL[:-4], _obj(bump.mean), "no polygons"),
        (ict_files.NEUTRAL[:-4], neutral + "f 1 2 99999\n", "beyond the"),
        (ict_files.NEUTRAL[:-4], neutral + "f 1 2 x\n", "not a readable OBJ mesh"),
    ):
        path = folder / f"{name}.obj"
        before = path.read_text()
        path.write_text(text)
        with pytest.raises(UserError, match=f"{name}.obj") as caught:
            morphable.load_model(folder)
        assert words in str(caught.value)
        path.write_text(before)
    for path in folder.glob("identity*"):
        path.unlink()
    with pytest.raises(UserError, match="no meshes named identity000.obj"):
        morphable.load_model(folder)
    with pytest.raises(UserError, match="no such file"):
        morphable.load_model(tmp_path)


def test_the_landmarks_of_the_kit_are_paired():
    assert len(set(ict_files.LANDMARKS)) == 68
    assert max(ict_files.LANDMARKS) < ict_files.NUM_FACE
