"""The README against the program: its table of options, and the command that CI takes from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastdiff.config import CONF_DIR, SLOTS
from fastdiff.errors import UsageError
from fastdiff.options import default_options, option_files
from fastdiff.pages.options_table import BEGIN, END, main, render, with_table

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_the_readmes_table_is_what_the_option_files_say() -> None:
    text = README.read_text(encoding="utf-8")
    assert with_table(text) == text, "run: python -m fastdiff.pages.options_table README.md"


@pytest.mark.parametrize("path", sorted(CONF_DIR.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_option_file_begins_with_a_comment_in_sentences(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    first = lines[1] if lines[0] == "# @package _global_" else lines[0]
    assert first.startswith("# ")
    assert len(first.split()) > 2
    assert first.rstrip().endswith(".")


def test_every_option_has_one_row_and_every_slot_one_default() -> None:
    rows = render().splitlines()[2:]
    for slot, options in option_files().items():
        own = [row for row in rows if f"`{slot}=" in row.split("|")[1]]
        assert len(own) == len(options)
        assert own[0].startswith(f"| **`{slot}={default_options()[slot]}`** (default) |")
        assert not any("(default)" in row for row in own[1:])
    assert len(rows) == sum(len(options) for options in option_files().values())


def test_defaults_name_an_option_of_every_slot() -> None:
    files = option_files()
    assert {slot: default_options()[slot] in files[slot] for slot in SLOTS} == dict.fromkeys(
        SLOTS, True
    )


def test_only_what_stands_between_the_markers_changes() -> None:
    text = f"# Title\n\n{BEGIN}\nold\n{END}\n\nafter | it\n"
    new = with_table(text)
    assert new.startswith(f"# Title\n\n{BEGIN}\n\n| choice |")
    assert new.endswith(f"|\n\n{END}\n\nafter | it\n")
    assert with_table(new) == new


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_text_without_its_two_markers_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="the table has no place") as refused:
        with_table(text)
    assert "instead: write the two lines" in str(refused.value)


def test_the_command_rewrites_the_file(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"above\n{BEGIN}\n{END}\nbelow\n")
    assert main([str(path)]) == 0
    assert path.read_text() == f"above\n{BEGIN}\n\n{render()}\n\n{END}\nbelow\n"


def test_a_refused_file_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "README.md"
    path.write_text("no markers\n")
    assert main([str(path)]) == 2
    assert main([str(tmp_path / "none.md")]) == 2
    assert main([]) == 2
    assert path.read_text() == "no markers\n"
    assert "the table has no place" in capsys.readouterr().err


def test_the_table_needs_no_torch() -> None:
    code = (
        "import sys; from fastdiff.pages.options_table import render; render(); "
        "print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_ci_runs_the_readmes_test_command() -> None:
    """`.ci/run` takes the first line of the README that names pytest; it must be a whole command."""
    lines = [line.strip() for line in README.read_text(encoding="utf-8").splitlines()]
    command = next(line for line in lines if ".venv/bin/pytest" in line)
    assert command.startswith("python3 -m venv .venv && ")
    assert command.endswith(".venv/bin/pytest")
