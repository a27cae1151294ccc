"""The viewer's page: one file that holds its style, its script and what is shown.

Nothing is fetched: the page's own policy forbids it, and lets no script run but those
that are written here.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path

from unsup3d_jax.show import documents
from unsup3d_jax.show.viewer.content import Content

FILE = "viewer.html"
_HERE = Path(__file__).parent


def write(folder: Path, content: Content) -> None:
    """Writes viewer.html, which opens from disk."""
    (folder / FILE).write_text(document(content), encoding="utf-8")


def document(content: Content) -> str:
    """The page of one reconstruction."""
    # "<" might end the element.
    text = json.dumps(content.described()).replace("<", "\\u003c")
    data = f'<script type="application/json" id="content">{text}</script>\n'
    return _filled(content.title, ["viewer.js"], content=data, connects=False)[0]


def upload_document(
    title: str, *, most_bytes: int, beside: str = ""
) -> tuple[str, str]:
    """The page that asks for a photo and shows the server's answer.

    Args:
        most_bytes: of a photo.
        beside: HTML, shown above.

    Returns:
        The page, and its content security policy, for a header.
    """
    above = beside + _read("upload.html").replace("@MOST@", str(most_bytes))
    return _filled(title, ["viewer.js", "upload.js"], above=above, connects=True)


def _filled(
    title: str,
    scripts: Sequence[str],
    *,
    connects: bool,
    above: str = "",
    content: str = "",
) -> tuple[str, str]:
    """The template, and its policy.

    Args:
        scripts: files, run in this order.
        connects: may ask the server that it came from.
    """
    style, script = _read("viewer.css"), "\n".join(map(_read, scripts))
    source = "'self'" if connects else "'none'"
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {documents.digest(script)}",
            f"style-src {documents.digest(style)}",
            "img-src data: blob:",
            f"connect-src {source}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    parts = {
        "POLICY": html.escape(policy, quote=False),
        "TITLE": html.escape(title),
        "STYLE": style,
        "ABOVE": above,
        "CONTENT": content,
        "SCRIPT": script,
    }
    return documents.filled(_read("viewer.html"), parts), policy


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
