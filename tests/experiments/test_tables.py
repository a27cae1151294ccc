"""The tables: rows, seeds, resumption, and every number of the Markdown."""

import json
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import two_players
from bust import make
from PIL import Image

from configs import default
from configs.tables import (
    recipes,
    stability,
    synface,
    table2,
    table3,
    table4,
    table5,
)
from unsup3d_jax import cli, configuration, flags
from unsup3d_jax.configuration import flatten
from unsup3d_jax.engine import recorder, replicas, workdir
from unsup3d_jax.engine.interrupts import Interrupted, Interrupts
from unsup3d_jax.engine.task import Session
from unsup3d_jax.errors import UserError
from unsup3d_jax.experiments import modes, paper_tables
from unsup3d_jax.experiments.tables import figure, kinds, run, summary, unsup3d_rows
from unsup3d_jax.experiments.tables.rows import base_config, row_config, table_of
from unsup3d_jax.experiments.tables.text import markdown, write_table
from unsup3d_jax.unsup3d import evaluate, model, task
from unsup3d_jax.unsup3d.modes import KEYS

FILES = {
    "table2": table2, "table3": table3, "table4": table4, "table5": table5,
    "synface": synface, "stability": stability,
}  # fmt: skip


def _config(name="table2", **changes):
    config = FILES[name].get_config()
    config.tables.scale = "tiny"
    for key, value in changes.items():
        config.tables[key] = value
    config.lock()
    return config


def _kinds(base):
    sessions = kinds.Sessions(Session(base, range, Interrupts()))
    return run._kinds({base.method: base}, {}, Path("/nowhere"), sessions)[0]


def _row(side, mad, *, std=0.1, hollow=0.0, yaw=0.9, depth_std=0.02, depth=None):
    known = {} if depth is None else {"depth_pearson": {"mean": depth, "n": 16}}
    return known | {
        "images": 16,
        "side": {"mean": side, "std": std, "n": 16},
        "mad_deg": {"mean": mad - 1, "std": std, "n": 16},
        "mad_authors_deg": {"mean": mad, "std": std, "n": 16},
        "coverage": {"mean": 0.9, "std": 0.01, "n": 16},
        "view": {"yaw": {"pearson": yaw, "slope": 0.5}},
        "viewpoint": {"error_deg": {"mean": 5.0, "std": 1.0, "n": 16}},
        "auroc": {
            k: {"mean": 0.7, "std": 0.1, "n": 9} for k in ("patch", "asymmetric")
        },
        "shape": {
            "depth_std": depth_std,
            "hollow_share": hollow,
            **{f"view_std_{a}_deg": 9.0 for a in "xyz"},
        },
    }


# --- configurations ---------------------------------------------------------------


@pytest.mark.parametrize("scale", recipes.SCALES)
@pytest.mark.parametrize("name", FILES)
def test_every_row_of_every_table_is_a_valid_config(name, scale):
    config = FILES[name].get_config()
    config.tables.scale = scale
    table, rows = table_of(config)
    base = base_config(config)
    assert set(rows) == set(table.rows)
    for row in rows.values():
        made = row_config(base, row, seed=1, encoder=Path("/x.npz"))
        task.check_config(made)
        assert made.seed == 1 and made.data.name == config.data.name
        assert made.model.supervision == (
            "depth" if row.kind == "supervised" else "none"
        )
        steps = made.train.steps
        shares = {key: round(share * steps) for key, share in row.shares.items()}
        expected = {**table.changes, **row.changes, **shares}
        flat = flatten(made.to_dict())
        assert {key: flat[key] for key in expected} == expected
        assert (made.loss.perceptual_weights == "/x.npz") == row.needs_encoder
    if scale == "paper":
        assert base.train.steps == 50000 and base.model.width == 64


def test_what_the_user_sets_wins_over_the_recipe():
    config = table3.get_config()
    config.tables.scale = "small"
    config.train.steps = 77
    config.loss.perceptual_weights = "mine.pth"
    base = base_config(config)
    assert base.train.steps == 77 and base.loss.perceptual_weights == "mine.pth"
    assert base.data.image_size == 32 and base.depth.bump_height > 0  # the recipe
    assert base.data.crop == () and isinstance(base.data.hash_split_percent, tuple)


