"""Photos with landmarks: points follow their pixels, bad files are named."""

import jax
import numpy as np
import pytest
from PIL import Image
from test_landmark_files import csv_text, pts_text, some_points, write_aflw

from configs.stn3dmm import default
from unsup3d_jax.data import batches, images, landmark_folder, load, source
from unsup3d_jax.errors import UserError

SIZE = 16


@pytest.fixture
def config(tmp_path):
    config = default.get_config()
    config.data.name, config.data.path = "landmarks", str(tmp_path / "photos")
    config.data.cache_dir = str(tmp_path / "cache")
    config.data.image_size, config.data.min_images = SIZE, 1
    config.data.split, config.data.near_copies = "folder", "apart"
    (tmp_path / "photos/train").mkdir(parents=True)
    return config


def write_ramp(path, width=120, height=90, *, exif=None):
    """A photo whose red is its column and whose green is its row, in pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width)
    pixels[..., 1] = np.arange(height)[:, None]
    Image.fromarray(pixels).save(path)


def face(cx, cy, radius, count=68):
    """Points on a circle, which touch its box on all sides."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([cx + radius * np.cos(angle), cy + radius * np.sin(angle)], 1)


def _sampled(image, points):
    """(red, green) of an image at points (x, y) inside of it."""
    found = []
    for x, y in points:
        i, j = int(np.floor(y)), int(np.floor(x))
        a, b = y - i, x - j
        corners = image[i : i + 2, j : j + 2, :2].astype(float)
        found.append(
            (1 - a) * ((1 - b) * corners[0, 0] + b * corners[0, 1])
            + a * ((1 - b) * corners[1, 0] + b * corners[1, 1])
        )
    return np.array(found)


@pytest.mark.parametrize(
    "centre, radius, margin",
    [((60, 45), 20, 0.3), ((24, 30), 20, 0.5), ((70.25, 40.5), 41.3, 0.1)],
)
def test_points_are_moved_along_with_the_pixels(
    config, tmp_path, centre, radius, margin
):
    """A photo that holds its own coordinates has them at the moved landmarks too."""
    config.data.margin = margin
    write_ramp(tmp_path / "photos/train/a.png")
    points = face(*centre, radius)
    (tmp_path / "photos/train/a.pts").write_text(pts_text(points + 1.0))
    dataset = load.load_split(config, "train")
    image, keypoints = dataset.arrays["image"][0], dataset.arrays["keypoints"][0]
    assert image.shape == (SIZE, SIZE, 3) and keypoints.dtype == np.float32
    assert np.isnan(keypoints[:, 2]).all()
    box = np.ptp(keypoints[:, :2], axis=0) / SIZE
    np.testing.assert_allclose(box, 1 / (1 + 2 * margin), atol=0.01)
    # Away from edges, where a filter has other pixels on one side than on the other.
    inside = (keypoints[:, :2] >= 2).all(1) & (keypoints[:, :2] <= SIZE - 3).all(1)
    within = (points >= 6).all(1) & (points <= [113, 83]).all(1)
    rows = inside & within
    assert rows.sum() > 5
    found = _sampled(image, keypoints[rows, :2])
    np.testing.assert_allclose(found, points[rows], atol=0.7)


def test_a_crop_larger_than_the_photo_is_black_outside(config, tmp_path):
    write_ramp(tmp_path / "photos/train/a.png", 120, 60)
    (tmp_path / "photos/train/a.pts").write_text(pts_text(face(60, 30, 30) + 1.0))
    dataset = load.load_split(config, "train")
    image = dataset.arrays["image"][0]
    # 96 pixels a side, of which the photo has 60 rows: 3 rows of 16 on each side.
    assert not image[:3].any() and not image[-3:].any()
    assert (image[4:-4, :, 0] > 0).all()


@pytest.mark.parametrize("width, height", [(100, 80), (80, 100), (50, 200)])
@pytest.mark.parametrize("margin", [0.0, 0.4])
def test_the_crop_is_a_square_that_stays_in_the_photo_where_it_fits(
    width, height, margin
):
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = rng.uniform([0, 0], [width - 1, height - 1], (5, 2))
        left, top, side = landmark_folder.crop_around(
            points, width, height, margin=margin
        )
        low, high = points.min(0) + 0.5, points.max(0) + 0.5
        assert side == pytest.approx((high - low).max() * (1 + 2 * margin))
        for start, least, most, full in zip(
            (left, top), low, high, (width, height), strict=True
        ):
            assert start <= least + 1e-9 and most <= start + side + 1e-9
            if side <= full:
                assert start >= 0 and start + side <= full + 1e-9
            else:
                assert start == pytest.approx((full - side) / 2)


