"""Stored arrays become batches; truth is mirrored with its image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import COUNT, SIZE, faces, make_config, unit

from unsup3d_jax.data import batches, images
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data.load import load_split
from unsup3d_jax.formation import geometry, lighting
from unsup3d_jax.formation.types import Batch


def test_mirrored_viewpoint_and_light_describe_the_mirrored_scene():
    view = jnp.array([[0.3, -0.4, 0.2, 0.05, -0.02, 0.03]])
    light = jnp.array([[0.4, 0.6, 0.48, 0.6, 0.64]])
    image = jnp.zeros((1, 2, 2, 3))
    other = batches.mirror(Batch(image=image, view=view, light=light))
    points = jax.random.normal(jax.random.key(0), (20, 3)) * 0.1 + jnp.array([0, 0, 1])
    reflect = jnp.array([-1.0, 1.0, 1.0])
    moved = geometry.transform(points, view[0], centre_depth=1.0)
    mirrored = geometry.transform(points * reflect, other.view[0], centre_depth=1.0)
    np.testing.assert_allclose(mirrored, moved * reflect, atol=1e-6)
    canonical = lighting.to_canonical(light[0], view[0])
    np.testing.assert_allclose(
        lighting.to_canonical(other.light[0], other.view[0])[2:],
        canonical[2:] * reflect,
        atol=1e-6,
    )


def labelled(count):
    rng = np.random.default_rng(1)
    return faces(count) | {
        "keypoints": rng.uniform(0, SIZE - 1, (count, 3, 3)).astype(np.float32),
        "identity": np.arange(count, dtype=np.int32) // 2,
    }


def test_keypoints_are_mirrored_and_change_places():
    arrays = labelled(2)
    u, v, depth = np.moveaxis(arrays["keypoints"], -1, 0)
    batch = batches.to_batch(arrays)
    assert batch.identity.dtype == jnp.int32
    plain = batches.mirror(batch)
    swapped = batches.mirror(batch, keypoint_flip=(2, 1, 0))
    wanted = np.stack([SIZE - 1 - u, v, depth], axis=-1)
    np.testing.assert_allclose(plain.keypoints, wanted, rtol=1e-6)
    np.testing.assert_allclose(swapped.keypoints, wanted[:, ::-1], rtol=1e-6)
    np.testing.assert_array_equal(plain.identity, arrays["identity"])
    again = batches.mirror(swapped, keypoint_flip=(2, 1, 0))
    np.testing.assert_allclose(again.keypoints, arrays["keypoints"], atol=1e-6)


def test_a_keypoint_stays_on_its_pixel_in_the_mirror():
    image = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    image[0, 2, 5] = 255
    arrays = {"image": image, "keypoints": np.float32([[[5, 2, 1.0]]])}
    mirrored = batches.mirror(batches.to_batch(arrays))
    u, v = np.asarray(mirrored.keypoints)[0, 0, :2].astype(int)
    assert mirrored.image[0, v, u, 0] == 1.0


def test_some_are_flipped_with_their_labels():
    arrays = labelled(4)
    flip = jnp.array([True, False, False, True])
    got = batches.flip_some(arrays, flip, keypoint_flip=(2, 1, 0))
    plain = batches.to_batch(arrays)
    mirrored = batches.mirror(plain, keypoint_flip=(2, 1, 0))
    for name in ("image", "keypoints", "view"):
        wanted = [
            getattr(mirrored if f else plain, name)[i] for i, f in enumerate(flip)
        ]
        np.testing.assert_array_equal(getattr(got, name), wanted)
    np.testing.assert_array_equal(got.identity, arrays["identity"])


def test_a_latent_code_has_no_mirror_image():
    arrays = faces(2) | {"latent": np.ones((2, 5), np.float32)}
    batch = batches.to_batch(arrays)
    np.testing.assert_array_equal(batch.latent, 1.0)
    with pytest.raises(ValueError, match="latent"):
        batches.mirror(batch)
    with pytest.raises(ValueError, match="latent"):
        batches.gather(arrays, jnp.array([0, ~1]))
    got = batches.gather_plain(arrays, jnp.array([1, 0]))
    np.testing.assert_array_equal(got.view, arrays["view"][::-1])


def test_a_latent_code_is_mirrored_where_it_is_known_how():
    """Of people in several views, too, all of which are mirrored together."""
    several = {k: np.stack([v, v[::-1]], axis=1) for k, v in faces(3).items()}
    code = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    several = {"image": several["image"], "latent": code}
    swap = np.float32([[0, -1], [1, 0]])
    got = batches.gather(several, jnp.array([0, ~2]), latent_mirror=swap)
    assert got.image.shape[:2] == (2, 2)
    np.testing.assert_array_equal(got.latent[0], code[0])
    np.testing.assert_array_equal(got.latent[1], [[-9, 8], [-11, 10]])
    plain = batches.to_batch(several).image
    np.testing.assert_array_equal(got.image[1], plain[2, :, :, ::-1])


@pytest.mark.parametrize("mib", [1, 0], ids=["memory", "streamed"])
def test_eval_batches_cover_the_set_once_in_order(photos, tmp_path, mib):
    config = make_config(photos, tmp_path)
    config.data.device_memory_mib = mib
    dataset = load_split(config, "train")
    pairs = list(batches.eval_batches(dataset, 4))
    assert [count for _, count in pairs] == [4, 4, 3]
    assert all(batch.image.shape == (4, SIZE, SIZE, 3) for batch, _ in pairs)
    got = np.concatenate([np.asarray(b.image)[:n] for b, n in pairs])
    for i in range(COUNT):
        path = photos / "train" / f"{i:02d}.png"
        want, _ = images.read_image(path, crop=(), image_size=SIZE)
        np.testing.assert_array_equal(got[i], unit(want))
    last = pairs[-1][0].image
    np.testing.assert_array_equal(last[3], last[2])


def test_eval_batches_hold_all_that_is_known():
    arrays = faces(5)
    dataset = ds.Dataset(arrays, ds.Report("open_faces", "val", "", 5), "")
    (first, n), (second, m) = batches.eval_batches(dataset, 3)
    assert (n, m) == (3, 2)
    for name in batches.FACTORS[1:]:
        got = np.concatenate([getattr(first, name)[:n], getattr(second, name)[:m]])
        np.testing.assert_array_equal(got, arrays[name])
    assert first.mask.dtype == jnp.bool_ and isinstance(first.image, jax.Array)
    with pytest.raises(ValueError, match="batch_size"):
        next(batches.eval_batches(dataset, 0))


def test_eval_batches_hold_labels_where_asked_for():
    dataset = ds.Dataset(labelled(5), ds.Report("x", "val", "", 5), "")
    ((plain, _), *_) = batches.eval_batches(dataset, 3)
    assert plain.keypoints is None and plain.identity is None
    fields = ("image", "identity", "latent")
    (first, n), (second, m) = batches.eval_batches(dataset, 3, fields=fields)
    got = np.concatenate([first.identity[:n], second.identity[:m]])
    np.testing.assert_array_equal(got, [0, 0, 1, 1, 2])
    assert first.view is None and first.latent is None
