"""GAN2Shape's tables: rows of two methods, finished runs of elsewhere, verdicts."""

import json
import shutil
import types

import jax
import numpy as np
import pytest

from configs import quickstart
from configs.gan2shape import default, faces
from configs.tables import (
    gan2shape_controls,
    gan2shape_table1,
    gan2shape_table2,
    recipes,
    table2,
)
from unsup3d_jax import cli, flags
from unsup3d_jax.configuration import changed, flatten
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.engine import recorder, workdir
from unsup3d_jax.engine.interrupts import Interrupted, Interrupts
from unsup3d_jax.engine.log import MetricsFile
from unsup3d_jax.engine.scored import Scored
from unsup3d_jax.engine.task import Session
from unsup3d_jax.errors import UserError
from unsup3d_jax.evaluation import baselines, report
from unsup3d_jax.experiments.tables import figure, gan2shape_rows, kinds, run, summary
from unsup3d_jax.experiments.tables.rows import base_config, row_config, table_of
from unsup3d_jax.experiments.tables.text import markdown
from unsup3d_jax.gan2shape import options, score, view_control
from unsup3d_jax.gan2shape import run as gan2shape_run
from unsup3d_jax.unsup3d import score as unsup3d_score
from unsup3d_jax.unsup3d import task

FILES = {
    "gan2shape_table1": gan2shape_table1,
    "gan2shape_table2": gan2shape_table2,
    "gan2shape_controls": gan2shape_controls,
}
CHECKS = {"unsup3d": task.check_config, "gan2shape": options.check_config}
GIVEN = ("ours", "unsup3d_no_symmetry")


def _config(name="gan2shape_table1", scale="small", changes=(), **tables):
    config = FILES[name].get_config()
    config.tables.scale = scale
    for key, value in tables.items():
        config.tables[key] = value
    return changed(config, dict(changes))


def _configs(config, seed=0):
    """Row -> (row, its config)."""
    _, rows = table_of(config)
    bases = {m: base_config(config, (), m) for m in ("gan2shape", "unsup3d")}
    return {
        name: (row, row_config(bases[row.method], row, seed=seed))
        for name, row in rows.items()
    }


# --- configurations -----------------------------------------------------------------


@pytest.mark.parametrize("scale", recipes.SCALES)
@pytest.mark.parametrize("name", FILES)
def test_every_row_is_a_valid_config_of_the_same_images(name, scale):
    config = _config(name, scale)
    base = flatten(base_config(config).to_dict())
    other = flatten(base_config(config, (), "unsup3d").to_dict())
    for row, made in _configs(config, seed=1).values():
        CHECKS[row.method](made)
        assert made.seed == 1 and made.method == row.method
        flat = flatten(made.to_dict())
        for key in ("data.image_size", "data.pose", "data.background", "data.seed",
                    "data.asymmetry", "data.crop", "data.name", "eval.max_images",
                    "eval.split"):  # fmt: skip
            assert flat[key] == base[key], key
        # Each key of a row changes something: none is the recipe's already.
        start = base if row.method == "gan2shape" else other
        apart = {key for key in flat if flat[key] != start[key]} - {"seed"}
        apart = {k for k in apart if not k.startswith(("tables.", "rotnet."))}
        same = set(row.changes) - apart
        # Only unsup3d's recipe of the paper knows no late start of the mirrored loss.
        assert apart <= set(row.changes) and same <= {"loss.flip_start"}


def test_small_is_the_recipe_of_the_faces_and_of_the_quickstart():
    made = _configs(_config())
    ours = faces.get_config()
    ours.eval.max_images = 16
    ours.name = "gan2shape_table1"
    assert made["ours"][1].to_dict() == ours.to_dict()
    short = quickstart.get_config()
    short.data.background, short.eval.max_images = "plain", 16
    rows, theirs = flatten(made["unsup3d"][1].to_dict()), flatten(short.to_dict())
    apart = {key for key in theirs if rows[key] != theirs[key]}
    assert apart == {"eval.baselines", "eval.baseline_steps"}
    assert (short.data.pose, ours.data.pose) == ("natural", "natural")
    paper = _configs(_config(scale="paper"))["ours"][1]
    flat, usual = flatten(paper.to_dict()), flatten(default.get_config().to_dict())
    apart = {key for key in usual if flat[key] != usual[key]}
    wanted = {"data.pose", "data.background", "prior.mask", "stages.flip_all", "name"}
    assert apart == wanted and paper.stages.flip_all == (False,)