def test_a_default_that_the_command_line_names_wins_over_the_recipe(monkeypatch):
    config = str(flags.CONFIG_FOLDER / "tables" / "table3.py")
    given = ["--config.tables.scale=small", "--config.train.warmup_steps=0"]
    given = ["main.py", "--mode=tables", f"--config={config}", *given]
    args = flags.parse(given, cli.METHODS)
    assert args.given == {"tables.scale", "train.warmup_steps"}
    assert base_config(args.config).train.warmup_steps == 100
    base = base_config(args.config, args.given)
    assert base.train.warmup_steps == 0 and base.train.learning_rate == 1e-3
    assert base.loss.perceptual == 1.0  # the table's

    passed_on = {}
    monkeypatch.setattr(run, "run_table", lambda *_, **named: passed_on.update(named))
    modes.run_tables(args, Interrupts())
    assert passed_on["given"] == args.given


def test_what_the_user_sets_wins_over_the_table_but_not_over_the_row():
    config = table3.get_config()
    config.tables.scale = "small"
    config.loss.perceptual = 0.25
    table, rows = table_of(config)
    base = base_config(config)
    made = {name: row_config(base, row, seed=0) for name, row in rows.items()}
    weights = {name: row.loss.perceptual for name, row in made.items()}
    assert weights.pop("no_perceptual") == 0 and set(weights.values()) == {0.25}
    made_with = run.made_with(base, Path("/nowhere"), {}, _kinds(base))
    assert made_with["changes"] == {"loss.perceptual": 0.25}


def test_a_row_does_not_change_with_the_number_of_seeds():
    made = []
    for seeds in (2, 5):
        config = _config(seeds=seeds, figure_images=seeds)
        table, rows = table_of(config)
        base = base_config(config)
        made.append(row_config(base, rows["ours"], seed=1).to_dict())
    assert made[0] == made[1]


def test_rows_can_be_chosen_and_are_checked():
    _, rows = table_of(_config(rows=("ours", "constant")))
    assert list(rows) == ["constant", "ours"]  # the paper's order
    with pytest.raises(UserError, match="'mine' is no row of table2; its rows are"):
        table_of(_config(rows=("mine",)))
    with pytest.raises(UserError, match="use a config of configs/tables/"):
        table_of(default.get_config())


def test_each_config_starts_as_it_says():
    """bump, gain, clipping, rates of the viewpoint and depth networks."""
    starts = {}
    methods = {"unsup3d": KEYS}
    for path in flags.CONFIG_FOLDER.glob("*.py"):
        if path.stem not in ("__init__", "default", "shared"):
            c = configuration.load(path, methods)
            rates = c.train.lr_scale
            limits = (c.depth.bump_height, c.depth.output_gain, c.train.clip_norm)
            starts[path.stem] = (*limits, rates.view, rates.depth)
    shipped, short = (0.5, 0.03, 0.0, 1.0, 1.0), (0.5, 0.03, 1.0, 2.0, 2.0)
    assert starts.pop("cars") == (0.0, 1.0, 0.0, 1.0, 1.0)  # the paper's
    assert {starts.pop(name) for name in ("quickstart", "faces", "folder_small")} == {
        short
    }
    assert len(starts) >= 5 and set(starts.values()) == {shipped}


@pytest.mark.parametrize("scale", ["small", "paper"])  # 6 steps round to 0
def test_recipes_against_collapse_add_one_thing_each_to_the_papers_start(scale):
    config = stability.get_config()
    config.tables.scale = scale
    table, rows = table_of(config)
    base = base_config(config)
    made = {
        name: flatten(row_config(base, row, seed=0).to_dict())
        for name, row in rows.items()
    }
    start = made["paper_start"]
    papers = default.get_config()
    default.use_papers_start(papers)
    paper = flatten(papers.to_dict())
    for key in table.changes:
        assert start[key] == paper[key], key
    for name, found in made.items():
        changed = {key for key in found if found[key] != start[key]}
        assert changed == {*rows[name].changes, *rows[name].shares}, name
    steps = base.train.steps
    usual = flatten(default.get_config().to_dict())
    for key in table.changes:  # what is shipped as the default is a row
        assert made["bump"][key] == usual[key], key
    assert made["robust"]["train.depth_full"] == round(0.2 * steps)
    assert made["view_warmup"]["view.warmup_steps"] == round(0.2 * steps)


