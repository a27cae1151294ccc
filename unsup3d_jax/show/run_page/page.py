"""The page of a run: one HTML file that fetches nothing but pictures beside it.

It is made of what a run has written, and knows no method: whatever the log counts gets
a curve. All text of a run is escaped.
"""

import base64
import dataclasses
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unsup3d_jax.errors import one_line
from unsup3d_jax.show import documents
from unsup3d_jax.show.run_page.curves import MOST_POINTS, Curve, Curves

FILE = "report.html"
MOST_PICTURES = 300  # steps of the slider
MOST_ROWS = 2000  # of the config, and of a table
MOST_CELL = 300  # characters
FEWEST_POINTS = 40  # of a curve, however many there are
MANY_TIMES = 30.0  # largest value over the least: then the scale is of logarithms
_HERE = Path(__file__).parent
# What the engine itself, and steps by its optimizer, report; beginnings of names.
_FAMILIES = ("learning_rate", "grad_norm")
_CLOCK = ("images_per_second", "step_time", "seconds")
_HIDDEN = ("eta",)
_RULE = re.compile(r"-+(  -+)*")
_KINDS = {
    "warning": "warning",
    "skip": "step skipped",
    "rollback": "went back",
    "diverged": "diverged",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What is known of a run.

    Attributes:
        name: of the config, or of the folder.
        curves: of its log.
        record: of its config.json; empty where there is none.
        tables: split -> its scores, as a terminal shows them.
        pictures: steps of `pictures/<step>.png`, ascending.
        embedded: (step, JPEG or PNG) of a picture that travels with the page.
        written: time of the newest line, for people.
    """

    name: str
    curves: Curves
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pictures: Sequence[int] = ()
    embedded: tuple[int, bytes] | None = None
    written: str = ""

    @property
    def steps(self) -> int | None:
        """How many there are to be."""
        train = self.record.get("config", {}).get("train", {})
        steps = train.get("steps") if isinstance(train, Mapping) else None
        return steps if type(steps) is int else None


def document(run: Run, *, live: bool = False, beside: str = "") -> tuple[str, str]:
    """The page, and its content security policy, for a header.

    Args:
        live: asks the server that it came from for what is new.
        beside: address of another page of that server, or "".
    """
    style, script = _read("run.css"), _read("run.js")
    # Pictures lie beside the page: of one from disk no file is "self".
    pictures, server = ("'self'", "'self'") if live else ("file:", "'none'")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {documents.digest(script)}",
            f"style-src {documents.digest(style)}",
            f"img-src {pictures} data:",
            f"connect-src {server}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    # "<" might end the element.
    data = json.dumps(_drawn(run), allow_nan=False, separators=(",", ":"))
    link = f'<p><a href="{_shown(beside)}">Drop a photo</a></p>' if beside else ""
    parts = {
        "POLICY": html.escape(policy, quote=False),
        "TITLE": _shown(run.name),
        "STYLE": style,
        "LIVE": "live" if live else "",
        "BESIDE": link,
        "STATE": _state(run),
        "EVENTS": _events(run),
        "SCORES": _scores(run),
        "CONFIG": _config(run.record),
        "FACTS": _facts(run.record),
        "CONTENT": data.replace("<", "\\u003c"),
        "SCRIPT": script,
    }
    return documents.filled(_read("run.html"), parts), policy


# --- what the script draws ----------------------------------------------------------


def _drawn(run: Run) -> dict[str, Any]:
    embedded = None
    if run.embedded is not None:
        step, data = run.embedded
        kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
        code = base64.b64encode(data).decode()
        embedded = {"step": step, "src": f"data:image/{kind};base64,{code}"}
    return {
        "groups": groups(run.curves),
        "marks": [
            {"step": x.step, "kind": x.kind, "text": _clean(x.text)}
            for x in run.curves.events
        ],
        "pictures": _thinned(run.pictures, MOST_PICTURES),
        "embedded": embedded,
    }


def groups(curves: Curves) -> list[dict[str, Any]]:
    """What is drawn where: groups of charts, each of one or more curves."""
    most = max(MOST_POINTS // max(len(curves.curves), 1), FEWEST_POINTS)
    charts: dict[str, list[tuple[str, str, Curve]]] = {}
    for (split, name), curve in curves.curves.items():
        if name in _HIDDEN:
            continue
        family = next((x for x in _FAMILIES if name == x or name.startswith(f"{x}_")),
                      name)  # fmt: skip
        charts.setdefault(family, []).append((split, name, curve))
    found: dict[str, list[dict[str, Any]]] = {
        "Loss": [],
        "What a step reports": [],
        "Validation": [],
        "Optimizer": [],
        "Speed": [],
    }
    for name, members in charts.items():
        splits = {split for split, _, _ in members}
        if name == "total" or splits == {"train", "val"}:
            group = "Loss"
        elif name in _FAMILIES:
            group = "Optimizer"
        elif name in _CLOCK:
            group = "Speed"
        else:
            group = "What a step reports" if "train" in splits else "Validation"
        found[group].append(_chart(name, members, most))
    return [
        {"title": title, "charts": sorted(some, key=lambda x: x["title"] != "total")}
        for title, some in found.items()
        if some
    ]


def _chart(
    title: str, members: Sequence[tuple[str, str, Curve]], most: int
) -> dict[str, Any]:
    series, values = [], []
    splits, names = ({member[i] for member in members} for i in (0, 1))
    for split, name, curve in members:
        points = curve.points(most)
        values += [value for _, value in points if value is not None]
        # What tells it from the others of the chart.
        told = [split] if len(splits) > 1 or len(names) == 1 else []
        told += [name] if len(names) > 1 else []
        series.append(
            {
                "label": _clean(" ".join(told)),
                "split": split,
                "s": [step for step, _ in points],
                # As short as a screen can show.
                "v": [v if v is None else float(f"{v:.5g}") for _, v in points],
            }
        )
    series = [one for one in series if one["s"]]
    wide = bool(values) and 0 < min(values) and max(values) > MANY_TIMES * min(values)
    return {"title": _clean(title), "log": wide, "series": series}


def _thinned(steps: Sequence[int], most: int) -> list[int]:
    """Some of them, evenly, with the first and the last."""
    if len(steps) <= most:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(i * last / (most - 1))] for i in range(most)]


# --- what is written in HTML --------------------------------------------------------


def _state(run: Run) -> str:
    """How far the run is, in one sentence, and its newest numbers."""
    curves, steps = run.curves, run.steps
    line, events = curves.newest.get("train"), curves.events
    if line is None:
        return "<p>Nothing has been logged yet.</p>"
    step = curves.step
    text = f"Step {step:,}" + (f" of {steps:,}" if steps else "")
    if any(x.kind == "diverged" and x.step >= step for x in events):
        text = f"<strong>Diverged</strong>. {text}"
    elif steps and step >= steps:
        text = f"Finished. {text}"
    elif steps:
        text += f" ({step / steps:.0%})"
    shown = {
        "loss": line.get("total"),
        "validation loss": curves.newest.get("val", {}).get("total"),
        "images/s": line.get("images_per_second"),
    }
    known = [f"{name} {_number(v)}" for name, v in shown.items() if v is not None]
    eta = line.get("eta")
    if isinstance(eta, float) and math.isfinite(eta) and eta > 0:
        known.append(f"{_duration(eta)} left at this pace")
    text = f"{text}: {', '.join(map(_shown, known))}." if known else f"{text}."
    when = f" Newest line: {_shown(run.written)}." if run.written else ""
    warned = _counted(curves)
    return f"<p>{text}{when}</p>" + (f"<p>{warned}</p>" if warned else "")


def _counted(curves: Curves) -> str:
    some = [f"{_shown(_KINDS.get(k, k))}: {n:,}" for k, n in curves.counts.items()]
    text = f"In the course of the run: {', '.join(some)}"
    return f'<a href="#events">{text}</a>' if some else ""


def _events(run: Run) -> str:
    curves, events = run.curves, run.curves.events
    if not events and "begun" in run.record:
        return "<p>None: the watch has found nothing, and no step was skipped.</p>"
    if not events:  # warnings are logged since config.json has that
        return "<p>None is in the log.</p>"
    items = [
        f'<li class="kind-{x.kind if x.kind in _KINDS else "other"}">'
        f"<strong>Step {x.step:,}, {_shown(_KINDS.get(x.kind, x.kind))}</strong>"
        f"{': ' if x.text else ''}{_shown(x.text)}</li>"
        for x in events
    ]
    more = sum(curves.counts.values()) - len(events)
    left = f"<p>{more:,} between them are left out.</p>" if more > 0 else ""
    return f"<ul>{''.join(items)}</ul>{left}"


def _scores(run: Run) -> str:
    """The tables, and where there is none the line of the log that sums it up."""
    parts = []
    for split in dict.fromkeys([*run.tables, *run.curves.scores]):
        parts.append(f"<h3>Split {_shown(split)}</h3>")
        if split in run.tables:
            parts.append(_table(run.tables[split], split))
            continue
        rows = [
            f'<tr><th scope="row">{_shown(k)}</th><td>{_number(v)}</td></tr>'
            for k, v in run.curves.scores[split].items()
            if k not in ("step", "split", "of")
        ]
        parts.append(_scrolled(f"<table>{''.join(rows)}</table>", f"Scores, {split}"))
    if not parts:
        return "<p>Not scored yet: that comes after the last step.</p>"
    return "".join(parts)


def _table(text: str, split: str) -> str:
    """HTML of a text for a terminal: tables, with a rule under their heads, and words.

    Columns end where the rule's dashes do; see `evaluation.report.aligned`.
    """
    lines = text.splitlines()[:MOST_ROWS]
    parts: list[str] = []
    i = 0
    while i < len(lines):
        rule = lines[i + 1] if i + 1 < len(lines) else ""
        if not _RULE.fullmatch(rule):
            if lines[i].strip():
                parts.append(f"<p>{_shown(lines[i])}</p>")
            i += 1
            continue
        spans = [x.span() for x in re.finditer("-+", rule)]

        def cells(line: str, spans: Sequence[tuple[int, int]] = spans) -> list[str]:
            ends = [(a, b if b != spans[-1][1] else None) for a, b in spans]
            return [_shown(line[a:b].strip()) for a, b in ends]

        head = "".join(f'<th scope="col">{x}</th>' for x in cells(lines[i]))
        rows, i = [], i + 2
        while i < len(lines) and lines[i].strip():
            first, *others = cells(lines[i])
            row = "".join(f"<td>{x}</td>" for x in others)
            rows.append(f'<tr><th scope="row">{first}</th>{row}</tr>')
            i += 1
        table = f"<table><thead><tr>{head}</tr></thead><tbody>"
        parts.append(
            _scrolled(f"{table}{''.join(rows)}</tbody></table>", f"Scores, {split}")
        )
    return "".join(parts)


def _scrolled(table: str, label: str) -> str:
    """A table that is wider than the screen scrolls, with the keyboard too."""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{_shown(label)}">'
        f"{table}</div>"
    )


def _facts(record: Mapping[str, Any]) -> str:
    """What a run was made with."""
    versions = record.get("versions")
    names = {
        "begun": record.get("begun"),
        "seed": record.get("seed"),
        "devices": record.get("devices"),
        "commit": record.get("git_commit"),
        "versions": [f"{k} {v or 'absent'}" for k, v in versions.items()]
        if isinstance(versions, Mapping)
        else None,
        "command": record.get("command"),
    }
    rows = [
        f"<dt>{name}</dt><dd>"
        + _shown((" " if name == "command" else ", ").join(map(str, value))
                 if isinstance(value, list) else str(value))
        + "</dd>"
        for name, value in names.items()
        if value is not None
    ]  # fmt: skip
    return f"<dl>{''.join(rows)}</dl>" if rows else "<p>There is no config.json.</p>"


def _config(record: Mapping[str, Any]) -> str:
    """The config; what differs from the method's defaults stands out."""
    flat = _flat(record.get("config", {}))
    changed = record.get("defaults")
    known = isinstance(changed, Mapping)
    unlike = {k: v for k, v in changed.items() if k in flat} if known else {}
    rows = []
    for key in sorted(flat, key=lambda key: (key not in unlike, key))[:MOST_ROWS]:
        value = _shown(_json(flat[key]))
        if key in unlike:
            was = f"default: {_shown(_json(unlike[key]))}"
            rows.append(
                f'<tr class="changed"><th scope="row">{_shown(key)}</th>'
                f"<td><strong>{value}</strong></td><td>{was}</td></tr>"
            )
        else:
            rows.append(
                f'<tr><th scope="row">{_shown(key)}</th><td>{value}</td><td></td></tr>'
            )
    count = f"{len(unlike)} of {len(flat)} values differ from the defaults"
    summary = count if known else f"{len(flat)} values"
    table = f'<table class="config"><tbody>{"".join(rows)}</tbody></table>'
    return (
        f"<details><summary>{summary}</summary>{_scrolled(table, 'Config')}</details>"
    )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _number(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:.4g}" if is_number else _shown(str(value))


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _clean(text: str) -> str:
    """On one line, nothing of it unprintable, and not for ever."""
    return one_line(Exception(text), MOST_CELL) if text.strip() else ""


def _shown(text: str) -> str:
    return html.escape(_clean(text), quote=True)


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
