"""CelebA in every layout that people have; images of noise stand for its faces."""

import io
import json
import socket
import types
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from configs import celeba as celeba_config
from unsup3d_jax import cli
from unsup3d_jax.data import celeba, celeba_files, images, report
from unsup3d_jax.data.load import load_split
from unsup3d_jax.errors import UserError

COUNT, SIZE = 9, 16
STEMS = [f"{i:06d}" for i in range(1, COUNT + 1)]
PARTITION = {stem: i // 4 for i, stem in enumerate(STEMS)}  # 4 train, 4 val, 1 test
# x, y, width, height; the second reaches out of its image to the left and below.
BOXES = {stem: (30 + i, 20, 40, 60) for i, stem in enumerate(STEMS)}
BOXES["000002"] = (-10, 60, 50, 70)


def noise(stem, size):
    """Smooth, so that JPEG keeps it."""
    rng = np.random.default_rng(int(stem))
    small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def jpeg(stem, size):
    file = io.BytesIO()
    noise(stem, size).save(file, "JPEG", quality=95)
    return file.getvalue()


ALIGNED = {f"{stem}.jpg": jpeg(stem, (178, 218)) for stem in STEMS}
WILD = {f"{stem}.jpg": jpeg(stem, (120, 100)) for stem in STEMS}


def text_list(rows, heading=""):
    lines = [f"{s}.jpg {' '.join(map(str, row))}" for s, row in rows.items()]
    head = [str(len(rows)), heading] if heading else []
    return "\n".join([*head, *lines]) + "\n"


def csv_list(rows, heading):
    lines = [f"{s}.jpg,{','.join(map(str, row))}" for s, row in rows.items()]
    return "\r\n".join([heading, *lines]) + "\r\n"


SPLITS = {stem: (split,) for stem, split in PARTITION.items()}
BOX_HEADING = "image_id x_1 y_1 width height"
AUTHORS = {stem: (PARTITION[stem], *BOXES[stem]) for stem in STEMS}
LISTS = {
    "list_eval_partition.txt": text_list(SPLITS),
    "list_bbox_celeba.txt": text_list(BOXES, BOX_HEADING),
}


def lay(root, files):
    """Files by path, a mapping being a zip file."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            with zipfile.ZipFile(path, "w") as archive:
                for member, inside in content.items():
                    archive.writestr(member, inside)
        else:
            path.write_bytes(
                content if isinstance(content, bytes) else content.encode()
            )


def under(prefix, files):
    return {f"{prefix}/{name}": content for name, content in files.items()}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    config = celeba_config.get_config()
    config.data.path = str(tmp_path / "celeba")
    config.data.cache_dir = str(tmp_path / "cache")
    config.data.image_size, config.data.min_images = SIZE, 1
    config.data.workers = 0
    return config


@pytest.fixture
def root(tmp_path):
    return tmp_path / "celeba"


def cut(content, crop):
    with Image.open(io.BytesIO(content)) as image:
        return images.rgb_square(image, crop=crop, image_size=SIZE)


KAGGLE = {
    "list_eval_partition.csv": csv_list(SPLITS, "image_id,partition"),
    "list_bbox_celeba.csv": csv_list(BOXES, BOX_HEADING.replace(" ", ",")),
    **under("img_align_celeba/img_align_celeba", ALIGNED),
}


@pytest.mark.parametrize(
    "files",
    [
        # As fetched from its own pages.
        {
            "Img/img_align_celeba.zip": under("img_align_celeba", ALIGNED),
            "Eval/list_eval_partition.txt": LISTS["list_eval_partition.txt"],
            "Anno/list_bbox_celeba.txt": LISTS["list_bbox_celeba.txt"],
        },
        # As torchvision leaves it.
        {"celeba/" + k: v for k, v in LISTS.items()}
        | under("celeba/img_align_celeba", ALIGNED),
        KAGGLE,
        {"archive.zip": KAGGLE},
        # A folder with a name of its own; told by the size of its images.
        LISTS | under("faces", ALIGNED),
    ],
    ids=["official", "torchvision", "kaggle", "kaggle_zip", "own_name"],
)
def test_aligned_images_are_cut_and_split_as_published(config, root, files):
    lay(root, files)
    for number, split in enumerate(("train", "val", "test")):
        mine = [f"{stem}.jpg" for stem in STEMS if PARTITION[stem] == number]
        got = load_split(config, split)
        want = [cut(ALIGNED[name], (57, 25, 128, 128)) for name in mine]
        np.testing.assert_array_equal(got.arrays["image"], want)
        assert got.report.broken == () and got.report.sizes == {"178x218": len(mine)}


def test_an_archive_may_be_named_itself_and_equals_its_folder(config, root):
    lay(root, {"a/archive.zip": KAGGLE} | under("b", KAGGLE))
    config.data.path = str(root / "a" / "archive.zip")
    one = load_split(config, "train")
    config.data.path = str(root / "b")
    other = load_split(config, "train")
    assert one.digest == other.digest
    np.testing.assert_array_equal(one.arrays["image"], other.arrays["image"])
    config.data.crop = (0,)
    assert load_split(config, "train").digest != other.digest


def authors_way(content, box):
    """Pads the whole image by the box's size on each side, as the authors do."""
    x, y, w, h = box
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("RGB"))
    padded = np.pad(pixels, ((h, h), (w, w), (0, 0)), mode="edge")
    part = Image.fromarray(padded[y + h : y + 2 * h, x + w : x + 2 * w])
    return np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("zipped", [True, False])