@pytest.mark.parametrize(
    "points, words",
    [
        ([[np.nan, 3], [5, 5]], "fewer than two"),
        ([[5, 5], [5, 5]], "fewer than two"),
        ([[500, 5], [520, 9]], "outside of the photo"),
        ([[-1e9, 5], [1e9, 9]], "outside of the photo"),
        ([[-300, 5], [390, 9]], "outside of the photo"),
    ],
)
def test_landmarks_that_make_no_crop_are_refused(points, words):
    with pytest.raises(ValueError, match=words):
        landmark_folder.crop_around(np.array(points, float), 100, 80, margin=0.3)


def test_a_part_of_an_image_is_bounded_by_it():
    image = Image.new("RGB", (40, 30), (255, 255, 255))
    far = {"left": 1000.0, "top": 0.0, "side": 10.0, "image_size": 8}
    with pytest.raises(ValueError, match="nothing of the photo"):
        images.rgb_part(image, **far)
    # A part of which the image is no pixel, and one that would be 40 gigapixels.
    with pytest.raises(ValueError, match="nothing of the photo"):
        images.rgb_part(image, left=-1e5, top=-1e5, side=2e5, image_size=8)
    whole = images.rgb_part(image, left=-5.0, top=-10.0, side=50.0, image_size=100)
    assert (whole.any(-1).sum(0) > 0).sum() == 80
    assert (whole.any(-1).sum(1) > 0).sum() == 60


def test_broken_and_unpaired_photos_are_counted_and_named(config, tmp_path):
    root = tmp_path / "photos/train"
    for name in "abcdef":
        write_ramp(root / f"{name}.png")
        (root / f"{name}.pts").write_text(pts_text(face(60, 45, 20) + 1.0))
    (root / "b.png").write_bytes(b"no image")
    (root / "c.pts").write_text("no landmarks")
    (root / "d.pts").unlink()
    (root / "e.pts").write_text(pts_text(face(60, 45, 20, count=21) + 1.0))
    dataset = load.load_split(config, "train")
    assert len(dataset) == 2 and dataset.report.found == 5
    broken = dict(dataset.report.broken)
    assert list(broken) == ["train/b.png", "train/c.png", "train/e.png"]
    assert "line 1: need 'version:'" in broken["train/c.png"]
    assert "e.pts holds 21 landmarks, others 68" in broken["train/e.png"]
    assert dataset.report.unpaired == ("train/d.png",)
    assert "images of train are without landmarks, the first train/d.png" in (
        load.ds.remark(dataset.report)
    )


def test_splits_are_those_of_folders_and_photos(config, tmp_path):
    root = tmp_path / "photos"
    faces = []
    for split in ("train", "val"):
        for i in range(2):
            name = f"{split}/{i}.png"
            write_ramp(root / name)
            faces += [(name, face(60, 45, 20 + i, 21), [1] * 20 + [0])] * (1 + i)
    faces.append(("train/gone.png", face(1, 1, 1, 21), [1] * 21))
    (root / "landmarks.csv").write_text(csv_text(faces))
    config.data.layout = "csv"
    with pytest.raises(UserError, match="face.landmarks: .* have 21 landmarks, aflw21"):
        load.load_split(config, "train")
    config.face.landmarks = "aflw21"
    for split in ("train", "val"):
        dataset = load.load_split(config, split)
        assert len(dataset) == 3 and dataset.report.found == 3
        keypoints = dataset.arrays["keypoints"]
        assert np.isnan(keypoints[:, 20]).all()
        assert np.isfinite(keypoints[:, :20, :2]).all()
        noted = "1 of the photos that landmarks name are not there" in load.ds.remark(
            dataset.report
        )
        assert noted == (split == "train")
    with pytest.raises(UserError, match="no folder 'test'"):
        load.load_split(config, "test")
    config.data.split, config.data.hash_split_percent = "hash", (100, 0, 0)
    assert len(load.load_split(config, "train")) == 6


def test_a_streamed_set_has_the_examples_of_one_in_memory(config, tmp_path):
    root = tmp_path / "photos/train"
    for i in range(3):
        write_ramp(root / f"{i}.png")
        (root / f"{i}.pts").write_text(pts_text(face(40 + i, 45, 20) + 1.0))
    kept = load.load_split(config, "train")
    config.data.device_memory_mib = 0
    streamed = load.load_split(config, "train")
    assert streamed.is_streamed and not kept.is_streamed
    assert (
        streamed.keypoint_flip == kept.keypoint_flip and len(kept.keypoint_flip) == 68
    )
    found = streamed.take([2, 0])
    for name in ("image", "keypoints"):
        np.testing.assert_array_equal(found[name], kept.arrays[name][[2, 0]])
    assert load.load_split(config, "train").report.cached


