"""The README against the program: every option file's comment, and the command that CI takes from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastdiff.choices.options import default_options, option_files
from fastdiff.config import CONF_DIR, SLOTS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


@pytest.mark.parametrize("path", sorted(CONF_DIR.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_option_file_begins_with_a_comment_in_sentences(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    first = lines[1] if lines[0] == "# @package _global_" else lines[0]
    assert first.startswith("# ")
    assert len(first.split()) > 2
    assert first.rstrip().endswith(".")


def test_defaults_name_an_option_of_every_slot() -> None:
    files = option_files()
    assert {slot: default_options()[slot] in files[slot] for slot in SLOTS} == dict.fromkeys(
        SLOTS, True
    )


def test_ci_runs_the_readmes_test_command() -> None:
    """`.ci/run` takes the first line of the README that names pytest; it must be a whole command."""
    lines = [line.strip() for line in README.read_text(encoding="utf-8").splitlines()]
    command = next(line for line in lines if ".venv/bin/pytest" in line)
    assert command.startswith("python3 -m venv .venv && ")
    assert command.endswith(".venv/bin/pytest")