def test_the_authors_boxes_are_cut_as_they_do(config, root, zipped):
    wild = under("img_celeba", WILD)
    lay(root, {"img_celeba.zip": wild} if zipped else wild)
    lay(root, {"celeba_crop_bbox.txt": text_list(AUTHORS)})
    got = load_split(config, "train")
    want = [authors_way(WILD[f"{s}.jpg"], BOXES[s]) for s in STEMS[:4]]
    np.testing.assert_array_equal(got.arrays["image"], want)
    assert "cut by the authors' boxes" in got.report.notes
    lay(root, LISTS)  # CelebA's own boxes do not replace the authors'
    assert load_split(config, "train").digest == got.digest


def test_celebas_own_boxes_become_squares(config, root):
    lay(root, LISTS | under("img_celeba", WILD) | under("img_align_celeba", ALIGNED))
    got = load_split(config, "train")
    np.testing.assert_array_equal(
        got.arrays["image"][:2],
        [
            authors_way(WILD["000001.jpg"], (20, 20, 60, 60)),
            authors_way(WILD["000002.jpg"], (-20, 60, 70, 70)),
        ],
    )
    assert "cut by squares about CelebA's own boxes" in got.report.notes
    first = got.arrays["image"]
    lay(
        root, {"list_bbox_celeba.txt": LISTS["list_bbox_celeba.txt"].replace("30", "9")}
    )
    assert (load_split(config, "train").arrays["image"][0] != first[0]).any()


def test_a_crop_of_the_users_replaces_boxes(config, root):
    lay(root, under("img_celeba", WILD))
    config.data.crop = (0,)
    got = load_split(config, "train")
    assert len(got) == COUNT  # no list: all lie in the range of the training set
    np.testing.assert_array_equal(got.arrays["image"][0], cut(WILD["000001.jpg"], (0,)))


def test_the_authors_folders_are_read_as_any(config, root):
    for split in ("train", "val", "test"):
        lay(root, under(f"celeba_cropped/{split}", WILD))
    assert len(load_split(config, "val")) == COUNT
    config.data.path = str(root / "celeba_cropped")
    got = load_split(config, "train")
    np.testing.assert_array_equal(got.arrays["image"][0], cut(WILD["000001.jpg"], ()))
    config.data.name = "folder"  # a run begun so goes on
    assert load_split(config, "train").digest == got.digest