def test_an_untrained_row_is_scored_from_its_initial_parameters(tmp_path, machine):
    given = []

    def baselines(data, options, *, names, initial_params, **_):
        given.append((names, initial_params, options.factors.bump.height))
        return [{"name": names[0]} | _row(0.01, 20, yaw=0.0)]

    config = _config("stability", rows=("untrained_bump",), figure_images=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "baselines", baselines)
        patch.setattr(task, "initial_params", lambda config: {"seed": config.seed})
        _run(config, tmp_path)
    assert given == [(("untrained",), {"seed": 0}, 0.5)]
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["rows"]["untrained_bump"]["yaw_pearson"]["seeds"] == [0.0]
    # Nothing was trained, so nothing failed; and nothing was published.
    assert content["stability"] is None
    assert content["rows"]["untrained_bump"]["collapses"] is None
    text = (tmp_path / "table.md").read_text()
    assert "Rank agreement" not in text and "0.500" not in text


def test_help_names_the_tables():
    text = flags._parser(cli.METHODS, "unsup3d").format_help()
    assert "tables/table2" in text and "recipes" not in text


# --- statistics -------------------------------------------------------------------


def test_rank_agreement_by_counting_pairs():
    assert summary.kendall_tau([1, 2, 3, 4], [10, 20, 30, 40]) == 1.0
    assert summary.kendall_tau([1, 2, 3], [3, 2, 1]) == -1.0
    # 6 pairs: 4 agree, 2 do not.
    np.testing.assert_allclose(summary.kendall_tau([1, 2, 3, 4], [2, 1, 4, 3]), 2 / 6)
    # One tie on the left: (2 - 0) / sqrt(2 * 3).
    np.testing.assert_allclose(
        summary.kendall_tau([1, 1, 2], [1, 2, 3]), 2 / np.sqrt(6)
    )
    # One tie on each side: (4 - 0) / sqrt(5 * 5).
    np.testing.assert_allclose(summary.kendall_tau([1, 1, 2, 3], [1, 2, 2, 3]), 0.8)
    assert summary.kendall_tau([], []) is None
    assert summary.kendall_tau([1], [1]) is None
    assert summary.kendall_tau([1, 1], [1, 2]) is None


def test_spread_over_images_is_not_that_over_seeds():
    rows = [_row(1.0, 5, std=0.3), _row(2.0, 5, std=0.5), {"diverged": "x"}]
    got = summary.over_seeds(rows, "side")
    assert got["mean"] == 1.5 and got["std_images"] == 0.4
    np.testing.assert_allclose(got["std_seeds"], np.std([1, 2], ddof=1))
    assert summary.over_seeds(rows[:1], "side")["std_seeds"] is None
    assert summary.over_seeds(rows[2:], "side") is None
    rows[0]["side"] |= {"mean": None}  # NaN, as a file has it
    rows.append({"side": {"mean": 0.0, "std": 0.0, "n": 0}})  # over no image
    assert summary.over_seeds(rows, "side")["seeds"] == [2.0]


@pytest.mark.parametrize(
    "row, failed",
    [
        (_row(1, 1), []),
        (_row(1, 1, hollow=0.8), ["hollow"]),
        (_row(1, 1, depth_std=1e-4, hollow=0.8), ["flat"]),
        # With true depth: noise, a hollow face, a face beside the frame's middle.
        (_row(1, 1, depth=0.9), []),
        (_row(1, 1, depth=0.1), ["shape_lost"]),
        (_row(1, 1, depth=-0.2, hollow=0.9), ["shape_lost"]),
        (_row(1, 1, depth=-0.8), ["hollow"]),
        (_row(1, 1, depth=0.9, hollow=0.9), []),
        (_row(1, 1, depth=0.0, depth_std=1e-4), ["flat"]),
        (_row(1, 1, depth=-0.8, hollow=1.0, yaw=-0.9), ["hollow", "view_lost"]),
        (_row(1, 1, yaw=0.1), ["view_lost"]),
        (_row(1, 1, yaw=None), ["view_lost"]),
        (_row(1, 1, depth_std=None), ["diverged"]),
        ({"diverged": "step 3"}, ["diverged"]),
    ],
)
def test_each_collapse_is_told_apart(row, failed):
    got = summary.collapses(row, depth_range=0.2)
    assert [name for name, is_so in got.items() if is_so] == failed


