"""Which files below a folder are photos, and what else is said to lie there."""

import sys

import numpy as np
import pytest
from PIL import Image

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import images, photos


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", "@eaDir"),
        ("deep/@EADIR/b.jpg", "@eaDir"),
        ("#recycle/c.jpg", "#recycle"),
        ("#snapshot/GMT-2024/c.jpg", "#snapshot"),
        ("$Recycle.Bin/S-1-5-21/$R4.jpg", "$RECYCLE.BIN"),
        ("System Volume Information/x.jpg", "System Volume Information"),
        (".Trash-1000/files/d.jpg", ".Trash*"),
        ("lost+found/e.jpg", "lost+found"),
        ("__MACOSX/deep/._f.jpg", "__MACOSX"),
        ("deep/._f.jpg", "._*"),
        (".thumbnails/1.jpg", ".thumbnails"),
        (".@__thumb/default/g.jpg", ".@__thumb"),
        ("@Recycle/g.jpg", "@Recycle"),
        ("Previews.lrdata/0/h.jpg", "*.lrdata"),
        ("My.photoslibrary/resources/derivatives/i.jpeg", "*.photoslibrary"),
        (".dtrash/files/j.jpg", ".dtrash"),
        (".picasaoriginals/k.jpg", ".picasaoriginals"),
        ("Thumbs.db", "Thumbs.db"),
        ("Icon\r", "Icon\r"),
        ("~$l.jpg", "~$*"),
        ("m.jpg.crdownload", "*.crdownload"),
        ("SYNOPHOTO_THUMB_M.jpg", "SYNOPHOTO_THUMB_*"),
    ],
)
def test_what_other_programs_leave_is_counted_and_not_read(tmp_path, name, kind):
    touch(tmp_path, name, "mine.jpg")
    found = photos.look(tmp_path)
    assert (found.images, found.leftovers, found.others) == (
        ["mine.jpg"],
        {kind: 1},
        {},
    )
    (clause,) = ds.left_out(found)
    assert clause == f"not read, of other programs: {ds.printable(kind)} (1)"


def test_what_only_looks_like_a_leftover_is_read(tmp_path):
    names = [
        "My.photoslibrary/originals/0/a.jpg",
        "eaDir/b.jpg",
        "previews/c.jpg",
        "recycle/d.jpg",
        "thumbnails128x128/e.jpg",
        "thumbs.db.jpg",
    ]
    touch(tmp_path, *names)
    found = photos.look(tmp_path)
    assert (found.images, found.leftovers) == (names, {})
    # Whoever names such a folder gets what is in it.
    touch(tmp_path, "@eaDir/f.jpg")
    assert photos.look(tmp_path / "@eaDir").images == ["f.jpg"]


def test_jpeg_goes_by_many_names(tmp_path):
    for suffix in (".jpe", ".JFIF", ".jif", ".jfi"):
        Image.new("RGB", (9, 7), (0, 0, 200)).save(tmp_path / f"x{suffix}", "JPEG")
    names = photos.look(tmp_path).images
    assert len(names) == 4
    for name in names:
        pixels, _ = images.read_image(tmp_path / name, crop=(), image_size=4)
        np.testing.assert_allclose(pixels[0, 0], (0, 0, 200), atol=3)


def test_photos_of_phones_are_read_where_the_means_are_installed(tmp_path):
    pytest.importorskip("pillow_heif")
    pixels = np.zeros((64, 32, 3), np.uint8)
    pixels[:16] = 250  # stored, the upper edge
    exif = Image.Exif()
    exif[0x0112] = 6  # which is the right one, upright
    path = tmp_path / "x.HEIC"
    Image.fromarray(pixels).save(path, "HEIF", exif=exif.tobytes())
    with images.open_upright(path) as image:
        upright = np.asarray(image)
    assert upright.shape == (32, 64, 3)
    assert upright[:, -8:].min() > 230 and upright[:, :40].max() < 20
    assert photos.look(tmp_path).images == ["x.HEIC"]


def test_photos_of_phones_are_named_with_the_remedy_where_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert not images._has_heif()
    monkeypatch.setattr(ds, "REMEDIES", {".heic": "pip install X"})
    found = photos.Found([], {".heic": 12, ".txt": 1}, {}, ())
    assert ds.left_out(found) == [
        "left out: .heic (12), .txt (1)",
        ".heic can be read after: pip install X",
    ]


def test_a_format_is_read_or_has_a_remedy():
    assert {".heic", ".heif", ".avif"} <= images.EXTENSIONS | images.REMEDIES.keys()
    assert not images.EXTENSIONS & images.REMEDIES.keys()
