"""Where a face is not symmetric: the number, the picture, the line."""

import bust
import jax
import numpy as np
import pytest

from unsup3d_jax.unsup3d import export, model
from unsup3d_jax.unsup3d.symmetry import (
    Asymmetry,
    symmetry_line,
    symmetry_picture,
)

SIZE = 32


@pytest.fixture(scope="module")
def head():
    """The arrays of the head, turned by +25 degrees, and the camera."""
    factors, options = bust.make(SIZE)
    reconstruct = jax.jit(model.reconstruct, static_argnames="options")
    found = factors, reconstruct(factors, options=options)
    factors, reconstruction = jax.tree.map(lambda a: a[0], found)
    image = np.clip(np.asarray(reconstruction.plain.image), 0, 1)
    return export.named_arrays(image, factors, reconstruction), options.scene


@pytest.fixture(scope="module")
def arrays(head):
    return head[0]


def test_symmetry_line_follows_the_view(arrays, head):
    scene = head[1]
    pixels, seen = symmetry_line(arrays | {"view": np.zeros(6, np.float32)}, scene)
    np.testing.assert_allclose(pixels[:, 0], (SIZE - 1) / 2, atol=1e-3)
    pixels, seen = symmetry_line(arrays, scene)
    nose = np.argmin(np.abs(pixels[:, 1] - 18))
    assert seen.mean() > 0.8 and pixels[nose, 0] < 12  # yaw +25: nose to the left


def test_symmetry_line_hides_behind_the_surface(arrays, head):
    near = arrays | {"recon_depth": np.full((SIZE, SIZE), 0.9, np.float32)}
    assert not symmetry_line(near, head[1])[1].any()


def test_asymmetry_is_where_the_mirrored_sigma_is_larger(arrays):
    larger = arrays["conf_sigma_flip"] > 0.5
    mask = arrays["recon_mask"] > 0.5
    found = Asymmetry.of(arrays)
    # 1.15 against 0.15, which is what most pixels have.
    doublings = np.log2(1.15 / 0.15)
    np.testing.assert_allclose(found.heat[larger & mask], doublings, rtol=1e-5)
    assert found.heat[~larger | ~mask].max() == 0.0
    share = (larger & mask).sum() / mask.sum()
    assert found.mean == pytest.approx(share * doublings, rel=1e-5)
    assert found.top == pytest.approx(doublings, rel=1e-5)
    assert found.numbers()["mean"] == found.mean
    text = f"asymmetry: sigma'/sigma x{2**found.mean:.3f}"
    assert found.words() == ("x1", "x7.67", text)
    swapped = arrays | {"conf_sigma": arrays["conf_sigma_flip"]}
    assert Asymmetry.of(swapped).heat.max() == 0.0
    empty = arrays | {"recon_mask": np.zeros_like(arrays["recon_mask"])}
    assert Asymmetry.of(empty).heat.max() == Asymmetry.of(empty).mean == 0.0


def test_asymmetry_without_confidence_compares_the_reconstructions(arrays):
    bare = {k: v for k, v in arrays.items() if "conf" not in k}
    found = Asymmetry.of(bare)
    difference = np.abs(arrays["recon_image"] - arrays["recon_image_flip"]).mean(-1)
    mask = arrays["recon_mask"] > 0.5
    np.testing.assert_allclose(found.heat[mask], difference[mask], rtol=1e-5)
    assert "colours" in found.numbers()["unit"] and "colours" in found.words()[2]


@pytest.mark.parametrize("strength", [1.2, 8.0])
def test_what_is_least_symmetric_is_red_however_little_that_is(head, strength):
    arrays, scene = head
    sigma = np.full((SIZE, SIZE), 0.1, np.float32)
    odd = np.zeros((SIZE, SIZE), bool)
    odd[18:24, 16:22] = True
    grey = np.full((SIZE, SIZE, 3), 0.5, np.float32)
    arrays = arrays | {
        "input": grey,
        "conf_sigma": sigma,
        "conf_sigma_flip": np.where(odd, strength * sigma, sigma),
    }
    found = Asymmetry.of(arrays)
    picture = symmetry_picture(arrays, found, scene)
    scale = picture.shape[1] // SIZE
    # The scale and its words stand below the photo.
    assert picture.shape[0] > SIZE * scale and picture[SIZE * scale :].max() > 200
    red = (picture[..., 0] > 180) & (picture[..., 1] < 80)
    inside = np.zeros_like(red)
    inside[: SIZE * scale] = np.kron(odd, np.ones((scale, scale), bool))
    assert red[inside].mean() > 0.7
    assert not red[: SIZE * scale][~inside[: SIZE * scale]].any()
    assert found.words()[1] == {1.2: "x1.200", 8.0: "x8"}[strength]


def test_noise_does_not_fill_the_scale(arrays):
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.1, 0.1001, (SIZE, SIZE)).astype(np.float32)
    found = Asymmetry.of(arrays | {"conf_sigma": noise, "conf_sigma_flip": noise[::-1]})
    assert found.heat.max() < 0.05 * found.top
