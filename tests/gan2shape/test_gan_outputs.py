"""Rotations and relights through a generator, and the folder of a photo."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs.gan2shape import default
from unsup3d_jax.configuration import changed
from unsup3d_jax.formation.types import Surface
from unsup3d_jax.gan2shape import export, through_generator
from unsup3d_jax.gan2shape.options import options_from_config
from unsup3d_jax.gan2shape.steps import Looks
from unsup3d_jax.show import surface_files, video

# Compiled programs of seconds each.
pytestmark = pytest.mark.once

SIZE = 32


@pytest.fixture(scope="module")
def options():
    config = default.get_config()
    return options_from_config(
        changed(config, {"data.image_size": SIZE, "raster.supersample": 1})
    )


@pytest.fixture(scope="module")
def looks():
    """A ball before a plane, red on the left of the picture."""
    y, x = np.mgrid[:SIZE, :SIZE] / ((SIZE - 1) / 2) - 1.0
    ball = 0.64 - x**2 - y**2
    depth = np.where(ball > 0, 1.04 - 0.1 * np.sqrt(np.maximum(ball, 0.0)), 1.04)
    albedo = np.full((SIZE, SIZE, 3), 0.5)
    albedo[(ball > 0) & (x < 0)] = (0.9, 0.1, 0.1)
    view = np.array([0.0, 0.2, 0.0, 0.0, 0.0, 0.0])
    light = np.array([0.4, 0.5, 0.0, 0.0, 1.0])
    ones = np.ones((SIZE, SIZE))
    floats = (depth, albedo, view, light)
    depth, albedo, view, light = (np.float32(a)[None] for a in floats)
    return Looks(depth, albedo, view, light, depth, ones[None] > 0, albedo)


@pytest.fixture()
def videos(monkeypatch):
    """{name: frames}, in place of files; mesh and turntable are unsup3d's, and slow."""
    written = {}

    def surface(folder, arrays, scene, border, *, whole_surface):
        assert arrays["canon_normal"].shape == (SIZE, SIZE, 3) and border.columns == 2
        return {"share": 1.0 if whole_surface else 0.5}

    monkeypatch.setattr(surface_files, "write_surface", surface)
    monkeypatch.setattr(
        video, "write_video", lambda p, f: written.update({p.name: np.stack(list(f))})
    )
    return written


def test_relights_exchange_ambient_for_diffuse_light():
    """Ambient a - 0.6 r, diffuse b + r, direction (x, y, 1) made unit."""
    light = np.float32([0.5, 0.4, 0.0, 0.0, 1.0])
    (found,) = through_generator.relit(light, [(1.5, 0.6, 0.3)])
    length = np.sqrt(1.5**2 + 0.6**2 + 1.0)
    expected = [0.32, 0.7, 1.5 / length, 0.6 / length, 1.0 / length]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_generator_answers_what_the_mesh_asks(options, looks):
    surface = Surface(
        raw_depth=jnp.asarray(looks.canon_depth),
        canon_depth=jnp.asarray(looks.canon_depth),
        canon_albedo=jnp.asarray(looks.canon_albedo),
    )
    views = through_generator.turned(1, [-40.0, 0.0, 40.0])
    lights = np.repeat(looks.light, 3, axis=0)
    seen = through_generator.look(
        surface, views, lights, options, lambda images: 1.0 - images
    )
    assert seen.generator is not None
    shown = seen.mesh.sum(-1) > 0
    np.testing.assert_allclose(seen.generator[shown], 1 - seen.mesh[shown], atol=1e-6)
    # The near side goes to the left with a positive yaw, and with it the colours' edge.
    red = (seen.mesh[..., 0] - seen.mesh[..., 1] > 0.2).sum((1, 2))
    assert red[0] > red[1] > red[2]


def test_a_folder_has_the_files_of_all_methods_and_the_generators(
    options, looks, videos, tmp_path
):
    how = export.ExportOptions(whole_surface=False, most_yaw_deg=45.0)
    image = looks.canon_albedo[0]
    numbers = export.export(tmp_path, image, looks, options, how, lambda x: 1.0 - x)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"factors.npz", "panel.png", "canon_normal.png", "pitches.png"} <= names
    with np.load(tmp_path / "factors.npz") as arrays:
        assert "canon_normal" in arrays and arrays["recon_mask"].shape == (SIZE, SIZE)
    assert numbers["surface"]["share"] == 0.5 and numbers["recon_l1"] > 0.0
    # Nine yaws, mesh above generator; five directions of light, four pairs of rows.
    rows = types.SimpleNamespace(
        **{n: Image.open(tmp_path / f"{n}.png") for n in ("rotations", "relights")}
    )
    assert rows.rotations.width > 9 * 96 and rows.rotations.height > 2 * 96
    assert rows.relights.width > 5 * 96 and rows.relights.height > 8 * 96
    frames = videos["rotation.mp4"]
    assert frames.shape == (through_generator.VIDEO_FRAMES, 256, 512, 3)
    # Back where it began, and not elsewhere between.
    assert np.abs(frames[12].astype(int) - frames[0]).mean() > 5
    mesh, made = np.split(frames[0][64:192], [256], axis=1)
    middle = slice(64, 192)
    assert np.abs(255 - mesh[:, middle].astype(int) - made[:, middle]).mean() < 4


def test_without_a_generator_the_mesh_stands_alone(options, looks, videos, tmp_path):
    how = export.ExportOptions(whole_surface=True, most_yaw_deg=70.0)
    export.export(tmp_path, looks.canon_albedo[0], looks, options, how, None)
    assert videos["relighting.mp4"].shape[1:] == (256, 256, 3)
    assert Image.open(tmp_path / "rotations.png").height < 2 * 96
