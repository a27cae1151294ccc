"""Files of a reconstruction, read back: names, axes, windings, errors."""

import json
import struct
import subprocess

import bust
import imageio_ffmpeg
import jax
import numpy as np
import pytest
import trimesh
from PIL import Image

from unsup3d_jax.show import surface_files, video
from unsup3d_jax.unsup3d import export, model
from unsup3d_jax.unsup3d.outputs import OUTPUTS

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
    "viewer.html",
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
        numbers = export.export(path, *head)
        assert numbers["asymmetry"]["mean"] > 0 and numbers["surface"]["share"] < 0.8
    return path


def test_folder_holds_every_file_and_nothing_else(folder):
    assert {p.name for p in folder.iterdir()} == FILES
    for name, shape in MAPS.items():
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.size == (shape[1], shape[0])


def test_each_output_is_written_alone(head, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "TURNTABLE_FRAMES", 4)
    monkeypatch.setattr(video, "RELIGHT_FRAMES", 4)
    files = {}
    for name in OUTPUTS:
        numbers = export.export(tmp_path / name, *head, outputs=(name,))
        files[name] = {p.name for p in (tmp_path / name).iterdir()}
        assert ("surface" in numbers) == (name in surface_files.OF_SURFACE)
    assert files.pop("maps") == {f"{name}.png" for name in MAPS}
    assert files.pop("obj") == {"mesh.obj", "mesh.mtl", "mesh.png"}
    assert files == {
        "factors": {"factors.npz"},
        "panel": {"panel.png"},
        "symmetry": {"symmetry.png"},
        "mesh": {"mesh.glb"},
        "viewer": {"viewer.html"},
        "turntable": {"turntable.mp4"},
        "relight": {"relight.mp4"},
    }


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
    # 10 degrees at 1 m: the image is 0.175 m high, the head not quite as much.
    np.testing.assert_allclose(np.ptp(glb.vertices[:, 1]), 0.17, atol=0.01)


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
    # Of the ellipse, without the plane around it.
    assert 0.55 < count / SIZE**2 < 0.7


def test_the_whole_surface_is_all_but_the_clamped_border(head, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "write_video", lambda *_: None)
    export.export(tmp_path, *head, whole_surface=True)
    mesh = trimesh.load(tmp_path / "mesh.glb", force="mesh", process=False)
    assert len(mesh.vertices) == SIZE * (SIZE - 4)


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


# --- videos --------------------------------------------------------


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
