"""Photos in, folders out: whole or not at all, and not twice."""

import csv
import errno
import json
import shutil
import threading
from pathlib import Path

import bust
import jax
import numpy as np
import pytest
from PIL import Image

from unsup3d_jax import cli, flags
from unsup3d_jax.engine.interrupts import Interrupted
from unsup3d_jax.engine.workdir import lock_workdir
from unsup3d_jax.errors import UserError
from unsup3d_jax.evaluation.scores import ImageScores
from unsup3d_jax.unsup3d import belief, export, model, modes, reconstruct_files
from unsup3d_jax.unsup3d.options import options_from_config

SIZE = 32


@pytest.fixture(scope="module")
def trained():
    config = bust.config_of(SIZE)
    options = options_from_config(config)
    shapes = jax.eval_shape(
        lambda key: model.init_params(key, options), jax.random.key(0)
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: rng.normal(0, 0.05, s.shape).astype(np.float32), shapes
    )
    return config, params


@pytest.fixture
def exported(monkeypatch):
    """Records what would be exported instead of writing it."""
    calls = []

    def note(folder, *rest, **_):
        calls.append((folder, *rest))
        (folder / "panel.png").write_bytes(b"x" * len(calls))
        return {"asymmetry": {"mean": 0.5}}

    monkeypatch.setattr(export, "export", note)
    return calls


def save_photo(path, size=(40, 40), colour=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_folder_of_photos_skips_and_names_the_broken_one(
    tmp_path, trained, exported, capsys
):
    save_photo(tmp_path / "in" / "a.png")
    save_photo(tmp_path / "in" / "deep" / "b.jpg", colour=(30, 200, 30))
    (tmp_path / "in" / "bad.png").write_bytes(b"not an image")
    (tmp_path / "in" / "phone.CR2").write_bytes(b"")
    result = reconstruct_files.reconstruct_folder(
        *trained, tmp_path / "in", tmp_path / "out", batch_size=4
    )
    assert [target.name for _, target in result.written] == ["a", "b"]
    assert [file.name for file, _ in result.broken] == ["bad.png"]
    said = capsys.readouterr().err
    assert "bad.png" in said and "left out: .cr2 (1)" in said
    exported.sort(key=lambda call: call[0].name)  # by several threads, in any order
    (_, image, factors, reconstruction, _), (_, image_b, *_) = exported
    np.testing.assert_allclose(image[20, 20], np.array([200, 30, 30]) / 255, atol=1e-6)
    assert image_b[20, 20, 1] > 0.7
    assert factors.canon_depth.shape == reconstruction.plain.depth.shape
    assert factors.canon_depth.shape == (SIZE, SIZE)
    # Each photo has its own factors, whatever else shares its batch.
    options = options_from_config(trained[0])
    alone, _ = reconstruct_files.decompose(trained[1], image[None], options, None)
    np.testing.assert_allclose(factors.canon_depth, alone.canon_depth[0], atol=1e-5)
    assert np.abs(exported[1][2].canon_albedo - factors.canon_albedo).max() > 1e-4


def test_single_photo_is_cropped_square_not_squashed(tmp_path, trained, exported):
    photo = Image.new("RGB", (120, 40), (255, 255, 255))
    photo.paste((0, 0, 0), (40, 0, 80, 40))
    photo.save(tmp_path / "wide.png")
    reconstruct_files.reconstruct_folder(
        *trained, tmp_path / "wide.png", tmp_path / "out", batch_size=4
    )
    ((target, image, *_),) = exported
    assert target.name == "wide" and image.max() == 0.0
    assert (tmp_path / "out" / "wide" / "panel.png").exists()


def test_the_crop_of_the_data_set_is_not_taken_out_of_other_photos(
    tmp_path, trained, exported
):
    config = bust.config_of(SIZE)
    config.data.crop = (170,)
    save_photo(tmp_path / "small.png", size=(40, 40))
    reconstruct_files.reconstruct_folder(
        config, trained[1], tmp_path / "small.png", tmp_path / "out"
    )
    assert len(exported) == 1


def test_a_photo_of_the_data_set_is_cropped_as_in_training(
    tmp_path, trained, exported, capsys
):
    config = bust.config_of(SIZE)
    config.data.crop, config.data.path = (0, 40, 40, 40), str(tmp_path / "data")
    photo = Image.new("RGB", (80, 80), (255, 255, 255))
    photo.paste((0, 0, 0), (40, 0, 80, 40))
    for name in ("data/a.png", "else/a.png"):
        (tmp_path / name).parent.mkdir()
        photo.save(tmp_path / name)
        reconstruct_files.reconstruct_folder(
            config, trained[1], tmp_path / name, tmp_path / "out", batch_size=4
        )
        said = "data.crop=(0, 40, 40, 40)" in capsys.readouterr().err
        assert said == (name == "else/a.png")
    (_, inside, *_), (_, outside, *_) = exported
    assert inside.max() == 0.0 and outside.max() == 1.0


def test_of_a_model_of_made_faces_no_crop_is_told(tmp_path, trained, exported, capsys):
    config = bust.config_of(SIZE)
    config.data.crop, config.data.path = (), ""
    save_photo(tmp_path / "a.png", size=(60, 40))
    reconstruct_files.reconstruct_folder(
        config, trained[1], tmp_path / "a.png", tmp_path / "out", batch_size=4
    )
    assert len(exported) == 1
    assert "centred square" not in capsys.readouterr().err


def test_what_was_written_before_is_not_a_photo(tmp_path, trained, exported):
    save_photo(tmp_path / "a.png")
    save_photo(tmp_path / "out" / "a" / "panel.png")
    result = reconstruct_files.reconstruct_folder(*trained, tmp_path, tmp_path / "out")
    assert [file.name for file, _ in result.written] == ["a.png"]
    shutil.rmtree(tmp_path / "out")
    save_photo(tmp_path / "a" / "panel.png")
    (tmp_path / "a" / "factors.npz").write_bytes(b"")
    result = reconstruct_files.reconstruct_folder(*trained, tmp_path, tmp_path)
    assert [file.name for file, _ in result.written] == ["a.png"]


def test_photos_of_one_stem_get_folders_of_their_own(tmp_path, trained, exported):
    for name in ("x/face.png", "y/face.png", "y/FACE-2.png"):
        save_photo(tmp_path / "in" / name)
    result = reconstruct_files.reconstruct_folder(
        *trained, tmp_path / "in", tmp_path / "out", batch_size=4
    )
    names = [target.name for _, target in result.written]
    assert len({name.casefold() for name in names}) == 3
    assert names[0] == "face"


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "no image files"),
        (lambda path: path.write_bytes(b"no photo"), "could be read"),
    ],
)
def test_nothing_to_do_is_one_clear_error(tmp_path, trained, prepare, message):
    source = tmp_path / "in"
    prepare(source)
    with pytest.raises(UserError, match=message) as caught:
        reconstruct_files.reconstruct_folder(*trained, source, tmp_path / "out")
    assert str(source) in str(caught.value) and "\n" not in str(caught.value)


