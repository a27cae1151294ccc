"""Line charts as SVG text: enough for a benchmark, and no dependency."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Point = tuple[float, float]

_COLOURS = ("#0b6e99", "#d9480f", "#2b8a3e", "#862e9c", "#c2255c", "#5f3dc4", "#495057")
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 640, 400, 70, 40, 170, 50


def _powers(low: float, high: float, base: float) -> list[float]:
    first, last = math.floor(math.log(low, base)), math.ceil(math.log(high, base))
    return [base**k for k in range(first, last + 1)]


def line_chart(
    series: Mapping[str, Sequence[Point]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    rule: float | None = None,
) -> str:
    """Curves over two logarithmic axes (2 across, 10 up).

    Args:
        series: name -> points, all positive.
        rule: height of a dashed line, if any.

    Returns:
        An SVG document.
    """
    points = [p for line in series.values() for p in line]
    xs = _powers(min(p[0] for p in points), max(p[0] for p in points), 2.0)
    ys = [p[1] for p in points] + ([rule] if rule else [])
    ys = _powers(min(ys), max(ys), 10.0)

    def place(value: float, ends: Sequence[float], start: float, stop: float) -> float:
        span = math.log(ends[-1] / ends[0]) or 1.0
        return start + (stop - start) * math.log(value / ends[0]) / span

    def x_of(value: float) -> float:
        return place(value, xs, _LEFT, _WIDTH - _RIGHT)

    def y_of(value: float) -> float:
        return place(value, ys, _HEIGHT - _BOTTOM, _TOP)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    for x in xs:
        out.append(
            f'<path d="M{x_of(x):.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="#eee"/>'
            f'<text x="{x_of(x):.1f}" y="{_HEIGHT - _BOTTOM + 16}" '
            f'text-anchor="middle">{x:g}</text>'
        )
    for y in ys:
        out.append(
            f'<path d="M{_LEFT} {y_of(y):.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 6}" y="{y_of(y) + 4:.1f}" '
            f'text-anchor="end">{y:g}</text>'
        )
    if rule:
        out.append(
            f'<path d="M{_LEFT} {y_of(rule):.1f}H{_WIDTH - _RIGHT}" stroke="#888" '
            'stroke-dasharray="5 4"/>'
        )
    for k, (name, line) in enumerate(series.items()):
        colour = _COLOURS[k % len(_COLOURS)]
        line = sorted(line)
        path = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in line)
        out.append(
            f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        out += [
            f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3.5" fill="{colour}"/>'
            for x, y in line
        ]
        y = _TOP + 18 * k + 6
        out.append(
            f'<circle cx="{_WIDTH - _RIGHT + 18}" cy="{y}" r="4" fill="{colour}"/>'
            f'<text x="{_WIDTH - _RIGHT + 28}" y="{y + 4}">{escape(name)}</text>'
        )
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    out.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 12}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
        f'<text x="16" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 16 {middle})">{escape(y_label)}</text></svg>'
    )
    return "\n".join(out) + "\n"
