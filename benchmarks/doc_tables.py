"""Puts the tables of committed results into the documents: never typed, never stale.

A document names a `table.json` of --mode=tables, as committed below results/, in a
comment; what stands between it and the next one is written by this script:

    <!-- table: benchmarks/results/table4_small_cpu.json -->
    <!-- table end -->

Run: python -m benchmarks.doc_tables            rewrites README.md and docs/*.md
     python -m benchmarks.doc_tables --check    only says which are out of date
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

from unsup3d_jax.experiments.tables import text as table_text

ROOT = Path(__file__).resolve().parent.parent
_START = "<!-- table: "
_BLOCK = re.compile(
    r"(<!-- table: (?P<path>\S+) -->\n)(?P<old>.*?)(<!-- table end -->)", re.DOTALL
)


def documents(root: Path) -> list[Path]:
    """The files that may show tables."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def filled(text: str, root: Path, folder: Path) -> str:
    """A document with the tables it names.

    Args:
        text: of the document.
        root: that the paths in its comments start from.
        folder: of the document, which links start from.

    Raises:
        OSError: if a file it names is missing.
        ValueError: if such a file is no finished table.json, or a comment has no end.
    """
    blocks = list(_BLOCK.finditer(text))
    if any(_START in block["old"] for block in blocks) or (
        text.count(_START) != len(blocks)
    ):
        raise ValueError(f"each '{_START}FILE -->' needs a '<!-- table end -->'.")

    def block(match: re.Match) -> str:
        path = root / match["path"]
        record = json.loads(path.read_text())
        if not isinstance(record.get("rows"), dict) or not record["complete"]:
            raise ValueError(f"{path}: not the table.json of a finished table.")
        # The document has headings of its own.
        body = table_text.markdown(record).partition("\n\n")[2].strip()
        link = Path(os.path.relpath(path, folder)).as_posix()
        return f"{match[1]}\n{body}\n\n[All numbers]({link})\n\n{match[4]}"

    return _BLOCK.sub(block, text)


def main() -> int:
    """Returns 1 if --check found a document out of date."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    stale = 0
    for path in documents(ROOT):
        text = path.read_text()
        if (new := filled(text, ROOT, path.parent)) == text:
            continue
        stale += 1
        print(f"{path.relative_to(ROOT)}: {'out of date' if check else 'rewritten'}")
        if not check:
            path.write_text(new)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
