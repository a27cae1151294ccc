"""Keypoints on disk: three layouts, the crop, and the score of a known surface."""

import numpy as np
import pytest
from PIL import Image

from unsup3d_jax.errors import UserError
from unsup3d_jax.experiments import keypoints
from unsup3d_jax.unsup3d.options import options_from_config

COUNT, K = 4, 5


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    uv = rng.uniform(10, 50, (COUNT, K, 2))
    return np.concatenate([uv, rng.uniform(0, 9, (COUNT, K, 1))], axis=-1)


def _photo(path, seed=0, size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 255, (*size[::-1], 3)).astype(np.uint8)).save(path)


def _csv(path, points, header=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(map(repr, map(float, row))) for row in points]
    path.write_text(header + "\n".join(lines) + "\n")


def test_csv_beside_each_image(tmp_path, points):
    for i in range(COUNT):
        _photo(tmp_path / f"a/{i}.png", i)
        _csv(tmp_path / f"a/{i}.csv", points[i], header="u,v,depth\n# hand-made\n")
    _photo(tmp_path / "a/without.png")
    files, found = keypoints.find(tmp_path, "csv")
    assert [f.name for f in files] == ["0.png", "1.png", "2.png", "3.png"]
    np.testing.assert_array_equal(found, points)


def test_npz_names_its_images(tmp_path, points):
    names = [f"{i}.png" for i in (2, 0, 1, 3)]
    for i, name in enumerate(names):
        _photo(tmp_path / name, i)
    np.savez(tmp_path / "keypoints.npz", names=names, keypoints=points)
    files, found = keypoints.find(tmp_path, "npz")
    assert [f.name for f in files] == names
    np.testing.assert_array_equal(found, points)
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match="1.png, which does not exist"):
        keypoints.find(tmp_path, "npz")


def test_3dfaw_folders_and_its_test_list(tmp_path, points):
    for i in range(COUNT):
        _photo(tmp_path / f"valid_img/{i}.jpg", i)
        _csv(tmp_path / f"valid_lm/{i}_lm.csv", points[i])
    lines = ["0,valid,center", "1,test,left", "3,test,right"]
    (tmp_path / "list_valid_test.txt").write_text("\n".join(lines) + "\n")
    files, found = keypoints.find(tmp_path, "3dfaw")
    assert len(files) == COUNT
    files, found = keypoints.find(tmp_path, "3dfaw", split="test")
    assert [f.stem for f in files] == ["1", "3"]
    np.testing.assert_array_equal(found, points[[1, 3]])
    with pytest.raises(UserError, match="train_img"):
        keypoints.find(tmp_path, "3dfaw", split="train")


@pytest.mark.parametrize(
    "text, words",
    [
        ("1,2\n", "line 1: need u,v,depth"),
        ("u,v,z\n1,2,x\n", "line 2"),
        ("1,2,nan\n", "line 1"),
        ("# nothing\n", "no line"),
    ],
)
def test_a_bad_table_is_named(tmp_path, text, words):
    _photo(tmp_path / "0.png")
    (tmp_path / "0.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        keypoints.find(tmp_path, "csv")


def test_other_mistakes_are_named(tmp_path, points):
    with pytest.raises(UserError, match="not a folder"):
        keypoints.find(tmp_path / "none", "csv")
    with pytest.raises(UserError, match="no image has a .csv"):
        keypoints.find(tmp_path, "csv")
    with pytest.raises(UserError, match="keypoints.npz"):
        keypoints.find(tmp_path, "npz")
    with pytest.raises(UserError, match="--layout"):
        keypoints.find(tmp_path, "mat")
    _photo(tmp_path / "0.png")
    _photo(tmp_path / "1.png")
    _csv(tmp_path / "0.csv", points[0])
    _csv(tmp_path / "1.csv", points[1, :3])
    with pytest.raises(UserError, match="holds 3 keypoints"):
        keypoints.find(tmp_path, "csv")


def test_keypoints_follow_the_crop_and_the_resize():
    """A white square drawn in the file lies where its moved corners say."""
    width, height, size = 120, 80, 32
    crop = (10, 30, 64, 64)
    pixels = np.zeros((height, width), np.uint8)
    pixels[30:46, 50:66] = 255
    image = Image.fromarray(pixels).crop((30, 10, 94, 74))
    small = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    corners = np.array([[49.5, 29.5, 1.0], [65.5, 45.5, 2.0]])  # outer edges
    moved = keypoints.to_model_pixels(
        corners, (width, height), crop=crop, image_size=size
    )
    np.testing.assert_allclose(moved[:, 2], [1, 2])
    rows, columns = np.where(small > 127)
    np.testing.assert_allclose(moved[0, :2], [columns.min() - 0.5, rows.min() - 0.5])
    np.testing.assert_allclose(moved[1, :2], [columns.max() + 0.5, rows.max() + 0.5])


def test_depth_is_read_where_the_keypoints_are(tmp_path, points, monkeypatch):
    """With a surface that is known: depth grows with u, in the cropped frame."""
    from bust import config_of

    options = options_from_config(config_of(32))
    files = [tmp_path / f"{i}.png" for i in range(COUNT)]
    for i, file in enumerate(files):
        _photo(file, i, size=(80, 64))
    points[..., 0] += 8  # the largest centred square starts at column 8
    points[..., 2] = 3 * points[..., 0]
    points[1, 0, 0] = 2.0  # beside it

    def surface(params, image, where, options):
        return np.asarray(where[..., 0])

    monkeypatch.setattr(keypoints, "_depth_at", surface)
    got = keypoints.score({}, options, files, points, crop=())
    assert got["left_out"] == 1 and got["images"] == COUNT - 1
    np.testing.assert_allclose(got["sum"], K, rtol=1e-4)
    with pytest.raises(UserError, match="a correlation needs two"):
        keypoints.score({}, options, files[:1], points[:1], crop=())


def test_depth_is_that_of_the_turned_face(monkeypatch):
    """The nose of a known head, turned to either side, is nearest where it went."""
    import jax
    from bust import NEAREST, make

    factors, options = make(32)
    monkeypatch.setattr(keypoints.model, "decompose", lambda *a: factors)
    v, u = np.mgrid[:32, :32].astype(np.float32)
    everywhere = np.tile(np.stack([u, v], -1).reshape(1, -1, 2), (2, 1, 1))
    read = jax.jit(keypoints._depth_at.__wrapped__, static_argnames="options")
    depth = np.asarray(read({}, np.zeros((2, 32, 32, 3)), everywhere, options=options))
    pitch, yaw = np.asarray(factors.view[:, 0]), np.asarray(factors.view[:, 1])
    nearest = 1 - (1 - NEAREST) * np.cos(pitch) * np.cos(yaw)
    np.testing.assert_allclose(depth.min(axis=1), nearest, atol=3e-3)
    at = u.ravel()[depth.argmin(axis=1)] - 15.5
    assert np.all(np.abs(at) > 1) and at[0] * at[1] < 0


def test_the_command_says_what_is_missing(tmp_path, capsys):
    config = "configs/folder.py"
    flags = [f"--config={config}", f"--input={tmp_path}", f"--workdir={tmp_path}"]
    assert keypoints.main(flags) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "no image has a .csv" in err