def test_rows_of_another_method_hear_what_is_common():
    changes = {"data.seed": 7, "train.learning_rate": 0.5, "eval.max_images": 5}
    config = _config(changes=changes | {"seed": 4, "loss.perceptual": 0.25})
    made = _configs(config)
    for name in GIVEN:
        found = made[name][1]
        assert (found.data.seed, found.eval.max_images, found.seed) == (7, 5, 4)
    ours, other = (made[name][1] for name in GIVEN)
    assert (ours.train.learning_rate, ours.loss.perceptual) == (0.5, 0.25)
    assert (other.train.learning_rate, other.loss.perceptual) == (1e-3, 0.0)


def test_tables_belong_to_the_method_of_their_config():
    for module, name in ((table2, "gan2shape_table1"), (gan2shape_table1, "table2")):
        config = module.get_config()
        config.tables.name = name
        with pytest.raises(UserError, match="tables.name must be one of"):
            table_of(config)
    path = flags.CONFIG_FOLDER / "tables" / "gan2shape_table2.py"
    args = flags.parse(["main.py", "--mode=tables", f"--config={path}"], cli.METHODS)
    assert args.config.method == "gan2shape" and args.config.tables.seeds == 3
    path = flags.CONFIG_FOLDER / "gan2shape" / "faces.py"
    args = flags.parse(["main.py", "--mode=tables", f"--config={path}"], cli.METHODS)
    with pytest.raises(UserError, match="use a config of configs/tables/"):
        table_of(args.config)


def test_the_scale_of_the_paper_needs_a_generator_that_is_named(tmp_path):
    def check(**changes):
        config = _config(scale="paper", rows=("ours",), changes=changes)
        base = base_config(config)
        found = gan2shape_rows.Gan2ShapeRows(base, tmp_path, _sessions(config))
        found.check({"ours": [_configs(config)["ours"][1]]})

    with pytest.raises(UserError, match="--config.projection.generator=FILE"):
        check()
    check(**{"projection.generator": "mine.pt"})
    check(**{"projection.kind": "oracle"})


# --- running ------------------------------------------------------------------------


def _sessions(config):
    return kinds.Sessions(Session(config, range, Interrupts()))


def _data(count):
    arrays = {"image": np.zeros((count, 4, 4, 3), np.uint8), "depth": np.ones(count)}
    return ds.Dataset(arrays, ds.Report("open_faces", "test", "", count), f"of {count}")


def _scores(side, mad, **more):
    def of(mean):
        return {"mean": mean, "std": 0.1, "n": 16}

    row = {"images": 16, "ground_truth": True, "side": of(side), "mad_deg": of(mad)}
    return row | {"mad_authors_deg": of(mad + 1), "coverage": of(0.8)} | more


