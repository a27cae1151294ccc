"""Meshes as files, read back: of a depth map, and of any triangles."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import trimesh
from defaults import options

from unsup3d_jax.formation.geometry import depth_to_normals
from unsup3d_jax.show import foreground, mesh_files
from unsup3d_jax.show.mesh_files import Texture

# Corners of an octahedron, counter-clockwise from outside.
OCTAHEDRON = np.array(
    [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], np.float32
)
FACES = np.array(
    [
        [0, 2, 4],
        [2, 1, 4],
        [1, 3, 4],
        [3, 0, 4],
        [2, 0, 5],
        [1, 2, 5],
        [3, 1, 5],
        [0, 3, 5],
    ]
)
UV = 0.5 + 0.25 * OCTAHEDRON[:, :2]
PICTURE = np.random.default_rng(0).uniform(size=(4, 6, 3)).astype(np.float32)


def read(path):
    """The only mesh of a file, as it is stored."""
    (mesh,) = trimesh.load_scene(path, process=False).geometry.values()
    return mesh


def test_surface_of_a_depth_map_is_a_vertex_per_pixel_without_the_border():
    scene = dataclasses.replace(options().scene, centre_depth=2.0)
    depth = jnp.full((5, 7), 2.0).at[2, 3].set(1.9)
    normal = depth_to_normals(depth, fov_deg=10.0)
    part = foreground.whole(depth, border_columns=1)
    got = mesh_files.surface_of_depth(depth, normal, scene, part)
    assert got.vertices.shape == got.normals.shape == (5 * 5, 3)
    assert got.faces.shape == (2 * 4 * 4, 3) and got.colours is None
    tip = got.vertices[2 * 5 + 2]
    np.testing.assert_allclose(tip, [0.0, 0.0, 0.1], atol=1e-6)  # towards the viewer
    assert got.vertices[0, 0] < 0 < got.vertices[0, 1]  # top left: y is up
    np.testing.assert_allclose(got.uv[0], [1.5 / 7, 1 - 0.5 / 5])
    np.testing.assert_allclose(np.linalg.norm(got.normals, axis=1), 1.0, rtol=1e-5)
    assert (got.normals[:, 2] > 0).all()
    corners = got.vertices[got.faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (cross[:, 2] > 0).all()


def test_surface_of_some_cells_has_their_corners_alone():
    depth = jnp.linspace(1.0, 1.1, 35).reshape(5, 7)
    cells = np.zeros((4, 6), bool)
    cells[1, 2] = cells[3, 5] = True
    part = foreground.whole(depth, border_columns=0).replace(cells=cells)
    normal = depth_to_normals(depth, fov_deg=10.0)
    scene = options().scene
    got = mesh_files.surface_of_depth(depth, normal, scene, part)
    assert got.faces.shape == (4, 3) and len(got.vertices) == 8
    rows = np.array([1, 1, 2, 2, 3, 3, 4, 4])
    columns = np.array([2, 3, 2, 3, 5, 6, 5, 6])
    np.testing.assert_allclose(got.uv[:, 0], (columns + 0.5) / 7, rtol=1e-5)
    np.testing.assert_allclose(got.uv[:, 1], 1 - (rows + 0.5) / 5, rtol=1e-5)
    z = scene.centre_depth - depth[rows, columns]
    np.testing.assert_allclose(got.vertices[:, 2], z, atol=1e-6)
    corners = sorted(sorted(face) for face in got.faces.tolist())
    assert corners == [[0, 1, 2], [1, 2, 3], [4, 5, 6], [5, 6, 7]]


def test_mesh_without_a_depth_map_gets_unit_normals_outward(tmp_path):
    surface = mesh_files.surface_of_mesh(OCTAHEDRON, FACES, uv=UV)
    np.testing.assert_allclose(surface.normals, OCTAHEDRON, atol=1e-6)
    mesh_files.write_glb(tmp_path / "a.glb", surface, Texture(PICTURE, scale=2))
    got = read(tmp_path / "a.glb")
    assert got.vertices.shape == (6, 3)
    np.testing.assert_array_equal(got.faces, FACES)
    np.testing.assert_allclose(got.vertices, OCTAHEDRON)
    np.testing.assert_allclose(got.vertex_normals, OCTAHEDRON, atol=1e-6)
    np.testing.assert_allclose(got.visual.uv, UV, atol=1e-6)
    assert got.visual.material.baseColorTexture.size == (12, 8)


def test_vertex_without_faces_has_a_unit_normal_too():
    lonely = np.concatenate([OCTAHEDRON, [[3, 3, 3]]])
    surface = mesh_files.surface_of_mesh(lonely, FACES)
    np.testing.assert_allclose(np.linalg.norm(surface.normals, axis=1), 1.0, rtol=1e-5)


def test_vertex_colours_are_linear_in_glb_and_as_given_in_obj(tmp_path):
    colours = np.array([[1, 0, 0.5]] * 6, np.float32)
    surface = mesh_files.surface_of_mesh(OCTAHEDRON, FACES, colours=colours)
    mesh_files.write_glb(tmp_path / "a.glb", surface)
    got = read(tmp_path / "a.glb")
    assert got.visual.material.metallicFactor == 0.0 and got.visual.uv is None
    # sRGB 0.5 is linear 0.214: 55 of 255.
    stored = np.asarray(got.visual.vertex_attributes["color"])
    np.testing.assert_array_equal(stored, [[255, 0, 55, 255]] * 6)
    mesh_files.write_obj(tmp_path / "a.obj", surface)
    lines = (tmp_path / "a.obj").read_text().splitlines()
    assert lines[0] == "v 1.000000 0.000000 0.000000 1.000000 0.000000 0.500000"
    assert lines[-8] == "f 1//1 3//3 5//5" and not (tmp_path / "a.mtl").exists()
    np.testing.assert_array_equal(read(tmp_path / "a.obj").faces, FACES)


def test_texture_needs_coordinates(tmp_path):
    surface = mesh_files.surface_of_mesh(OCTAHEDRON, FACES)
    for write in (mesh_files.write_glb, mesh_files.write_obj):
        with pytest.raises(ValueError, match="uv"):
            write(tmp_path / "a", surface, Texture(PICTURE, scale=1))


def test_the_camera_frame_is_turned_about_its_centre():
    got = mesh_files.mesh_frame(np.array([[0.1, 0.2, 0.9]]), centre_depth=1.0)
    np.testing.assert_allclose(got, [[0.1, -0.2, 0.1]], atol=1e-12)
