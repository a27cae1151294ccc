"""The viewer's page: all in one file, nothing fetched, and the frames it is told."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess

import bust
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from unsup3d_jax.formation import geometry
from unsup3d_jax.show import foreground, mesh_files
from unsup3d_jax.show.viewer import content, page
from unsup3d_jax.unsup3d import export, model

SIZE = 32
SCRIPT = page._read("viewer.js")


@pytest.fixture(scope="module")
def head():
    """(arrays, options, content) of the head, turned by +25 degrees."""
    factors, options = bust.make(SIZE)
    reconstruct = jax.jit(model.reconstruct, static_argnames="options")
    found = reconstruct(factors, options=options)
    factors, found = jax.device_get(jax.tree.map(lambda a: a[0], (factors, found)))
    image = np.clip(found.plain.image, 0, 1)
    shown = export.viewer_content("</script> & co", image, factors, found, options)
    return export.named_arrays(image, factors, found), options, shown


@pytest.fixture(scope="module")
def text(head):
    return page.document(head[2])


def digest(text):
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_the_policy_lets_what_is_written_run_and_nothing_else(text):
    (policy,) = re.findall(r'Security-Policy" content="([^"]*)"', text)
    style, script = (
        re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.S)
        for kind in ("style", "script")
    )
    assert len(style) == len(script) == 1
    assert f"style-src '{digest(style[0])}'" in policy
    assert f"script-src '{digest(script[0])}'" in policy
    assert "default-src 'none'" in policy and "connect-src 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy


def test_the_page_names_no_other_place(text):
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert "http:" not in text and "https:" not in text
    assert "@import" not in text and "url(" not in text
    assert not re.findall(r"\son\w+=|\sstyle=", text)  # which the policy would stop


def test_what_is_shown_lies_in_the_page_whatever_the_photo_is_called(text, head):
    (data,) = re.findall(r'id="content">(.*?)</script>', text, re.S)
    found = json.loads(data)
    assert found == json.loads(json.dumps(head[2].described()))
    assert found["title"] == "</script> & co"
    assert "<title>&lt;/script&gt; &amp; co</title>" in text
    assert [m["name"] for m in found["maps"]] == ["confidence", "symmetry"]
    with Image.open(io.BytesIO(base64.b64decode(found["photo"]))) as photo:
        assert photo.size == (SIZE, SIZE)
    assert base64.b64decode(found["glb"])[:4] == b"glTF"


def test_every_control_has_a_name(text):
    labelled = re.findall(r"<label>[^<]*\w[^<]*<input id=", text)
    assert len(labelled) == text.count('" type="range"') == 8
    assert all(name.strip() for name in re.findall(r"<button[^>]*>([^<]*)<", text))
    assert re.search(r"<canvas [^>]*tabindex=\"0\"[^>]*\s+aria-label=", text)
    assert '<html lang="en">' in text and "width=device-width" in text


def test_the_camera_shows_the_mesh_where_the_photo_does(head):
    """As the script draws it: pose, then half_width and distance."""
    arrays, options, shown = head
    part = foreground.whole(arrays["canon_depth"], border_columns=0)
    surface = mesh_files.surface_of_depth(
        arrays["canon_depth"], arrays["canon_normal"], options.scene, part
    )
    eye = shown.eye
    moved = surface.vertices @ eye.rotation.T + eye.translation
    drawn = moved[:, :2] / (eye.half_width * (eye.distance - moved[:, 2:]))
    pixels = (drawn * [1, -1] + 1) / 2 * SIZE - 0.5
    depth, view = jnp.asarray(arrays["canon_depth"]), jnp.asarray(arrays["view"])
    fov, centre = options.scene.fov_deg, options.scene.centre_depth
    points = geometry.depth_to_points(depth, fov_deg=fov)
    points = geometry.transform(points, view, centre_depth=centre)
    expected = geometry.project(points, (SIZE, SIZE), fov_deg=fov)
    np.testing.assert_allclose(pixels, np.reshape(expected, (-1, 2)), atol=2e-3)


def test_the_light_shades_the_mesh_as_the_model_does(head):
    arrays, options, shown = head
    part = foreground.whole(arrays["canon_depth"], border_columns=0)
    surface = mesh_files.surface_of_depth(
        arrays["canon_depth"], arrays["canon_normal"], options.scene, part
    )
    ambient, diffuse, *direction = shown.light
    shading = np.maximum(0, surface.normals @ np.array(direction))
    np.testing.assert_allclose(shading, arrays["canon_shading"].ravel(), atol=1e-5)
    np.testing.assert_allclose([ambient, diffuse], arrays["light"][:2])


def test_maps_of_the_photo_lie_where_the_surface_is_seen(head):
    arrays, options, _ = head
    # Its own colours, as if they were a map: the albedo's red patch is red again.
    seen = content.Map("photo", "Photo", "Colours", arrays["input"])
    (laid,) = content._laid_on([seen], arrays, options.scene)
    assert laid.legend == "Colours; blue: the photo does not show it."
    hidden = np.isclose(laid.picture, content._UNSEEN).all(axis=-1)
    lit = np.clip(arrays["canon_image"], 0, 1)
    part = foreground.object_part(arrays["canon_depth"], border_columns=2,
                                  border_depth=1.04).vertices()  # fmt: skip
    assert 0.01 < hidden[part].mean() < 0.3  # the far side, and behind the nose
    assert hidden[:, : SIZE // 2][part[:, : SIZE // 2]].mean() > 0.1
    error = np.abs(laid.picture - lit)[part & ~hidden]
    assert np.median(error) < 0.02
    straight = arrays | {"view": np.zeros(6, np.float32)}
    straight["recon_depth"] = arrays["canon_depth"]
    straight["recon_mask"] = np.ones_like(arrays["recon_mask"])
    (laid,) = content._laid_on([seen], straight, options.scene)
    # But for what rounding takes for outside of the outermost pixels.
    np.testing.assert_allclose(laid.picture[1:-1, 1:-1], arrays["input"][1:-1, 1:-1],
                               atol=1e-3)  # fmt: skip


def test_without_maps_none_is_laid(head):
    arrays, options, _ = head
    bare = {k: v for k, v in arrays.items() if not k.startswith("conf")}
    assert content.of_depth_map("x", b"", bare, options.scene).maps == []


def in_node(program):
    """What the program prints, behind the page's script, where there is no page."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node")
    done = subprocess.run(
        [node, "-"], input=SCRIPT + program, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_script_reads_the_mesh_that_is_written(head):
    glb = head[2].glb
    data = base64.b64encode(glb).decode()
    found = in_node(
        f"const m = readGlb(bytesOf('{data}'));"
        "console.log(JSON.stringify({...Object.fromEntries(['positions', 'normals',"
        "'places', 'faces'].map((k) => [k, [...m[k]]])), texture: m.texture.length}))"
    )
    arrays, options, _ = head
    part, surface = export.surface_files.surface_of(
        arrays, options.scene, export._border(options), whole_surface=False
    )
    for name, expected in (
        ("positions", surface.vertices),
        ("normals", surface.normals),
        ("faces", surface.faces),
    ):
        np.testing.assert_allclose(found[name], expected.ravel(), atol=1e-6)
    # glTF's begin at the top.
    places = surface.uv * [1, -1] + [0, 1]
    np.testing.assert_allclose(found["places"], places.ravel(), atol=1e-6)
    assert found["texture"] > 100


def test_the_script_turns_and_lights_as_it_says():
    found = in_node(
        """
        const near = [0, 0, 1];
        const turn = product(turnOf(30, 20), turnOf(-50, 0));
        console.log(JSON.stringify({
          right: applied(turnOf(90, 0), near), up: applied(turnOf(0, 90), near),
          one: product(transposed(turn), turn), angles: anglesOf(directionOf(40, -25)),
          ball: [onBall(0.6, 0), onBall(3, 4)], wrapped: [190, -190, 540].map(wrapped),
        }))"""
    )
    np.testing.assert_allclose(found["right"], [1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(found["up"], [0, 1, 0], atol=1e-9)
    np.testing.assert_allclose(found["one"], np.eye(3).ravel(), atol=1e-9)
    np.testing.assert_allclose(found["angles"], [40, -25], atol=1e-9)
    np.testing.assert_allclose(found["ball"], [[0.6, 0, 0.8], [0.6, 0.8, 0]])
    assert found["wrapped"] == [-170, 170, -180]
