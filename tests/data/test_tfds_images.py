"""A small TensorFlow Datasets set, prepared here, read without TensorFlow."""

import io
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from configs import default
from unsup3d_jax.data.load import load_split
from unsup3d_jax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")


class Patches(tfds.core.GeneratorBasedBuilder):
    """Eight 20 x 24 images of one colour each, in two splits."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = pathlib.Path(__file__).parent  # this test is no package

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image()})
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0), "test": self._generate_examples(8)}

    def _generate_examples(self, first):
        for i in range(first, first + 8):
            file = io.BytesIO()  # encoded, because arrays would need TensorFlow
            pixels = np.full((20, 24, 3), 10 * i, np.uint8)
            Image.fromarray(pixels).save(file, "PNG")
            file.seek(0)
            yield i, {"image": file}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    builder = Patches(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return folder


def _config(path, cache):
    config = default.get_config()
    config.data.name = "tfds"
    config.data.tfds_name = "patches"
    config.data.path = str(path)
    config.data.cache_dir = str(cache)
    config.data.image_size = 32
    config.data.min_images = 4
    return config


def test_records_become_images_without_tensorflow(prepared, tmp_path):
    dataset = load_split(_config(prepared, tmp_path), "train")
    images = dataset.arrays["image"]
    assert images.shape == (8, 32, 32, 3) and images.dtype == np.uint8
    assert sorted(images[:, 0, 0, 0]) == [10 * i for i in range(8)]
    assert "tensorflow" not in sys.modules


def test_a_split_that_is_not_there_is_named(prepared, tmp_path):
    with pytest.raises(UserError, match="no split for 'val'.*train"):
        load_split(_config(prepared, tmp_path), "val")


def test_a_set_that_is_not_prepared_says_how_to(tmp_path):
    config = _config(tmp_path, tmp_path / "cache")
    config.data.tfds_name = "celeb_a"
    with pytest.raises(UserError, match="tfds build"):
        load_split(config, "train")


def test_part_of_a_set_is_not_taken_for_the_whole(prepared, tmp_path):
    config = _config(prepared, tmp_path)
    config.data.max_images = 5
    assert len(load_split(config, "train")) == 5
    config.data.max_images = 0
    assert len(load_split(config, "train")) == 8