def test_output_that_cannot_be_written_is_an_error(tmp_path, trained):
    save_photo(tmp_path / "a.png")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="is a file"):
        reconstruct_files.reconstruct_folder(
            *trained, tmp_path / "a.png", tmp_path / "taken"
        )
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        reconstruct_files.reconstruct_folder(
            *trained, tmp_path / "a.png", tmp_path / "out", batch_size=4
        )


# --- going on -------------------------------------------------------------------


@pytest.fixture(scope="module")
def decomposed(trained):
    """What the model finds in one photo."""
    options = options_from_config(trained[0])
    grey = np.full((1, SIZE, SIZE, 3), 0.5, np.float32)
    return jax.device_get(reconstruct_files.decompose(trained[1], grey, options, None))


@pytest.fixture
def quick(monkeypatch, exported, decomposed):
    """Without the model, which would be compiled for every number of photos."""

    def decompose(params, images, options, view_range):
        return jax.tree.map(lambda a: np.repeat(a, len(images), axis=0), decomposed)

    monkeypatch.setattr(reconstruct_files, "decompose", decompose)
    return exported


def run(trained, tmp_path, **options):
    """Reconstructs tmp_path/in to tmp_path/out: names of what was written and kept."""
    result = reconstruct_files.reconstruct_folder(
        *trained, tmp_path / "in", tmp_path / "out", batch_size=4, **options
    )
    return [
        [folder.name for _, folder in part] for part in (result.written, result.kept)
    ]


