"""The README's table of slots and options, from the comments at the top of the option files.

    python -m fastdiff.pages.options_table README.md

rewrites what stands between `<!-- options -->` and `<!-- /options -->`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fastdiff.errors import UsageError
from fastdiff.options import default_options, shipped_files
from fastdiff.result import write_text

BEGIN, END = "<!-- options -->", "<!-- /options -->"


def render() -> str:
    """The table: a row for every option, slots in the order of a run, each slot's default first and bold."""
    default = default_options()
    lines = ["| choice | what it does and costs |", "|---|---|"]
    for slot, options in shipped_files().items():
        for name in sorted(options, key=lambda name: name != default[slot]):
            choice = f"`{slot}={name}`"
            if name == default[slot]:
                choice = f"**{choice}** (default)"
            lines.append(f"| {choice} | {_cell(options[name].comment)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """A text that stays in its cell: no bar ends it, and a star is a star."""
    return text.replace("|", "\\|").replace("*", "\\*")


def with_table(text: str) -> str:
    """The text with a fresh table between its markers. Raises UsageError if they aren't there once each."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UsageError(
            f"the table has no place: {BEGIN} and {END} must stand once each, in this order\n"
            f"  instead: write the two lines '{BEGIN}' and '{END}' where the table belongs"
        )
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{render()}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        print("python -m fastdiff.pages.options_table README.md", file=sys.stderr)
        return UsageError.exit_code
    path = Path(arguments[0])
    try:
        text = with_table(path.read_text(encoding="utf-8"))
    except UsageError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return error.exit_code
    write_text(path, text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
