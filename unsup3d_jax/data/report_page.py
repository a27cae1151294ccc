"""The report of a data set as one HTML file, which needs no other and runs nothing."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from unsup3d_jax.data import dataset as ds

_STYLE = """body{font:16px/1.5 sans-serif;max-width:70rem;margin:2rem auto}
h1{font-size:1.5rem}.fit{color:#075e2a}.unfit{color:#a01515}pre{white-space:pre-wrap}
img{max-width:100%}figcaption{color:#444}li{margin:.3rem 0}"""


def page(
    title: str,
    headline: str,
    *,
    fit: bool,
    stops: Sequence[str],
    remarks: Sequence[str],
    text: str,
    pictures: Mapping[str, UInt8[np.ndarray, "h w 3"]],
) -> str:
    """The whole page; all that comes from outside, such as names, is escaped.

    Args:
        title: of the set.
        headline, fit, stops, remarks: the verdict.
        text: what else was found, of many lines.
        pictures: caption -> pixels, shown in this order.
    """
    kind = "fit" if fit else "unfit"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f"<title>{_shown(title)}</title><style>{_STYLE}</style></head><body>",
        f'<h1>{_shown(title)}</h1><p class="{kind}"><strong>{_shown(headline)}',
        "</strong></p>",
        *(f"<h2>{name}</h2>{_list(some)}" for name, some in (
            ("What stands in the way", stops), ("Remarks", remarks),
        ) if some),
    ]  # fmt: skip
    for caption, pixels in pictures.items():
        parts.append(
            f'<figure><img alt="{_shown(caption)}" src="{_embedded(pixels)}">'
            f"<figcaption>{_shown(caption)}</figcaption></figure>"
        )
    lines = "\n".join(_shown(line) for line in text.splitlines())
    parts.append(f"<h2>Details</h2><pre>{lines}</pre></body></html>\n")
    return "\n".join(parts)


def _list(entries: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_shown(entry)}</li>' for entry in entries)}</ul>"


def _shown(text: str) -> str:
    return html.escape(ds.printable(text), quote=True)


def _embedded(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
