"""Files that are whole or not there at all, and fingerprints of what they hold."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdiff.config import fingerprint
from fastdiff.machine.files import read_json, write_json, write_text

# Files ---------------------------------------------------------------------------------------------


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    data = {"ä": [1, 2.5, None, True], "path": Path("a/b"), "set": {3, 1, 2}}
    write_json(tmp_path / "new" / "x.json", data)
    assert read_json(tmp_path / "new" / "x.json") == {
        "ä": [1, 2.5, None, True],
        "path": "a/b",
        "set": [1, 2, 3],
    }
    assert (tmp_path / "new" / "x.json").read_text().endswith("}\n")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_does_not_know_is_refused_and_the_old_file_stays(
    number: float, tmp_path: Path
) -> None:
    write_json(tmp_path / "x.json", {"old": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"new": [number]})
    assert read_json(tmp_path / "x.json") == {"old": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_an_object_that_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="object can't be written as JSON"):
        write_json(tmp_path / "x.json", {"a": object()})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_file_and_nothing_beside_it(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "x.txt", "old")

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fails)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "x.txt", "new")
    assert (tmp_path / "x.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    replace = os.replace

    def look(source: Any, target: Any) -> None:
        seen.append((Path(target).read_text(), json.loads(Path(source).read_text())))
        replace(source, target)

    write_json(tmp_path / "x.json", 1)
    monkeypatch.setattr(os, "replace", look)
    write_json(tmp_path / "x.json", 2)
    assert seen == [("1\n", 2)]


# Fingerprints --------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), plain, min_size=1, max_size=5))
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(data: dict[str, Any]) -> None:
    backwards = dict(reversed(list(data.items())))
    assert fingerprint(data) == fingerprint(backwards)
    assert fingerprint({"inner": data}) == fingerprint({"inner": backwards})
    assert fingerprint(data) != fingerprint({**data, next(iter(data)): "something else"})
    assert len(fingerprint(data)) == 16


def test_a_fingerprint_depends_on_the_order_of_a_list() -> None:
    assert fingerprint([1, 2]) != fingerprint([2, 1])