def test_same_rotation_for_all_is_a_view_collapse():
    row = _row(1, 1)
    row["shape"] |= {f"view_std_{a}_deg": 0.5 for a in "xyz"}
    assert summary.collapses(row, depth_range=0.2)["view_collapsed"]
    assert summary.collapses({"side": {}}, depth_range=0.2) == {}


def _scores():
    return {
        "supervised": [_row(0.004, 10), _row(0.005, 11)],
        "constant": [_row(0.027, 43)],
        "average_background": [_row(0.020, 23)],
        "average": [_row(0.010, 20)],
        "ours": [_row(0.008, 16), _row(0.012, 18, hollow=1.0)],
    }


def _record(scores=None, complete=True):
    config = _config()
    table, rows = table_of(config)
    bases = {"unsup3d": base_config(config)}
    return summary.summarise(bases, table, rows, scores or _scores(), complete=complete)


def test_the_record_holds_orders_rates_and_recovery():
    record = _record()
    assert record["rank_agreement"]["side"] == {"kendall_tau": 1.0, "rows": 4}
    claims = {(c["better"], c["worse"]): c for c in record["claims"]}
    good = claims["ours", "average_background"]
    assert good["side"] == {"seen": True, "separated": True}
    assert len(claims) == 3
    # One of two unsupervised trainings is hollow; supervised ones do not count.
    assert record["stability"]["seeds"] == 2 and record["stability"]["hollow"] == 1
    assert record["stability"]["failed_share"] == 0.5
    np.testing.assert_allclose(
        record["recovered"]["side"], (0.027 - 0.010) / (0.027 - 0.0045)
    )
    assert record["rows"]["ours"]["published"]["side"] == 0.793
    assert "published" not in record["rows"]["average"]
    assert record["rows"]["ours"]["auroc_patch"]["seeds"] == [0.7, 0.7]


def test_an_order_that_is_not_seen_is_said_so():
    scores = _scores()
    scores["ours"] = [_row(0.025, 60), _row(0.012, 18)]
    record = _record(scores)
    claims = {c["worse"]: c for c in record["claims"] if c["better"] == "ours"}
    assert claims["constant"]["side"] == {"seen": True, "separated": True}
    assert claims["average_background"]["side"]["seen"]
    assert not claims["average_background"]["side"]["separated"]
    assert not claims["average_background"]["mad_authors_deg"]["seen"]
    assert "MAD **not seen**" in markdown(record)
    scores["ours"] = [_row(0.012, 18)]  # one seed is below, but proves no spread
    claims = {c["worse"]: c for c in _record(scores)["claims"] if c["better"] == "ours"}
    assert claims["constant"]["side"] == {"seen": True, "separated": False}


def test_markdown_is_made_from_the_json_alone(tmp_path):
    record = _record()
    write_table(tmp_path, record)
    text = (tmp_path / "table.md").read_text()
    content = json.loads((tmp_path / "table.json").read_text())
    assert markdown(content) + "\n" == text
    line = next(x for x in text.splitlines() if "Ours (unsup" in x and "|" in x)
    cells = [c.strip() for c in line.strip("|").split("|")]
    spread = 100 * np.std([0.008, 0.012], ddof=1)
    assert cells[1] == f"1.000 ± 10.000 ± {spread:.3f}"  # images, then seeds
    assert cells[2] == "0.793 ± 0.140" and cells[-1] == "1 of 2: hollow 1"
    assert cells[-2] == "0.90, 0.50"
    assert "Ours (unsupervised): sigma" in text and "AUROC 0.70 ± 0.10 ± 0.00." in text
    assert "these numbers mean nothing" in text  # tiny
    assert "Kendall's tau 1.00 over 4 rows" in text
    assert "not complete" in markdown(_record(complete=False))


def test_numbers_of_the_paper_are_those_printed_there():
    rows = paper_tables.TABLES["table3"].rows
    printed = {name: row.published.side for name, row in rows.items()}
    assert printed == {
        "full": 0.793, "no_albedo_flip": 2.916, "no_depth_flip": 1.139,
        "no_light": 2.406, "no_perceptual": 0.931, "self_supervised": 0.815,
        "no_confidence": 0.829, "no_symmetry": 1.334,
    }  # fmt: skip
    four = paper_tables.TABLES["table4"].rows
    assert [r.published.mad for r in four.values()] == [16.39, 16.51, 26.61, 17.14]


