"""Files of a reconstruction, read back: names, axes, windings, errors."""

import json
import shutil
import struct
import subprocess
from pathlib import Path

import bust
import imageio_ffmpeg
import jax
import numpy as np
import pytest
import trimesh
from PIL import Image

from unsup3d_jax.errors import UserError
from unsup3d_jax.show import video
from unsup3d_jax.unsup3d import export, model, reconstruct_files
from unsup3d_jax.unsup3d.options import options_from_config

SIZE = 32
MAPS = {
    "input": (SIZE, SIZE, 3),
    "canon_depth": (SIZE, SIZE),
    "canon_albedo": (SIZE, SIZE, 3),
    "canon_image": (SIZE, SIZE, 3),
    "canon_normal": (SIZE, SIZE, 3),
    "canon_shading": (SIZE, SIZE),
    "recon_depth": (SIZE, SIZE),
    "recon_image": (SIZE, SIZE, 3),
    "recon_image_flip": (SIZE, SIZE, 3),
    "recon_mask": (SIZE, SIZE),
    "conf_sigma": (SIZE, SIZE),
    "conf_sigma_flip": (SIZE, SIZE),
    "conf_sigma_perceptual": (SIZE // 4, SIZE // 4),
    "conf_sigma_perceptual_flip": (SIZE // 4, SIZE // 4),
}
FILES = {f"{name}.png" for name in MAPS} | {
    "factors.npz",
    "panel.png",
    "symmetry.png",
    "mesh.glb",
    "mesh.obj",
    "mesh.mtl",
    "mesh.png",
    "turntable.mp4",
    "relight.mp4",
}


def first(tree):
    return jax.tree.map(lambda a: a[0], tree)


@pytest.fixture(scope="module")
def head():
    """One decomposed image of the head, turned by +25 degrees."""
    factors, options = bust.make(SIZE)
    reconstruct = jax.jit(model.reconstruct, static_argnames="options")
    reconstruction = reconstruct(factors, options=options)
    image = np.asarray(reconstruction.plain.image)[0]
    return np.clip(image, 0, 1), first(factors), first(reconstruction), options


@pytest.fixture(scope="module")
def arrays(head):
    return export.named_arrays(*head[:3])


@pytest.fixture(scope="module")
def folder(head, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "head"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "TURNTABLE_FRAMES", 4)
        patch.setattr(video, "RELIGHT_FRAMES", 4)
        export.export(path, *head)
    return path


def test_folder_holds_every_file_and_nothing_else(folder):
    assert {p.name for p in folder.iterdir()} == FILES
    for name, shape in MAPS.items():
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.size == (shape[1], shape[0])


def test_factors_have_the_public_names_shapes_and_type(folder, head):
    with np.load(folder / "factors.npz") as stored:
        shapes = {name: stored[name].shape for name in stored.files}
        assert {stored[name].dtype for name in stored.files} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(stored["canon_depth"], head[1].canon_depth)
        np.testing.assert_array_equal(stored["recon_depth"], head[2].plain.depth)
        np.testing.assert_array_equal(stored["canon_image"], head[2].canonical.image)
        np.testing.assert_array_equal(
            stored["conf_sigma_flip"], head[1].conf_sigma_flip
        )
        assert stored["canon_image"].max() > 1.0  # lit above white, not clipped
        assert set(np.unique(stored["recon_mask"])) == {0.0, 1.0}
    assert shapes == MAPS | {"light": (5,), "view": (6,)}


def test_model_without_confidence_leaves_its_maps_out(head):
    image, factors, reconstruction, _ = head
    bare = factors.replace(
        conf_sigma=None,
        conf_sigma_flip=None,
        conf_sigma_perceptual=None,
        conf_sigma_perceptual_flip=None,
    )
    names = set(export.named_arrays(image, bare, reconstruction))
    assert names == {n for n in MAPS if "conf" not in n} | {"light", "view"}


def test_depth_picture_is_bright_at_the_nose(folder):
    depth = np.asarray(Image.open(folder / "canon_depth.png").convert("L"))
    row, column = np.unravel_index(np.argmax(depth), depth.shape)
    assert 14 <= column <= 17 and 14 <= row <= 20


# --- mesh -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def glb(folder):
    return trimesh.load(folder / "mesh.glb", force="mesh", process=False)


def colour_at(picture, uv):
    """The texture's colour at coordinates with (0, 0) at the lower left."""
    pixels = np.asarray(picture.convert("RGB"))
    h, w = pixels.shape[:2]
    column, row = int(uv[0] * w), int((1 - uv[1]) * h)
    return pixels[min(row, h - 1), min(column, w - 1)] / 255.0


def test_face_of_the_mesh_looks_along_z_with_y_up(glb):
    tip = glb.vertices[np.argmax(glb.vertices[:, 2])]
    # The tip of the nose, at the middle of the image; its depth was NEAREST.
    np.testing.assert_allclose(tip[2], 1.0 - bust.NEAREST, atol=3e-3)
    assert abs(tip[0]) < 5e-3 and abs(tip[1]) < 0.03
    # 10 degrees at 1 m: the mesh is about as wide as the image, 0.175 m.
    np.testing.assert_allclose(np.ptp(glb.vertices[:, 1]), 0.18, atol=0.01)


def stored(path):
    """The document of a .glb file and a function that reads an accessor."""
    data = path.read_bytes()
    assert data[:4] == b"glTF"
    (length,) = struct.unpack("<I", data[12:16])
    document, body = json.loads(data[20 : 20 + length]), data[28 + length :]

    def read(index):
        accessor = document["accessors"][index]
        view = document["bufferViews"][accessor["bufferView"]]
        start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
        values = np.frombuffer(body, np.float32, 3 * accessor["count"], start)
        return values.reshape(-1, 3)

    return document, read


def test_triangles_and_normals_face_outward(glb, folder):
    corners = glb.vertices[glb.faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (cross[:, 2] > 0).all()  # a depth map folds nowhere
    # As stored: trimesh would compute normals that the file lacks.
    document, read = stored(folder / "mesh.glb")
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    np.testing.assert_allclose(read(attributes["POSITION"]), glb.vertices, atol=1e-6)
    normals = read(attributes["NORMAL"])
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0, atol=1e-4)
    face = cross / np.linalg.norm(cross, axis=1, keepdims=True)
    agree = np.einsum("fc,fc->f", face, normals[glb.faces].mean(1))
    assert np.median(agree) > 0.95


def test_texture_has_the_hair_on_top_and_the_red_cheek_at_negative_x(glb):
    picture = glb.visual.material.baseColorTexture
    half = 0.0875  # of the mesh's width and height, metres

    def colour(x, y):
        distance = np.hypot(
            glb.vertices[:, 0] - x * half, glb.vertices[:, 1] - y * half
        )
        return colour_at(picture, glb.visual.uv[np.argmin(distance)])

    cheek, hair, chin = colour(-0.4, -0.15), colour(0, 0.7), colour(0, -0.8)
    assert cheek[0] > 0.8 and cheek[1] < 0.2
    assert hair.max() < 0.3
    assert chin[1] > 0.6 and chin[0] < 0.3
    assert colour(0.4, -0.15)[1] > 0.5  # the other cheek is not red


def test_glb_is_rough_double_sided_and_stores_its_normals(folder, head):
    document, _ = stored(folder / "mesh.glb")
    (material,) = document["materials"]
    assert (
        material["doubleSided"]
        and "baseColorTexture" in material["pbrMetallicRoughness"]
    )
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0.0
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    assert {"POSITION", "NORMAL", "TEXCOORD_0"} <= set(attributes)
    count = document["accessors"][attributes["POSITION"]]["count"]
    assert count == SIZE * (SIZE - 4)  # without the clamped border


def test_obj_reads_back_as_the_same_mesh_with_its_texture(folder, glb):
    mesh = trimesh.load(folder / "mesh.obj", force="mesh", process=False)
    assert mesh.faces.shape == glb.faces.shape
    np.testing.assert_allclose(
        mesh.vertices[mesh.faces[::7]], glb.vertices[glb.faces[::7]], atol=2e-6
    )
    text = (folder / "mesh.mtl").read_text()
    assert "map_Kd mesh.png" in text and (folder / "mesh.obj").read_text().startswith(
        "mtllib mesh.mtl"
    )
    np.testing.assert_allclose(
        mesh.visual.uv[mesh.faces[::7]], glb.visual.uv[glb.faces[::7]], atol=1e-5
    )


# --- videos and symmetry --------------------------------------------------------


@pytest.mark.parametrize("name", ["turntable", "relight"])
def test_video_decodes_to_its_frames(folder, name):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error"]
    command += ["-i", str(folder / f"{name}.mp4"), "-f", "rawvideo"]
    command += ["-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(-1, 256, 512, 3)
    assert len(frames) == 4
    assert frames.std(axis=0).max() > 20  # something moves
    assert (
        b"yuv420p"
        in subprocess.run(
            [command[0], "-i", str(folder / f"{name}.mp4")], capture_output=True
        ).stderr
    )


def test_symmetry_line_follows_the_view(arrays, head):
    scene = head[3].scene
    pixels, seen = export.symmetry_line(
        arrays | {"view": np.zeros(6, np.float32)}, scene
    )
    np.testing.assert_allclose(pixels[:, 0], (SIZE - 1) / 2, atol=1e-3)
    pixels, seen = export.symmetry_line(arrays, scene)
    nose = np.argmin(np.abs(pixels[:, 1] - 18))
    assert seen.mean() > 0.8 and pixels[nose, 0] < 12  # yaw +25: nose to the left


def test_symmetry_line_hides_behind_the_surface(arrays, head):
    near = arrays | {"recon_depth": np.full((SIZE, SIZE), 0.9, np.float32)}
    assert not export.symmetry_line(near, head[3].scene)[1].any()


def test_asymmetry_is_where_the_mirrored_sigma_is_larger(arrays):
    heat = export.asymmetry(arrays)
    larger = arrays["conf_sigma_flip"] > 0.5
    mask = arrays["recon_mask"] > 0.5
    assert heat[larger & mask].min() > 0.9 and heat[~larger | ~mask].max() == 0.0
    swapped = arrays | {"conf_sigma": arrays["conf_sigma_flip"]}
    assert export.asymmetry(swapped).max() == 0.0
    empty = arrays | {"recon_mask": np.zeros_like(arrays["recon_mask"])}
    assert export.asymmetry(empty).max() == 0.0


def test_asymmetry_without_confidence_compares_the_reconstructions(arrays):
    bare = {k: v for k, v in arrays.items() if "conf" not in k}
    heat = export.asymmetry(bare)
    red = (arrays["recon_image"][..., 0] > 0.6) & (arrays["recon_image"][..., 1] < 0.2)
    assert heat[red & (arrays["recon_mask"] > 0.5)].mean() > 0.5


# --- photos in, folders out -----------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    config = bust.config_of(SIZE)
    options = options_from_config(config)
    shapes = jax.eval_shape(
        lambda key: model.init_params(key, options), jax.random.key(0)
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: rng.normal(0, 0.05, s.shape).astype(np.float32), shapes
    )
    return config, params


@pytest.fixture
def exported(monkeypatch):
    """Records what would be exported instead of writing it."""
    calls = []
    monkeypatch.setattr(export, "export", lambda *a: calls.append(a))
    return calls


def save_photo(path, size=(40, 40), colour=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_folder_of_photos_skips_and_names_the_broken_one(
    tmp_path, trained, exported, capsys
):
    save_photo(tmp_path / "in" / "a.png")
    save_photo(tmp_path / "in" / "deep" / "b.jpg", colour=(30, 200, 30))
    (tmp_path / "in" / "bad.png").write_bytes(b"not an image")
    (tmp_path / "in" / "phone.HEIC").write_bytes(b"")
    result = reconstruct_files.reconstruct_folder(
        *trained, tmp_path / "in", tmp_path / "out", batch_size=4
    )
    assert [target.name for _, target in result.written] == ["a", "b"]
    assert [file.name for file, _ in result.broken] == ["bad.png"]
    said = capsys.readouterr().err
    assert "bad.png" in said and "left out: .heic (1)" in said
    (_, image, factors, reconstruction, _), (_, image_b, *_) = exported
    np.testing.assert_allclose(image[20, 20], np.array([200, 30, 30]) / 255, atol=1e-6)
    assert image_b[20, 20, 1] > 0.7
    assert factors.canon_depth.shape == reconstruction.plain.depth.shape
    assert factors.canon_depth.shape == (SIZE, SIZE)
    # Each photo has its own factors, whatever else shares its batch.
    options = options_from_config(trained[0])
    alone, _ = reconstruct_files._decompose(trained[1], image[None], options, None)
    np.testing.assert_allclose(factors.canon_depth, alone.canon_depth[0], atol=1e-5)
    assert np.abs(exported[1][2].canon_albedo - factors.canon_albedo).max() > 1e-4


def test_single_photo_is_cropped_square_not_squashed(tmp_path, trained, exported):
    photo = Image.new("RGB", (120, 40), (255, 255, 255))
    photo.paste((0, 0, 0), (40, 0, 80, 40))
    photo.save(tmp_path / "wide.png")
    reconstruct_files.reconstruct_folder(
        *trained, tmp_path / "wide.png", tmp_path / "out", batch_size=4
    )
    ((target, image, *_),) = exported
    assert target == tmp_path / "out" / "wide" and image.max() == 0.0


def test_the_crop_of_the_data_set_is_not_taken_out_of_other_photos(
    tmp_path, trained, exported
):
    config = bust.config_of(SIZE)
    config.data.crop = (170,)
    save_photo(tmp_path / "small.png", size=(40, 40))
    reconstruct_files.reconstruct_folder(
        config, trained[1], tmp_path / "small.png", tmp_path / "out"
    )
    assert len(exported) == 1


def test_a_photo_of_the_data_set_is_cropped_as_in_training(
    tmp_path, trained, exported, capsys
):
    config = bust.config_of(SIZE)
    config.data.crop, config.data.path = (0, 40, 40, 40), str(tmp_path / "data")
    photo = Image.new("RGB", (80, 80), (255, 255, 255))
    photo.paste((0, 0, 0), (40, 0, 80, 40))
    for name in ("data/a.png", "else/a.png"):
        (tmp_path / name).parent.mkdir()
        photo.save(tmp_path / name)
        reconstruct_files.reconstruct_folder(
            config, trained[1], tmp_path / name, tmp_path / "out", batch_size=4
        )
        said = "data.crop=(0, 40, 40, 40)" in capsys.readouterr().err
        assert said == (name == "else/a.png")
    (_, inside, *_), (_, outside, *_) = exported
    assert inside.max() == 0.0 and outside.max() == 1.0


def test_what_was_written_before_is_not_a_photo(tmp_path, trained, exported):
    save_photo(tmp_path / "a.png")
    save_photo(tmp_path / "out" / "a" / "panel.png")
    result = reconstruct_files.reconstruct_folder(*trained, tmp_path, tmp_path / "out")
    assert [file.name for file, _ in result.written] == ["a.png"]
    shutil.rmtree(tmp_path / "out")
    save_photo(tmp_path / "a" / "panel.png")
    (tmp_path / "a" / "factors.npz").write_bytes(b"")
    result = reconstruct_files.reconstruct_folder(*trained, tmp_path, tmp_path)
    assert [file.name for file, _ in result.written] == ["a.png"]


def test_photos_of_one_stem_get_folders_of_their_own(tmp_path, trained, exported):
    for name in ("x/face.png", "y/face.png", "y/FACE-2.png"):
        save_photo(tmp_path / "in" / name)
    result = reconstruct_files.reconstruct_folder(
        *trained, tmp_path / "in", tmp_path / "out", batch_size=4
    )
    names = [target.name for _, target in result.written]
    assert len({name.casefold() for name in names}) == 3
    assert names[0] == "face"


def test_no_name_of_a_photo_leads_out_of_the_output():
    files = [Path(n) for n in ("a/...jpg", "b/...jpg", "c/.. .png", "d/face.jpg")]
    names = reconstruct_files._folder_names(files)
    assert list(names.values()) == ["photo", "photo-2", "photo-3", "face"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "no image files"),
        (lambda path: path.write_bytes(b"no photo"), "could be read"),
    ],
)
def test_nothing_to_do_is_one_clear_error(tmp_path, trained, prepare, message):
    source = tmp_path / "in"
    prepare(source)
    with pytest.raises(UserError, match=message) as caught:
        reconstruct_files.reconstruct_folder(*trained, source, tmp_path / "out")
    assert str(source) in str(caught.value) and "\n" not in str(caught.value)


def test_output_that_cannot_be_written_is_an_error(tmp_path, trained):
    save_photo(tmp_path / "a.png")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="is a file"):
        reconstruct_files.reconstruct_folder(
            *trained, tmp_path / "a.png", tmp_path / "taken"
        )
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        reconstruct_files.reconstruct_folder(
            *trained, tmp_path / "a.png", tmp_path / "out", batch_size=4
        )