def _finished(config, place, side, mad=20.0, last=None):
    """Leaves in a folder what `main.py` leaves of a finished run."""
    devices = jax.local_devices()
    data, split = _data(config.data.count_test), config.eval.split
    if config.method == "unsup3d":
        step = last or config.train.steps
        workdir.claim_workdir(place, config, devices, task.IDENTITY)
        (place / "checkpoints" / str(step)).mkdir(parents=True)
        ours = unsup3d_score.provenance(config, data, Scored(None, step), split)
        report.write_scores(place, {"name": "ours"} | _scores(side, mad), ours)
        return
    step = last or options.phases(config)[-1].last
    lot = place / "groups" / "00000"
    for folder in (place, lot):
        workdir.claim_workdir(folder, config, devices, options.IDENTITY)
    (lot / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
    made_of = score.conditions(config)
    ours = score.scored.provenance(config, data, Scored(None, step), split, made_of)
    row = {"name": "stage 2"} | _scores(side, mad)
    ways = [{"name": n} | _scores(side + 0.001, mad) for n in ("constant", "stage 1")]
    report.write_scores(place, row, ours, baseline_rows=ways)


@pytest.fixture
def machine(monkeypatch):
    """Data, training and the view control, which take no time; and what was run."""
    done = types.SimpleNamespace(trained=[], measured=[], ends=True, diverges=False)

    def train(args, interrupts):
        done.trained.append(args.workdir.parent.name)
        if done.diverges:
            raise recorder.Diverged("step 2: loss nan")
        if done.ends:
            _finished(args.config, args.workdir, 0.014)

    def measure(args):
        done.measured.append(args.workdir.name)
        return view_control.ViewControl(0.99, 0.75, 0.06, 0.12)

    def no_training(session, place):
        raise AssertionError(f"{place} is not recognised")

    monkeypatch.setattr(gan2shape_run, "train", train)
    monkeypatch.setattr(view_control, "of_run", measure)
    monkeypatch.setattr(task, "train", no_training)
    monkeypatch.setattr(
        kinds.load, "lazy_splits", lambda config, _: lambda split: _data(
            config.data.count_test
        )
    )  # fmt: skip
    return done


def _run(config, place):
    with Interrupts() as interrupts:
        text = run.run_table(Session(config, range, interrupts), place)
    return text, json.loads((place / "table.json").read_text())


def test_finished_runs_of_elsewhere_are_rows(tmp_path, machine):
    config = _config(rows=GIVEN, figure_images=0)
    sides = {
        "ours": (1.397, 1.304, 1.455),
        "unsup3d_no_symmetry": (1.582, 1.566, 1.548),
    }
    for seed in range(3):
        for name, (_, made) in _configs(config, seed).items():
            # The command of such a run may ask for baselines, and name itself.
            if name == "unsup3d_no_symmetry":
                wanted = {"eval.baselines": ["supervised"], "eval.baseline_steps": 300}
                made = changed(made, wanted | {"name": "quickstart"})
            place = tmp_path / "rows" / name / f"seed{seed}"
            _finished(made, place, sides[name][seed] / 100)
    text, content = _run(config, tmp_path)
    assert machine.trained == [] and len(machine.measured) == 3
    for name in GIVEN:
        found = content["rows"][name]["side"]["seeds"]
        np.testing.assert_allclose(100 * np.array(found), sides[name])
    assert "Ours, no symmetry below Unsup3d, no symmetry: SIDE seen (all seeds" in text
    assert "the first 16 images. Crop: none" in text and "Mask: true mask and" in text
    assert "0.99, 0.75 | 0.060, 0.120 |" in text
    assert "807 iterations of each group of 4; unsup3d 1600 steps" in text
    assert "| Ours, no symmetry | stage 1 | 1.485 (1.404, 1.555) | 20.00 (20" in text
    assert "| Ours, no symmetry | stage 2 | 1.385 (1.304, 1.455) | 20.00 (20" in text
    _run(config, tmp_path)
    assert machine.trained == [] and len(machine.measured) == 3  # measured once


@pytest.mark.parametrize("name", GIVEN)
def test_a_run_of_another_config_is_refused_before_anything_runs(
    name, tmp_path, machine
):
    config = _config(rows=GIVEN)
    other = changed(_configs(config)[name][1], {"train.learning_rate": 0.5})
    _finished(other, tmp_path / "rows" / name / "seed0", 0.01)
    with pytest.raises(UserError, match="train.learning_rate"):
        _run(config, tmp_path)
    assert machine.trained == []


def test_a_joint_stage_of_another_config_is_refused(tmp_path):
    config = faces.get_config()
    joint = options.joint_stage(config)
    assert joint is not None
    workdir.claim_workdir(
        tmp_path / "joint", joint, jax.local_devices(), options.IDENTITY
    )
    (tmp_path / "joint" / "checkpoints" / "5").mkdir(parents=True)
    gan2shape_run.check_folders(config, tmp_path)
    with pytest.raises(UserError, match="loss.view"):
        gan2shape_run.check_folders(changed(config, {"loss.view": 0.5}), tmp_path)


def test_a_run_older_than_the_section_of_tables_goes_on(tmp_path):
    config = faces.get_config()
    lot = tmp_path / "groups" / "00000"
    _finished(config, tmp_path, 0.01)
    record = json.loads((lot / "config.json").read_text())
    del record["config"]["tables"]
    (lot / "config.json").write_text(json.dumps(record))
    gan2shape_run.check_folders(config, tmp_path)


def test_a_row_says_what_its_iterations_took(tmp_path, machine):
    config = _config(rows=("ours",), seeds=1, figure_images=0)
    place = tmp_path / "rows" / "ours" / "seed0"
    _finished(_configs(config)["ours"][1], place, 0.02)
    log = MetricsFile(place / "groups" / "00000" / "metrics.jsonl")
    log.append({"step": 50, "split": "train", "total": 1.0, "seconds": 600.0})
    log.append({"step": 100, "split": "train", "total": 1.0, "seconds": 120.0})
    text, content = _run(config, tmp_path)
    assert content["rows"]["ours"]["minutes_an_image"]["mean"] == 12.0 / 16
    assert "| minutes an image |" in text and "| 0.75 |" in text
    # The stage that all images share is a part of it.
    joint = MetricsFile(place / "joint" / "metrics.jsonl")
    joint.append({"step": 50, "split": "train", "total": 1.0, "seconds": 240.0})
    _, content = _run(config, tmp_path)
    assert content["rows"]["ours"]["minutes_an_image"]["mean"] == 16.0 / 16
    # Of a run that an older version began nobody knows.
    joint.append({"step": 100, "split": "train", "total": 1.0})
    text, content = _run(config, tmp_path)
    assert "minutes_an_image" not in content["rows"]["ours"]
    assert "minutes an image" not in text


def test_what_is_not_finished_or_of_other_images_is_run(tmp_path, machine):
    config = _config(rows=("ours",), seeds=1, figure_images=0)
    made = _configs(config)["ours"][1]
    place = tmp_path / "rows" / "ours" / "seed0"
    _finished(made, place, 0.02, last=500)
    _, content = _run(config, tmp_path)
    assert machine.trained == ["ours"]
    assert content["rows"]["ours"]["side"]["seeds"] == [0.014]
    few = changed(config, {"eval.max_images": 12})
    _run(few, tmp_path)
    assert machine.trained == ["ours", "ours"]
    # Scores alone do not say whose they are.
    shutil.rmtree(place / "groups")
    _run(few, tmp_path)
    assert machine.trained == ["ours", "ours", "ours"]


def test_a_row_that_is_stopped_stops_the_table(tmp_path, machine):
    machine.ends = False
    with pytest.raises(Interrupted):
        _run(_config(rows=("ours",), seeds=2), tmp_path)
    assert machine.trained == ["ours"] and machine.measured == []


def test_a_row_that_diverges_is_read_the_second_time(tmp_path, machine):
    machine.diverges = True
    for _ in range(2):
        _, content = _run(_config(rows=("ours",), seeds=1), tmp_path)
    assert machine.trained == ["ours"] and "side" not in content["rows"]["ours"]
    assert not (tmp_path / "figure.png").exists()


def test_rows_without_a_generator_have_no_view_control(tmp_path, machine):
    config = _config("gan2shape_controls", rows=("no_gan",), seeds=1, figure_images=0)
    text, content = _run(config, tmp_path)
    assert machine.trained == ["no_gan"] and machine.measured == []
    assert "view_control" not in content["rows"]["no_gan"]
    assert "generator turns" not in text


def test_a_view_control_of_another_step_is_measured_again(tmp_path, machine):
    made = _configs(_config())["ours"][1]
    first, other = (
        {"checkpoint_step": step, "images": images}
        for step, images in ((807, 16), (807, 12))
    )
    for row in (first, first, other):
        found = gan2shape_rows._view_control(made, tmp_path, row)
        assert found["slope"] == 0.75
    assert len(machine.measured) == 2


def test_baselines_are_scored_on_the_images_of_the_rows(tmp_path, machine, monkeypatch):
    asked = []

    def baseline_row(name, dataset, scene, limits):
        asked.append((name, len(dataset), limits.max_images, scene.depth_min))
        return {"name": name} | _scores(0.018, 37.0)

    monkeypatch.setattr(baselines, "baseline_row", baseline_row)
    config = _config(rows=("constant", "average"))
    _, content = _run(config, tmp_path)
    assert asked == [("constant", 16, 16, 0.86), ("average", 16, 16, 0.86)]
    assert content["rows"]["constant"]["side"]["mean"] == 0.018
    assert content["complete"] and machine.trained == []


def test_the_figure_shows_the_last_stage(tmp_path, machine, monkeypatch):
    made = _configs(_config())["ours"][1]
    depth = np.stack([np.full((16, 4, 4), x, np.float32) for x in (0.5, 1.0)])
    albedo = np.stack([np.full((16, 4, 4, 3), x, np.float32) for x in (0.1, 0.3)])
    record = {"canon_depth": depth, "canon_albedo": albedo}
    monkeypatch.setattr(gan2shape_run, "read_record", lambda *_: record)
    monkeypatch.setattr(
        figure, "clay", lambda depth, scene: np.repeat(depth[..., None], 3, axis=-1)
    )
    base = base_config(_config())
    kind = gan2shape_rows.Gan2ShapeRows(base, tmp_path, _sessions(base))
    assert kind.exhibit("ours", made, tmp_path, 4) is None  # never finished
    _finished(made, tmp_path, 0.014)
    shown = kind.exhibit("ours", made, tmp_path, 4)
    assert shown is not None and shown.albedo is not None
    assert len(shown.images) == len(shown.shape) == len(shown.albedo) == 4
    assert np.max(shown.albedo) == np.float32(0.3) and np.min(shown.shape) == 1.0


@pytest.mark.slow
@pytest.mark.timeout(1800)  # compiles every step of three projections
@pytest.mark.parametrize("name", FILES)
def test_a_tiny_table_runs_to_its_end(name, tmp_path):
    config = _config(name, "tiny", seeds=1, figure_images=2)
    text, content = _run(config, tmp_path)
    assert content["complete"] and "these numbers mean nothing" in text
    assert all("side" in line for line in content["rows"].values())
    assert content["images"] == 2 and (tmp_path / "figure.png").is_file()


# --- the record ---------------------------------------------------------------------


def _record(name, scores):
    config = _config(name, rows=tuple(scores))
    table, rows = table_of(config)
    bases = {m: base_config(config, (), m) for m in ("gan2shape", "unsup3d")}
    return summary.summarise(bases, table, rows, scores, complete=True)


def test_rows_that_should_be_near_are_told_from_those_that_are_not():
    record = _record(
        "gan2shape_table2",
        {
            "ours": [_scores(0.010, 19.0), _scores(0.010, 19.0)],
            "asymmetric": [_scores(0.0109, 20.0), _scores(0.0109, 20.0)],
            "weak": [_scores(0.0089, 23.0), _scores(0.0089, 23.0)],
            "flat": [_scores(0.020, 30.0), _scores(0.021, 31.0)],
        },
    )
    near = {verdict["row"]: verdict for verdict in record["near"]}
    assert set(near) == {"asymmetric", "weak"}
    np.testing.assert_allclose(near["asymmetric"]["side"]["change"], 0.09)
    assert near["asymmetric"]["side"]["seen"] and not near["weak"]["side"]["seen"]
    text = markdown(record)
    assert "- Asymmetric within 10% of Ours: ellipsoid: SIDE +9.0 %, seen" in text
    assert "Weak within 10% of Ours: ellipsoid: SIDE -11.0 %, **not seen**; MAD" in text
    assert "- Weak below Flat: SIDE seen (all seeds apart)" in text


def test_what_symmetry_is_worth_is_said_of_both_methods():
    record = _record(
        "gan2shape_table1",
        {
            "unsup3d": [_scores(0.008, 15.0)],
            "unsup3d_no_symmetry": [_scores(0.0155, 30.0)],
            "ours": [_scores(0.014, 21.0)],
            "symmetric": [_scores(0.011, 18.5)],
        },
    )
    text = markdown(record)
    assert "- From Unsup3d to Unsup3d, no symmetry: SIDE +0.750, MAD +15.00." in text
    assert "- From Ours, with symmetry to Ours, no symmetry: SIDE +0.300" in text
    assert "different images" not in text
    del record["drops"][:]
    assert "From" not in markdown(record)


def test_rows_of_different_images_are_said_to_be():
    few = _scores(0.01, 20.0) | {"images": 8}
    record = _record("gan2shape_table1", {"ours": [few], "unsup3d": [_scores(1, 1)]})
    assert "Rows are of different images: 8, 16." in markdown(record)


def test_a_collapse_is_judged_by_the_depth_range_of_the_rows_own_method():
    shape = {"depth_std": 0.0022, "hollow_share": 0.0}
    shape |= {f"view_std_{axis}_deg": 9.0 for axis in "xyz"}
    record = _record("gan2shape_table1", {"unsup3d": [_scores(1, 1, shape=shape)]})
    limit = summary.watch.FLAT_DEPTH_SHARE
    assert limit * 0.2 < 0.0022 < limit * 0.24 and not record["stability"]["flat"]
    assert "trainings of unsup3d failed" in markdown(record)