def visible(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


def test_an_interrupted_command_goes_on_where_it_was(
    tmp_path, trained, quick, monkeypatch, capsys
):
    for name in "abc":
        save_photo(tmp_path / "in" / f"{name}.png")
    monkeypatch.setattr(reconstruct_files, "_WORKERS", 1)  # one after the other
    whole = export.export

    def stopped(folder, *rest, **options):
        if folder.name == "b":
            raise Interrupted
        return whole(folder, *rest, **options)

    monkeypatch.setattr(export, "export", stopped)
    with pytest.raises(Interrupted):
        run(trained, tmp_path)
    out = tmp_path / "out"
    assert visible(out) == ["a", "summary.csv"]
    said = capsys.readouterr().err
    assert "1 of 3: " in said and "3 photos: 1 reconstructed, 2 left; in " in said
    monkeypatch.setattr(export, "export", whole)
    before = (out / "a" / "panel.png").stat().st_mtime_ns
    assert run(trained, tmp_path) == [["b", "c"], ["a"]]
    assert (out / "a" / "panel.png").stat().st_mtime_ns == before
    said = capsys.readouterr().err
    assert "3 photos: 2 reconstructed, 1 were there already; in " in said
    # Nothing is hidden but the lock.
    assert visible(out / ".unsup3d_jax") == ["lock", "lock.holder"]
    assert run(trained, tmp_path) == [[], ["a", "b", "c"]]
    record = json.loads((out / "a" / "record.json").read_text())
    assert record["photo"]["path"] == str(tmp_path / "in" / "a.png")
    assert record["asymmetry"] == {"mean": 0.5} and record["files"] == {"panel.png": 1}


def test_a_changed_photo_model_option_or_file_is_made_anew(tmp_path, trained, quick):
    config, params = trained
    for name in "ab":
        save_photo(tmp_path / "in" / f"{name}.png")
    assert run(trained, tmp_path) == [["a", "b"], []]
    save_photo(tmp_path / "in" / "b.png", colour=(10, 200, 30))
    assert run(trained, tmp_path) == [["b"], ["a"]]
    (tmp_path / "out" / "a" / "panel.png").unlink()
    (tmp_path / "out" / "a" / "notes.txt").write_text("mine")
    assert run(trained, tmp_path) == [["a"], ["b"]]
    assert (tmp_path / "out" / "a" / "notes.txt").read_text() == "mine"
    config = config.copy_and_resolve_references()
    config.export.whole_surface = True
    assert run((config, params), tmp_path) == [["a", "b"], []]
    other = jax.tree.map(np.copy, params)
    jax.tree.leaves(other["view"])[0][...] += 1e-3
    assert run((config, other), tmp_path) == [["a", "b"], []]
    assert run((config, other), tmp_path) == [[], ["a", "b"]]
    half = np.float32(0.5)
    assert run((config, other), tmp_path, view_range=jax.numpy.asarray(half))[0]


def test_maps_of_a_loss_that_was_off_are_not_exported(tmp_path, trained, quick):
    config, params = trained
    config = config.copy_and_resolve_references()
    save_photo(tmp_path / "in" / "a.png")
    kinds = ("conf_sigma", "conf_sigma_flip", "conf_sigma_perceptual")
    kinds += ("conf_sigma_perceptual_flip",)
    for perceptual, flip, there in (
        (0.0, 0.5, (True, True, False, False)),
        (1.0, 0.0, (True, False, True, False)),
        (1.0, 1.0, (True, True, True, True)),
    ):
        config.loss.perceptual, config.loss.flip = perceptual, flip
        run((config, params), tmp_path)
        factors = quick[-1][2]
        assert tuple(getattr(factors, k) is not None for k in kinds) == there


def test_odd_photos_are_named_and_all_are_summed_up(tmp_path, trained, quick, capsys):
    # Grey is found whatever is shown, see `quick`.
    save_photo(tmp_path / "in" / "summary.csv.png", colour=(128, 128, 128))
    save_photo(tmp_path / "in" / "odd.png", colour=(255, 0, 255))
    (tmp_path / "in" / "torn.png").write_bytes(b"")
    assert run(trained, tmp_path)[0] == ["odd", "summary.csv-2"]
    said = capsys.readouterr().err
    assert "warning: " not in said and "coverage" in said and "doubt" not in said
    known = [record_of(tmp_path, name)["belief"] for name in ("odd", "summary.csv-2")]
    assert known[0]["error"] > known[1]["error"] and known[0]["doubt"] is None
    errors = np.full(50, known[1]["error"] + 0.01, np.float32)
    scores = ImageScores(
        recon_l1=errors,
        valid_share=np.full(50, known[1]["coverage"] - 0.01, np.float32),
    )
    usual = belief.Usual.of(scores, 7)
    # Another yardstick says other things: the folders are made anew, and then kept.
    for state in (0, 1):
        assert len(run(trained, tmp_path, usual=usual)[state]) == 2
        said = capsys.readouterr().err
        assert ("warning: " in said) == (state == 0)
        assert "1 cannot be read, 1 not to be trusted; in" in said
        with (tmp_path / "out" / "summary.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        names = [Path(row["photo"]).name for row in rows]
        assert names == ["odd.png", "summary.csv.png", "torn.png"]
        assert [row["doubtful"] for row in rows] == ["yes", "no", ""]
        assert "do not trust" in rows[0]["remark"] and rows[2]["remark"]
        assert float(rows[0]["error"]) == pytest.approx(known[0]["error"], rel=1e-3)
        assert rows[1]["folder"] == "summary.csv-2" and rows[1]["remark"] == ""


def test_of_photos_written_at_a_time_each_is_there_whole_or_not(
    tmp_path, trained, quick, monkeypatch
):
    names = [f"{i}" for i in range(8)]
    for name in names:
        save_photo(tmp_path / "in" / f"{name}.png")
    whole, met = export.export, threading.Barrier(2, timeout=60)

    def one_fails(folder, *rest, **options):
        if folder.name in "01":
            met.wait()  # both are being written
        if folder.name == "1":
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(folder, *rest, **options)

    monkeypatch.setattr(export, "export", one_fails)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="cannot write .*No space left"):
        run(trained, tmp_path)
    there = [name for name in visible(out) if name != "summary.csv"]
    assert "0" in there and "1" not in there
    for name in there:
        assert visible(out / name) == ["panel.png", "record.json"]
    assert visible(out / ".unsup3d_jax") == ["lock", "lock.holder"]
    # What a kill had left is cleared away.
    left = out / ".unsup3d_jax" / "writing-1" / "new" / "1"
    left.mkdir(parents=True)
    (left / "panel.png").write_bytes(b"half")
    monkeypatch.setattr(export, "export", whole)
    written, kept = run(trained, tmp_path)
    assert sorted(written + kept) == names and set(kept) == {*there}
    assert visible(out / ".unsup3d_jax") == ["lock", "lock.holder"]


def test_outputs_are_chosen_by_name_and_others_make_a_folder_anew(
    tmp_path, trained, quick, monkeypatch
):
    given = ["", "--mode=reconstruct", "--config=folder", "--input=i", "--output=o"]
    args = flags.parse([*given, "--outputs= mesh,factors,mesh"], cli.METHODS)
    assert args.outputs == ("factors", "mesh")
    # No face is looked for, which may be said.
    args = flags.parse([*given, "--detect=none"], cli.METHODS)
    assert args.outputs == modes.OUTPUTS
    with pytest.raises(UserError, match="--detect: invalid choice: 'cats'"):
        flags.parse([*given, "--detect=cats"], cli.METHODS)
    for wrong in ("mesh,obi", ""):
        with pytest.raises(UserError, match="--outputs=.* there are factors,maps,"):
            flags.parse([*given, f"--outputs={wrong}"], cli.METHODS)
    with pytest.raises(UserError, match="--outputs belongs to --mode=reconstruct"):
        flags.parse(["", "--config=folder", "--outputs=mesh"], cli.METHODS)
    save_photo(tmp_path / "in" / "a.png")
    asked, whole = [], export.export

    def note(*rest, outputs, **options):
        asked.append(tuple(outputs))
        return whole(*rest, **options)

    monkeypatch.setattr(export, "export", note)
    for outputs, made in ((("factors",), 1), (("factors",), 0), (modes.OUTPUTS, 1)):
        assert len(run(trained, tmp_path, outputs=outputs)[0]) == made
    assert asked == [("factors",), modes.OUTPUTS]


def record_of(tmp_path, name):
    return json.loads((tmp_path / "out" / name / "record.json").read_text())


def test_two_commands_do_not_write_at_once(tmp_path, trained, quick):
    save_photo(tmp_path / "in" / "a.png")
    with lock_workdir(tmp_path / "out" / ".unsup3d_jax"):
        with pytest.raises(UserError, match="in use by .* choose another --output"):
            run(trained, tmp_path)
    assert not quick