# --- running ----------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """Training and scoring that take no time; counts what was trained."""
    trained = []

    def fake_train(session, place):
        config = session.config
        trained.append((place.parent.name, config.seed))
        if place.parent.name == "ours" and config.seed == machine_state["diverge"]:
            raise recorder.Diverged("step 2: loss nan")
        steps = machine_state["stop"] or config.train.steps
        return {}, steps

    machine_state = {"diverge": None, "stop": None}
    monkeypatch.setattr(task, "train", fake_train)
    data = types.SimpleNamespace(digest="of the data")
    monkeypatch.setattr(kinds.load, "lazy_splits", lambda *_: lambda split: data)
    monkeypatch.setattr(model, "load_constants", lambda config: {})
    monkeypatch.setattr(
        evaluate,
        "evaluate",
        lambda *a, **k: {"name": "ours", "ground_truth": True} | _row(0.01, 20),
    )
    monkeypatch.setattr(
        evaluate,
        "baselines",
        lambda data, options, *, names, **k: [{"name": names[0]} | _row(0.03, 40)],
    )
    return machine_state, trained


def _run(config, workdir):
    with Interrupts() as interrupts:
        return run.run_table(Session(config, range, interrupts), workdir)


def test_finished_seeds_are_not_trained_again(tmp_path, machine):
    _, trained = machine
    text = _run(_config(seeds=2, figure_images=0), tmp_path)
    assert trained == [("supervised", 0), ("supervised", 1), ("ours", 0), ("ours", 1)]
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["complete"] and len(content["rows"]["ours"]["side"]["seeds"]) == 2
    assert (tmp_path / "rows/ours/seed1/eval/test.json").is_file()
    trained.clear()
    assert _run(_config(seeds=2, figure_images=0), tmp_path) == text and trained == []
    _run(_config(seeds=3, figure_images=0), tmp_path)  # one more seed
    assert trained == [("supervised", 2), ("ours", 2)]


def test_an_interrupted_table_goes_on_where_it_was(tmp_path, machine):
    state, trained = machine
    state["stop"] = 3  # steps, of 6
    with pytest.raises(Interrupted):
        _run(_config(seeds=1, figure_images=0, rows=("constant", "ours")), tmp_path)
    content = json.loads((tmp_path / "table.json").read_text())
    assert not content["complete"] and "side" in content["rows"]["constant"]
    state["stop"] = None
    _run(_config(seeds=1, figure_images=0, rows=("constant", "ours")), tmp_path)
    assert trained == [("ours", 0), ("ours", 0)]
    assert json.loads((tmp_path / "table.json").read_text())["complete"]


def test_a_diverged_seed_is_reported_and_the_table_goes_on(tmp_path, machine):
    state, trained = machine
    state["diverge"] = 0
    for _ in range(2):  # the second time it is only read
        text = _run(_config(seeds=2, figure_images=0, rows=("ours",)), tmp_path)
    assert trained == [("ours", 0), ("ours", 1)]
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["stability"]["diverged"] == 1 and content["stability"]["seeds"] == 2
    assert len(content["rows"]["ours"]["side"]["seeds"]) == 1
    assert "1 of 2 unsupervised trainings failed" in text


def test_the_encoder_is_trained_once_for_the_row_that_needs_it(
    tmp_path, machine, monkeypatch
):
    calls = []

    def pretrain(session, output):
        config = session.config
        calls.append(config.rotnet.steps)
        output.write_bytes(b"")
        record = {"steps": config.rotnet.steps}
        output.with_suffix(".json").write_text(json.dumps(record))
        return record

    monkeypatch.setattr(unsup3d_rows.rotnet, "pretrain", pretrain)
    seen = []
    fake = task.train
    monkeypatch.setattr(
        task,
        "train",
        lambda session, place: (
            seen.append(session.config.loss.perceptual_weights) or fake(session, place)
        ),
    )
    config = _config(
        "table3", seeds=1, figure_images=0, rows=("full", "self_supervised")
    )
    _run(config, tmp_path)
    _run(config, tmp_path)
    assert calls == [3] and seen == ["", str((tmp_path / "rotnet.npz").resolve())]