def test_without_a_list_the_published_ranges_divide(config, root):
    names = ["000001", "162770", "162771", "182637", "182638", "202599"]
    lay(root, {f"img_align_celeba/{n}.jpg": ALIGNED["000001.jpg"] for n in names})
    found = [load_split(config, split) for split in ("train", "val", "test")]
    assert [len(part) for part in found] == [2, 2, 2]
    assert any("no list_eval_partition" in note for note in found[0].report.notes)


def test_what_is_odd_is_counted_named_and_skipped(config, root):
    files = dict(ALIGNED) | {"000003.jpg": b"no JPEG", "000004.jpg": WILD["000004.jpg"]}
    del files["000001.jpg"]
    partition = LISTS["list_eval_partition.txt"].replace("000009.jpg 2", "000009.jpg 7")
    lay(root, {"img_align_celeba.zip": under("img_align_celeba", files)})
    lay(root, {"list_eval_partition.txt": partition + "\n000002.jpg 1\ngarbage\n"})
    found = load_split(config, "train").report
    assert [name for name, _ in found.broken] == ["000003.jpg", "000004.jpg"]
    assert "not 178 x 218" in found.broken[1][1]
    notes = "\n".join(found.notes)
    assert "3 lines of list_eval_partition.txt are no rows" in notes
    assert "the first is line 9: '000009.jpg 7'" in notes
    assert "1 of the 8 images of list_eval_partition.txt are not there" in notes
    assert "the first is 000001.jpg" in notes
    assert "1 images are in no split" in notes and "000009.jpg" in notes
    text = report.data_report(config, root.parent / "out")
    assert "000003.jpg: " in text and "3 lines of list_eval_partition.txt" in text


def test_images_without_a_box_are_named(config, root):
    authors = {s: row for s, row in AUTHORS.items() if s != "000002"}
    authors["000003"] = (0, 500, 500, 40, 40)  # beside its image
    authors["000004"] = (0, 0, 0, 10, 40)  # which the authors skip, too
    lay(root, under("img_celeba", WILD))
    lay(root, {"celeba_crop_bbox.txt": text_list(authors)} | LISTS)
    found = load_split(config, "train").report
    assert found.unpaired == ("000002.jpg", "000004.jpg")
    ((name, reason),) = found.broken
    assert name == "000003.jpg" and "lies beside the image" in reason


def test_members_that_lie_about_themselves_do_no_harm(config, root, monkeypatch):
    bomb = noise("000001", (178, 218)).tobytes()
    members = under("../../img_align_celeba", ALIGNED)
    members["../../img_align_celeba/000002.jpg"] = bomb * 20
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lay(root, {"img_align_celeba.zip": members} | LISTS)
    monkeypatch.setattr(celeba_files, "_MOST_IMAGE", len(bomb))
    before = {path for path in root.parent.rglob("*") if "cache" not in path.parts}
    found = load_split(config, "train").report
    ((name, reason),) = found.broken
    assert name == "000002.jpg" and "in the archive it claims 2,328,240 bytes" in reason
    after = {path for path in root.parent.rglob("*") if "cache" not in path.parts}
    assert before == after


def test_a_damaged_member_is_named(config, root):
    lay(root, {"img_align_celeba.zip": under("img_align_celeba", ALIGNED)} | LISTS)
    path = root / "img_align_celeba.zip"
    raw = bytearray(path.read_bytes())
    at = raw.index(ALIGNED["000003.jpg"][-400:-300])
    raw[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(raw)
    ((name, reason),) = load_split(config, "train").report.broken
    assert name == "000003.jpg" and reason.startswith("damaged in the archive")


def test_a_download_that_was_broken_off_is_said(config, root):
    lay(root, {"img_align_celeba.zip": under("img_align_celeba", ALIGNED)} | LISTS)
    path = root / "img_align_celeba.zip"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="was its download broken off"):
        load_split(config, "train")
    path.unlink()
    (root / "img_celeba.7z.001").write_bytes(b"7z")
    with pytest.raises(UserError, match=r"img_celeba.7z.001 has to be unpacked first"):
        load_split(config, "train")