@pytest.mark.parametrize("layout", ["pts", "csv"])
def test_a_moved_point_makes_another_data_set(config, tmp_path, layout):
    """Also where the table stays as long as it was: a run must not resume on it."""
    root = tmp_path / "photos/train"
    write_ramp(root / "a.png")
    write_ramp(root / "b.png")
    config.data.layout = layout
    table = root / "a.pts" if layout == "pts" else root / "landmarks.csv"
    config.data.path = str(root)
    config.data.split, config.data.hash_split_percent = "hash", (100, 0, 0)
    points = face(60, 45, 20).round(2)
    if layout == "pts":
        table.write_text(pts_text(points))
        (root / "b.pts").write_text(pts_text(points))
    else:
        known = np.ones(68, bool)
        rows = [(name, points, known) for name in ("a.png", "b.png")]
        table.write_text(csv_text(rows, 68))
    before = load.load_split(config, "train")
    assert load.load_split(config, "train").digest == before.digest
    text, length = table.read_text(), table.stat().st_size
    assert "80.0" in text or "80," in text
    table.write_text(text.replace("80", "81", 1))
    assert table.stat().st_size == length
    after = load.load_split(config, "train")
    assert len(after) == len(before) == 2 and after.digest != before.digest


def test_a_batch_bears_unknown_landmarks_and_mirrors_them(config, tmp_path):
    """What is unknown on one side is unknown on the other, and nothing else is lost."""
    root = tmp_path / "photos"
    points = {i: (30.0 + 2 * i, 20.0 + (i * 7) % 40) for i in range(1, 21) if i != 13}
    for i in range(2):
        write_ramp(root / f"train/flickr/{i}.png")
    faces = {7 + i: (f"{i}.png", points) for i in range(2)}
    write_aflw(root / "train/aflw.sqlite", faces)
    config.data.path, config.data.layout = str(root / "train"), "aflw"
    config.data.split, config.data.hash_split_percent = "hash", (100, 0, 0)
    config.train.batch_size, config.face.landmarks = 2, "aflw21"
    dataset = load.load_split(config, "train")
    stored = dataset.arrays["keypoints"]
    known = np.isfinite(stored[..., 0])
    np.testing.assert_array_equal(known[0], [i in points for i in range(1, 22)])
    fields = ("image", "keypoints")
    rows = source.train_source(
        dataset, config, fields=fields, devices=jax.devices()[:1], seed=0
    )
    # Ears change places; the unknown left one is the unknown right one in the mirror.
    flip = np.array(dataset.keypoint_flip)
    seen = set()
    for _ in range(6):
        batch = next(rows)
        for image, found in zip(
            batch.image[0], np.asarray(batch.keypoints[0]), strict=True
        ):
            plain = np.isnan(found[12, 0])
            seen.add(bool(plain))
            order = np.arange(21) if plain else flip
            index = int(
                np.abs(image - stored_image(dataset, plain)).sum((1, 2, 3)).argmin()
            )
            expected = stored[index][order]
            if not plain:
                expected = [SIZE - 1, 0, 0] + expected * [-1, 1, 1]
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert seen == {True, False}
    again = batches.mirror(
        batches.mirror(batch, keypoint_flip=dataset.keypoint_flip),
        keypoint_flip=dataset.keypoint_flip,
    )
    np.testing.assert_allclose(again.keypoints, batch.keypoints, atol=1e-5)


def stored_image(dataset, plain):
    image = dataset.arrays["image"].astype(np.float32) / 255
    return image if plain else image[:, :, ::-1]


def test_options_that_do_not_fit_are_refused(config, tmp_path):
    write_ramp(tmp_path / "photos/train/a.png")
    with pytest.raises(
        UserError, match="no photo under .* has landmarks in layout pts"
    ):
        load.load_split(config, "train")
    (tmp_path / "photos/train/a.pts").write_text(pts_text(some_points(49)))
    with pytest.raises(UserError, match="a.pts holds 49 landmarks; need 68"):
        load.load_split(config, "train")
    config.data.crop = (4,)
    with pytest.raises(UserError, match="data.crop"):
        load.load_split(config, "train")
    config.data.crop = ()
    del config.data["layout"]
    with pytest.raises(UserError, match="not for stn3dmm"):
        load.load_split(config, "train")
