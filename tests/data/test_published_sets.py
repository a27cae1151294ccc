"""The authors' sets as their scripts unpack them, read by their configs as they are."""

import numpy as np
import pytest
from PIL import Image

from configs import cars, cats, synface
from unsup3d_jax.data.load import load_split

COUNT = 3


def picture(number, size):
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def ready(tmp_path, monkeypatch):
    """A config beside whose data/ the program is started."""
    monkeypatch.chdir(tmp_path)

    def change(config):
        config.data.cache_dir = str(tmp_path / "cache")
        config.data.min_images, config.data.workers = 1, 0
        return config

    return change


@pytest.mark.parametrize(
    "module, place, size, box",
    [
        (cats, "cat_combined", (224, 200), (27, 15, 197, 185)),
        (cars, "syncar", (128, 128), (14, 8, 114, 108)),
    ],
)
def test_photos_are_cut_as_by_the_authors(tmp_path, ready, module, place, size, box):
    for split in ("train", "val", "test"):
        for i in range(COUNT):
            write(tmp_path / "data" / place / split / f"{i}.png", picture(i, size))
    config = ready(module.get_config())
    for split in ("train", "val", "test"):
        got = load_split(config, split)
        want = [
            picture(i, size).crop(box).resize((64, 64), Image.Resampling.BILINEAR)
            for i in range(COUNT)
        ]
        np.testing.assert_array_equal(got.arrays["image"], np.stack(want))


@pytest.mark.parametrize("sub", ["", "p0", "image_set"])
def test_synface_pairs_as_the_authors_loader_does(tmp_path, ready, sub):
    root = tmp_path / "data" / "synface" / "train"
    for i in range(COUNT):
        write(root / "image" / sub / f"x_image_{i}.png", picture(i, (256, 256)))
        grey = Image.new("RGB", (256, 256), (51 * i, 0, 0))  # the first channel counts
        write(root / "depth" / sub / f"x_depth_{i}.png", grey)
    dataset = load_split(ready(synface.get_config()), "train")
    box = (43, 43, 213, 213)
    for i, image in enumerate(dataset.arrays["image"]):
        want = picture(i, (256, 256)).crop(box)
        want = want.resize((64, 64), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image, np.asarray(want))
        depth = 0.9 + 0.2 * (1 - 51 * i / 255)
        np.testing.assert_allclose(dataset.arrays["depth"][i], depth, rtol=1e-6)
        assert dataset.arrays["mask"][i].all() == (i > 0)


def test_the_recipe_of_the_cars():
    config = cars.get_config()
    assert tuple(config.data.crop) == (8, 14, 100, 100)
    assert not config.model.use_confidence and config.depth.border_depth == 1.08
    assert (config.loss.flip, config.loss.perceptual) == (1.0, 0.01)
    assert config.loss.depth_smoothness == 0.1 and config.light.diffuse_min == 0.5
