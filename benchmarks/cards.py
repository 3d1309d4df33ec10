"""The table in docs/limits.md of what has run on which card, from what `gpu.sh --keep` wrote.

    python benchmarks/cards.py docs/limits.md

rewrites what stands between `<!-- cards -->` and `<!-- /cards -->`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdiff.machine.files import read_json, write_text

RESULTS = Path(__file__).resolve().parent / "results" / "cuda"
BEGIN, END = "<!-- cards -->", "<!-- /cards -->"
_NOTHING = "Nothing has run on a GPU yet. `benchmarks/gpu.sh` tries all of it in ten minutes; its results would stand here."
_HEADINGS = ("card", "software", "as expected", "not as expected", "not run")


def results() -> list[Mapping[str, Any]]:
    """Every committed result of a GPU, by the name of its file."""
    return [read_json(path) for path in sorted(RESULTS.glob("*.json"))]


def render(found: Sequence[Mapping[str, Any]]) -> str:
    """A row for each card; one sentence where there is none."""
    of_cards = [each for each in found if each["device"] == "cuda" and not each["tiny"]]
    if not of_cards:
        return _NOTHING
    rows = [_HEADINGS, ["---"] * len(_HEADINGS), *map(_row, of_cards)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(found: Mapping[str, Any]) -> list[str]:
    steps = found["steps"]
    counts = Counter(step["status"] for step in steps)
    wrong = [step["step"] for step in steps if step["status"] in ("otherwise", "timeout")]
    not_run = [step["step"] for step in steps if step["status"] in ("left out", "cut")]
    not_run += [name for name in found["missing"] if name not in not_run]
    dirty = ", with uncommitted changes" if found["uncommitted_changes"] else ""
    commits = ", ".join(commit[:10] for commit in found["commits"])
    software = f"driver {found['driver']}, torch {found['torch']}, commit {commits}{dirty}"
    good = f"{counts['as expected']} steps"
    return [str(found["card"]), software, good, _named(wrong), _named(not_run)]


def _named(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def with_table(text: str, found: Sequence[Mapping[str, Any]]) -> str:
    """The text with a fresh table between its markers. Raises ValueError if they aren't there once each, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{BEGIN} and {END} must stand once each, in this order")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{render(found)}\n\n{END}{after}"


def main(words: Sequence[str]) -> int:
    if len(words) != 1 or not Path(words[0]).is_file():
        print("python benchmarks/cards.py docs/limits.md", file=sys.stderr)
        return 2
    path = Path(words[0])
    write_text(path, with_table(path.read_text(encoding="utf-8"), results()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
