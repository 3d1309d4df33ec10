"""What may lie in a team's folder: options of slots that there are, and experiments. Nothing in it is silently left out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastdiff.choices.folders import EXAMPLE, VARIABLE, why_no_folder
from fastdiff.config import CONF_DIR, SLOTS

EXPERIMENTS = "experiment"

NAME = re.compile(r"(?!(null|true|false|inf|nan)$)[A-Za-z][\w-]*", re.IGNORECASE | re.ASCII)
"""What can be typed after `slot=` and is read as a name."""

SCHEMA = re.compile(r"/schema/(\w+)/(\w+)@_here_")
"""How an option's file names the schema that its keys follow."""

_HYDRAS = ("hydra", "schema")
_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Contents:
    """What a folder holds.

    options: their slot and file. experiments: their name, `ladder/short`, and file.
    wrong: what can't be there, each a message with its way out.
    """

    options: tuple[tuple[str, Path], ...] = ()
    experiments: tuple[tuple[str, Path], ...] = ()
    wrong: tuple[str, ...] = ()


@cache
def contents(folder: Path) -> Contents:
    """What a folder holds; looked at once."""
    why = why_no_folder(folder)
    if why:
        return Contents(wrong=(f"{VARIABLE}: {folder}: {why}\n  instead: {EXAMPLE}, or unset it",))
    if folder.samefile(CONF_DIR):
        text = f"{folder} holds fastdiff's own options\n  instead: {EXAMPLE}"
        return Contents(wrong=(text,))
    wrong = list(_beside(folder))
    options, experiments = [], []
    for slot in SLOTS:
        for path in _files(folder / slot):
            found = _misplaced(path, folder, "<slot>/<option>.yaml")
            wrong += found
            options += [] if found else [(slot, path)]
    for path in _files(folder / EXPERIMENTS):
        alone = path.parent == folder / EXPERIMENTS
        form = f"{EXPERIMENTS}/<name>.yaml" if alone else f"{EXPERIMENTS}/<ladder>/<name>.yaml"
        found = _misplaced(path, folder, form)
        wrong += found
        name = path.relative_to(folder / EXPERIMENTS).with_suffix("").as_posix()
        experiments += [] if found else [(name, path)]
    return Contents(tuple(options), tuple(experiments), tuple(wrong))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in _YAML)


def _misplaced(path: Path, folder: Path, form: str) -> list[str]:
    """Why a file would not be found, or not be read as a name; nothing if all is well."""
    parts = path.relative_to(folder).with_suffix("").parts
    if path.suffix != ".yaml":
        return [f"{path} is not read\n  instead: {path.with_suffix('.yaml').name}"]
    if len(parts) != form.count("/") + 1:
        return [f"{path} is not where it would be found\n  instead: {folder}/{form}"]
    unreadable = [part for part in parts[1:] if not NAME.fullmatch(part)]
    if unreadable:
        return [
            f"{path}: '{unreadable[0]}' can't be typed as a name\n"
            "  instead: letters, digits, _ and -, and a letter first"
        ]
    return []


def _beside(folder: Path) -> Iterator[str]:
    """What lies beside the slots and seems to be meant for fastdiff, but isn't."""
    if (folder / "config.yaml").exists():
        yield (
            f"{folder / 'config.yaml'}: a folder adds options; it can't change what is chosen by default\n"
            "  instead: choose on the command line, or in a recipe"
        )
    for each in sorted(folder.iterdir()):
        if not each.is_dir() or each.name in (*SLOTS, EXPERIMENTS) or each.name.startswith("."):
            continue
        files = [path for path in sorted(each.glob("*")) if path.suffix in _YAML]
        if each.name in _HYDRAS:
            yield (
                f"{each}: Hydra's own settings and schemas can't come from such a folder\n"
                f"  instead: options, in {folder}/<slot>/"
            )
            continue
        near = difflib.get_close_matches(each.name, SLOTS, n=1, cutoff=0.75) if files else []
        if near or any(SCHEMA.search(path.read_text("utf-8", "replace")) for path in files):
            hint = f"did you mean: {near[0]}/" if near else f"slots: {', '.join(SLOTS)}"
            yield f"{each}: there is no slot '{each.name}', and a folder can't add one\n  {hint}"
