"""What pages share that fetch nothing: templates, and digests for a policy."""

import base64
import hashlib
from collections.abc import Mapping


def filled(template: str, parts: Mapping[str, str]) -> str:
    """A template whose marks, @NAME@, are replaced; it has no other @.

    It is cut at the marks first: what is put in may look like one.
    """
    pieces = template.split("@")
    return "".join(parts[x] if i % 2 else x for i, x in enumerate(pieces))


def digest(text: str) -> str:
    """What a content security policy knows a script or a style by."""
    found = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(found).decode()}'"