# --- seeds together ---------------------------------------------------------------


class FakeFit:
    """A run of stacked parameters: seed k of the stack ends at 10 k.

    Like the real one it leaves a checkpoint, here only by `newest_step`.
    """

    def __init__(self, monkeypatch):
        self.calls, self.error, self.saved = [], None, {}
        monkeypatch.setattr(unsup3d_rows.engine_run, "train", self)
        monkeypatch.setattr(task, "model_task", lambda config, splits: config.seed)
        monkeypatch.setattr(replicas, "stacked_task", self._stack)
        for place in (unsup3d_rows, workdir):
            monkeypatch.setattr(
                place, "newest_step", lambda p: 6 if p in self.saved else None
            )

    def _stack(self, tasks, seeds):
        self.calls.append(tasks)
        return two_players.task(None)  # any will do

    def __call__(self, session, folder, plan):
        if folder in self.saved:
            return {"params": self.saved[folder]}, 6
        plan.make_task()
        tasks = self.calls[-1]
        if self.error is not None:
            raise self.error
        devices, config = jax.local_devices(), session.config
        workdir.claim_workdir(folder, config, devices, plan.identity)
        params = {"depth": 10.0 * np.array(tasks)}
        self.saved[folder] = params
        return {"params": params}, session.config.train.steps


@pytest.fixture
def together(machine, monkeypatch):
    """Config, what was trained alone, the fake fit, and what was scored."""
    state, trained = machine
    scored = []

    def score(params, *args, **kwargs):
        scored.append(float(params["depth"]) if params else None)
        return {"name": "ours", "ground_truth": True} | _row(0.01, 20)

    monkeypatch.setattr(evaluate, "evaluate", score)
    config = _config(seeds=2, figure_images=0, rows=("ours",), together=True)
    return config, trained, FakeFit(monkeypatch), scored, state


def test_a_table_names_what_its_rows_were_trained_with(tmp_path, monkeypatch):
    config = _config(rows=("ours",), seeds=3)
    table, rows = table_of(config)
    base = base_config(config)
    seeds = [row_config(base, rows["ours"], seed=k) for k in range(3)]
    for k, commit in enumerate(("a", "b", "a")):
        folder = tmp_path / "rows" / "ours" / f"seed{k}"
        folder.mkdir(parents=True)
        made = {
            "git_commit": commit,
            "devices": ["cpu:0 cpu"],
            "versions": {"jax": "1"},
        }
        (folder / "config.json").write_text(json.dumps(made))
    known = _kinds(base)
    made = run.made_with(base, tmp_path, {"constant": seeds, "ours": seeds}, known)
    assert made == {
        "changes": {},
        "commits": ["a", "b"],
        "devices": [["cpu:0 cpu"]],
        "versions": [{"jax": "1"}],
    }
    # Seeds trained as one have their run elsewhere; who scored them is no matter.
    stack = tmp_path / "rows" / "ours" / "together"
    stack.mkdir()
    monkeypatch.setattr(
        unsup3d_rows, "newest_step", lambda place: 6 if place == stack else None
    )
    made = {"config": {"tables": {"seeds": 3}}, "git_commit": "c"}
    (stack / "config.json").write_text(json.dumps(made))
    made = run.made_with(base, tmp_path, {"ours": seeds}, known)
    assert made["commits"] == ["c"]


def test_scores_of_other_images_are_made_again(tmp_path, together):
    config, trained, fit, scored, _ = together
    few = config.copy_and_resolve_references()
    with few.unlocked():
        few.eval.max_images = 8
    for now, times in ((few, 2), (few, 2), (config, 4), (config, 4)):
        _run(now, tmp_path)
        assert len(scored) == times
    assert len(fit.calls) == 1 and trained == []


