"""Line charts as SVG text, by Matplotlib."""

import io
from collections.abc import Mapping, Sequence

Point = tuple[float, float]

_SETTINGS = {
    "svg.fonttype": "none",  # names stay text
    "svg.hashsalt": "charts",  # the same chart is the same file
    "text.parse_math": False,
    "axes.autolimit_mode": "round_numbers",  # axes end at whole powers
    "axes.xmargin": 0.0,
    "axes.ymargin": 0.0,
}


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
    # Of those who draw alone: measuring needs no Matplotlib.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot(title=title, xlabel=x_label, ylabel=y_label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=10)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.grid(which="major", color="0.9")
        for name, points in series.items():
            axes.plot(
                *zip(*sorted(points), strict=True),
                marker="o",
                label=name,
                clip_on=False,
            )
        if rule is not None:
            axes.axhline(rule, color="0.5", linestyle="--")
        figure.legend(loc="outside right upper", frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
