"""What a page keeps of a log, line by line: curves, events, the newest numbers.

Of a log of any length little is kept, and of what is thinned out the extremes stay: a
peak of one line among a million is still seen.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

MOST_BUCKETS = 400  # of a curve; each keeps its lowest and its highest point
MOST_CURVES = 240
MOST_POINTS = 60_000  # of all curves of a page
MOST_EVENTS = 100  # of a kind
MOST_KINDS = 8
MOST_TEXT = 300  # characters of an event

Point = tuple[int, float]


@dataclasses.dataclass(slots=True)
class _Bucket:
    """Points that follow one another.

    Attributes:
        count: of points.
        low, high: of them.
    """

    count: int
    low: Point
    high: Point

    def joined(self, other: "_Bucket") -> "_Bucket":
        return _Bucket(
            self.count + other.count,
            min(self.low, other.low, key=_value),
            max(self.high, other.high, key=_value),
        )


def _value(point: Point) -> float:
    return point[1]


def _halved(buckets: list[_Bucket]) -> list[_Bucket]:
    """Neighbours joined, two by two; the last may stay alone."""
    pairs = [a.joined(b) for a, b in zip(buckets[::2], buckets[1::2], strict=False)]
    return pairs + buckets[len(pairs) * 2 :]


class Curve:
    """One number over the steps.

    Attributes:
        last: its newest point that is finite, or None.
        holes: steps at which it was not finite, the newest ones.
    """

    def __init__(self):
        self._buckets: list[_Bucket] = []
        self._span = 1  # points of a full bucket
        self._first: Point | None = None
        self.last: Point | None = None
        self.holes: collections.deque[int] = collections.deque(maxlen=MOST_EVENTS)

    def add(self, step: int, value: float) -> None:
        """Takes the next point."""
        if not math.isfinite(value):
            self.holes.append(step)
            return
        point = (step, value)
        self._first, self.last = self._first or point, point
        if self._buckets and (newest := self._buckets[-1]).count < self._span:
            newest.count += 1
            if value < newest.low[1]:
                newest.low = point
            elif value > newest.high[1]:
                newest.high = point
            return
        self._buckets.append(_Bucket(1, point, point))
        if len(self._buckets) > MOST_BUCKETS:
            self._buckets, self._span = _halved(self._buckets), 2 * self._span

    def points(self, most: int) -> list[tuple[int, float | None]]:
        """In the order of the steps, about `most` at most; None where not finite."""
        buckets = self._buckets
        while len(buckets) > max(most // 2, 1):
            buckets = _halved(buckets)
        ends = [x for x in (self._first, self.last) if x is not None]
        kept: list[tuple[int, float | None]] = [
            *dict.fromkeys([*ends, *(p for b in buckets for p in (b.low, b.high))]),
            *((step, None) for step in self.holes),
        ]
        return sorted(kept, key=lambda point: point[0])


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that a run tells beside its numbers.

    Attributes:
        kind: warning, skip, rollback, diverged or what else a log may hold.
    """

    step: int
    kind: str
    text: str


class Curves:
    """What a page shows of the lines of a metrics.jsonl.

    Attributes:
        curves: (split, name) -> curve, of training and validation.
        newest: split -> its newest line.
        scores: split that was scored in the end -> its line.
        left_out: names beyond MOST_CURVES.
    """

    def __init__(self, lines: Iterable[Mapping[str, Any]] = ()):
        self.curves: dict[tuple[str, str], Curve] = {}
        self.newest: dict[str, Mapping[str, Any]] = {}
        self.scores: dict[str, Mapping[str, Any]] = {}
        self.left_out: set[str] = set()
        self._events: dict[str, tuple[list[Event], collections.deque[Event]]] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        for line in lines:
            self.add(line)

    @property
    def step(self) -> int:
        """The newest one that a training line is about."""
        return self.newest.get("train", {}).get("step", 0)

    def add(self, line: Mapping[str, Any]) -> None:
        """Takes the next line, which has a step and a split."""
        split, step = line["split"], line["step"]
        if split == "event":
            self._note(line)
        elif split == "eval":
            self.scores[str(line.get("of", "?"))[:MOST_TEXT]] = line
        elif split in ("train", "val"):
            self.newest[split] = line
            for name, value in line.items():
                is_number = isinstance(value, int | float) and value is not True
                if name not in ("step", "split") and is_number and value is not False:
                    self._point(split, name, step, float(value))

    def _point(self, split: str, name: str, step: int, value: float) -> None:
        curve = self.curves.get((split, name))
        if curve is None:
            if len(self.curves) >= MOST_CURVES:
                if len(self.left_out) < MOST_CURVES:
                    self.left_out.add(name)
                return
            curve = self.curves[split, name] = Curve()
        curve.add(step, value)

    def _note(self, line: Mapping[str, Any]) -> None:
        kind = str(line.get("event", "?"))[:40]
        if kind not in self._events and len(self._events) >= MOST_KINDS:
            return
        numbers = [
            f"{name} {value:g}"
            for name, value in line.items()
            if isinstance(value, float) and name != "step"
        ]
        text = str(line.get("reason") or ", ".join(numbers))
        cut = text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} ..."
        event = Event(line["step"], kind, cut)
        newest = collections.deque[Event](maxlen=MOST_EVENTS // 2)
        first, last = self._events.setdefault(kind, ([], newest))
        (first if len(first) < MOST_EVENTS // 2 else last).append(event)
        self.counts[kind] += 1

    @property
    def events(self) -> list[Event]:
        """In the order of the steps: of each kind the first and the newest ones."""
        kept = [x for first, last in self._events.values() for x in (*first, *last)]
        return sorted(kept, key=lambda event: event.step)