def test_each_seed_is_scored_with_its_own_part_of_the_stack(tmp_path, together):
    config, trained, fit, scored, _ = together
    _run(config, tmp_path)
    assert fit.calls == [[0, 1]] and trained == [] and scored == [0.0, 10.0]
    _run(config, tmp_path)
    assert len(fit.calls) == 1 and len(scored) == 2  # all was recorded
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["seeds_trained"] == "together"
    seed1 = json.loads((tmp_path / "rows/ours/seed1/config.json").read_text())
    assert seed1["seed"] == 1
    # A third seed is no part of the finished stack; a lost score is made again.
    (tmp_path / "rows/ours/seed1/eval/test.json").unlink()
    _run(_config(seeds=3, figure_images=0, rows=("ours",), together=True), tmp_path)
    assert len(fit.calls) == 1 and trained == [("ours", 2)]
    assert scored == [0.0, 10.0, 10.0, None]


def test_what_stacked_seeds_have_scored_is_not_taken_for_another_config(
    tmp_path, together
):
    config = together[0]
    _run(config, tmp_path)
    for changed in (True, False):  # with and without tables.together
        other = config.copy_and_resolve_references()
        with other.unlocked():
            other.train.learning_rate, other.tables.together = 3e-3, changed
        with pytest.raises(UserError, match="train.learning_rate"):
            _run(other, tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        recorder.Diverged("step 2: loss nan."),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
    ],
    ids=["diverged", "memory"],
)
def test_a_stack_that_fails_leaves_the_seeds_to_themselves(tmp_path, together, error):
    config, trained, fit, scored, state = together
    fit.error, state["stop"] = error, 3
    with pytest.raises(Interrupted):
        _run(config, tmp_path)
    state["stop"] = None
    _run(config, tmp_path)
    assert trained == [("ours", 0), ("ours", 0), ("ours", 1)] and len(scored) == 2
    # Divergence comes again, memory may be another one.
    assert len(fit.calls) == (1 if isinstance(error, recorder.Diverged) else 2)


def test_other_errors_of_a_stack_are_not_swallowed(tmp_path, together):
    config, trained, fit, *_ = together
    fit.error = jax.errors.JaxRuntimeError("INTERNAL: broken")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        _run(config, tmp_path)
    assert trained == []


def _authors_folder(folder: Path, **counts: int) -> None:
    """A stand-in for their Basel Face Model folder, in its layout and encoding."""
    rng = np.random.default_rng(0)
    v, u = np.mgrid[:200, :200]
    for split, i in [
        (split, i) for split, count in counts.items() for i in range(count)
    ]:
        near = np.zeros((200, 200), np.uint8)  # black: background
        height = np.maximum(1 - ((v - 100) ** 2 + (u - 100) ** 2) / 60.0**2, 0)
        grey = 60 + (150 + 10 * (i % 3)) * height[height > 0]
        near[height > 0] = grey.astype(np.uint8)
        pixels = rng.integers(0, 255, (200, 200, 3)).astype(np.uint8)
        for kind, array in (("image", pixels), ("depth", near)):
            place = folder / split / kind / "a"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(place / f"{kind}_{i}.png")


def _authors_table(tmp_path: Path, **changes) -> tuple[str, dict]:
    """Runs table `synface` on the stand-in; its Markdown and its JSON."""
    config = synface.get_config()
    config.data.path = str(tmp_path / "data")
    config.data.cache_dir = str(tmp_path / "cache")
    config.tables.scale = "tiny"
    for key, value in changes.items():
        config.tables[key] = value
    config.lock()
    text = _run(config, tmp_path / "run")
    return text, json.loads((tmp_path / "run" / "table.json").read_text())


@pytest.mark.slow
def test_rows_are_trained_on_the_authors_layout(tmp_path):
    """Nothing but image and depth is known: no view, light, albedo or keypoints."""
    _authors_folder(tmp_path / "data", train=16, val=8, test=8)
    rows = ("supervised", "average", "full", "no_light", "no_symmetry")
    text, content = _authors_table(tmp_path, rows=rows, seeds=1, figure_images=2)
    assert content["complete"] and set(content["rows"]) == set(rows)
    for name in rows:
        assert len(content["rows"][name]["side"]["seeds"]) == 1, name
    full = content["rows"]["full"]
    assert "yaw_pearson" not in full and not full["collapses"]["view_lost"]
    assert content["stability"]["seeds"] == 3 and "w/o light" in text
    assert (tmp_path / "run" / "figure.png").is_file()