def test_images_in_the_wild_alone_ask_for_a_list(config, root):
    lay(root, under("img_celeba", WILD))
    with pytest.raises(UserError, match="but no list of boxes.*celeba_crop_bbox.txt"):
        load_split(config, "train")


def test_nothing_there_is_one_line_that_says_what_to_fetch(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr(celeba.importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    config = celeba_config.__file__
    status = cli.main(["main.py", f"--config={config}", "--workdir=w"])
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2
    for words in (
        "no CelebA below 'data/celeba'",
        "img_align_celeba.zip and list_eval_partition.txt",
        celeba.HOME,
        "non-commercial research",
        "python main.py --config=configs/celeba.py --config.data.path=data/celeba",
        "docs/data.md",
    ):
        assert words in line


class _Builder:
    """Prepares nothing, or says why not."""

    def __init__(self, error=None):
        self.error, self.prepared = error, False

    def download_and_prepare(self):
        if self.error:
            raise self.error
        self.prepared = True


@pytest.fixture
def network(monkeypatch):
    """Of a machine with TensorFlow; nothing is fetched."""
    calls = []

    def connect(place, timeout):
        calls.append(place)
        return types.SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(celeba.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(socket, "create_connection", connect)
    return calls


def test_tensorflow_datasets_prepares_it_after_saying_so(
    config, root, network, monkeypatch, capsys
):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder, seen = _Builder(), {}

    def make(name, **options):
        assert "TensorFlow Datasets now downloads it" in capsys.readouterr().err
        seen.update(options, name=name)
        return builder

    def read(config, split):
        assert builder.prepared
        seen.update(crop=config.data.crop, path=config.data.path)
        raise UserError("read")

    monkeypatch.setattr(tfds, "builder", make)
    monkeypatch.setattr(celeba.tfds_images, "load", read)
    with pytest.raises(UserError, match="^read$"):
        load_split(config, "train")
    assert seen["name"] == "celeb_a" and seen["file_format"] == "array_record"
    assert seen["path"] == seen["data_dir"] == str(root)
    assert tuple(seen["crop"]) == celeba.ALIGNED_CROP


def test_a_fetch_that_fails_is_told_in_the_line(config, root, network, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = _Builder(RuntimeError("quota\nexceeded"))
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: builder)
    with pytest.raises(UserError, match=r"could not fetch it \(quota exceeded\)"):
        load_split(config, "train")

    def refuse(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(UserError, match="cannot be reached from here"):
        load_split(config, "train")


def test_records_of_tensorflow_datasets_are_found(config, root, monkeypatch):
    lay(root, {"celeb_a/2.1.0/dataset_info.json": json.dumps({})})
    seen = []

    def read(config, split):
        seen.append(config.data)
        raise UserError("read")

    monkeypatch.setattr(celeba.tfds_images, "load", read)
    for path in (root, root / "elsewhere"):
        config.data.path = str(path)
        with pytest.raises(UserError, match="^read$"):
            load_split(config, "train")
        monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert [data.path for data in seen] == [str(root)] * 2
    assert seen[0].tfds_name == "celeb_a"


@pytest.mark.parametrize(
    "line, row",
    [
        ("000001.jpg    95  71 226 313", (95, 71, 226, 313)),
        ("000001.jpg,95,71,226,313", (95, 71, 226, 313)),
        ('"000001.jpg";-5;71.0;226;313', (-5, 71, 226, 313)),
        ("img_celeba/000001.png 95 71 226 313", (95, 71, 226, 313)),
        ("000001.jpg 95 71 226", None),
        ("000001.jpg 95 71 226 313 4", None),
        ("000001.jpg 95 71 226 nan", None),
        ("000001.jpg 95 71 0 0", None),
        ("../../etc/passwd 95 71 226 313", None),
        ("000001.jpg 95 71 226 99999999999999", None),
    ],
)
def test_lines_of_lists(line, row):
    table = celeba_files.read_table("x", ["202599", "image_id x_1", "", line], 4)
    assert table.rows == ({"000001": row} if row else {})
    assert table.bad == ([] if row else [(4, line)])