@pytest.mark.once
def test_tables_run_on_the_authors_layout(tmp_path):
    _authors_folder(tmp_path / "data", test=3)
    text, content = _authors_table(
        tmp_path, rows=("constant", "average_background"), figure_images=0
    )
    assert content["images"] == 3 and content["data"] == "synface"
    assert content["rules"]["crop"].startswith("centred, 170 x 170")
    rows = content["rows"]
    # The three shapes are nearly one: their average is far better than a plane.
    average, plane = (
        rows[k]["side"]["mean"] for k in ("average_background", "constant")
    )
    assert 0 < average < 0.5 * plane
    assert "Const. null depth" in text and "2.723 ± 0.371" in text
    made = content["made_with"]
    assert made["changes"] == {"data.name": "synface", "data.crop": [170]}
    assert made["commits"] == []  # nothing was trained
    assert "Changed for this table: `data.crop=[170]`, `data.name=synface`" in text


def test_the_figure_has_a_column_for_each_row_shape_and_albedo():
    rng = np.random.default_rng(0)
    columns = {
        "input": rng.integers(0, 255, (3, 32, 32, 3)).astype(np.uint8),
        "full": rng.random((3, 32, 32, 3)),
        "full albedo": rng.random((3, 32, 32, 3)),
    }
    sheet = figure.sheet(columns)
    assert sheet.dtype == np.uint8 and sheet.shape[1] > sheet.shape[0] - 18 - 4
    first = sheet[18 + 2 : 18 + 2 + 96 : 3, 2 : 2 + 96 : 3]
    np.testing.assert_array_equal(first, columns["input"][0])


def test_rows_on_the_same_images_share_the_column_of_their_input(monkeypatch):
    size, drawn = (1, 32, 32), {}
    shape, albedo = np.full((*size, 3), 0.2), np.full((*size, 3), 0.4)
    monkeypatch.setattr(figure, "sheet", lambda columns: drawn.update(columns))

    def exhibit(name, grey, albedo=albedo, perturbed=False):
        images = np.full((*size, 3), grey, np.uint8)
        return figure.Exhibit(name, images, shape, albedo, perturbed)

    figure.draw(
        [
            exhibit("supervised", 5, None),
            exhibit("full", 5),
            exhibit("patched_full", 9, perturbed=True),
        ]
    )
    names = ["input", "supervised", "full", "full albedo"]
    assert list(drawn) == [*names, "perturbed", "patched full", "patched full albedo"]
    assert [drawn[k].max() for k in ("input", "perturbed")] == [5, 9]
    np.testing.assert_array_equal(drawn["full"], shape)
    np.testing.assert_array_equal(drawn["full albedo"], albedo)
    assert figure.draw([]) is None


def test_long_names_of_columns_do_not_run_into_each_other():
    names = ("perturb no confidence", "perturb no confidence albedo")
    sheet = figure.sheet({name: np.zeros((1, 32, 32, 3)) for name in names})
    between = sheet[:-98, 98:100]  # above the gap of the two columns
    assert len(between) > 18 and np.ptp(between) == 0 and np.ptp(sheet[:-98]) > 0


def test_constant_depth_shows_as_even_clay(monkeypatch):
    _, options = make(32)

    def turned_views(clay, depth, scene, *, yaws_deg):
        assert yaws_deg == (25.0,)
        return clay[None], jnp.ones((1, *depth.shape), bool).at[..., 0].set(False)

    monkeypatch.setattr(figure.pictures, "turned_views", turned_views)
    shape = figure.clay.__wrapped__(jnp.ones((2, 32, 32)), options.scene)
    # Lit 30 degrees off its normal: the light is (0.4, 0.4, 1).
    np.testing.assert_allclose(shape[:, :, 1:], 0.15 + 0.75 / np.sqrt(1.32), rtol=1e-5)
    assert not np.any(shape[:, :, 0])  # beside the surface: black


@pytest.mark.once
def test_a_row_is_shown_by_its_canonical_depth_and_albedo(monkeypatch):
    factors, options = make(32)
    monkeypatch.setattr(model, "decompose", lambda *a: factors)
    monkeypatch.setattr(figure, "clay", lambda depth, scene: depth[..., None])
    images = jnp.zeros((2, 32, 32, 3))
    shape, albedo = unsup3d_rows.shape_and_albedo.__wrapped__({}, images, options)
    np.testing.assert_array_equal(albedo, factors.canon_albedo)
    np.testing.assert_array_equal(shape[..., 0], factors.canon_depth)
