"""Where fastdiff's own cache is, and who may have written what lies there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastdiff.machine.cache_folder import (
    VARIABLE,
    KeptFile,
    cache_folder,
    distrust,
    doubtful,
    rates_folder,
    rates_unkeepable,
    unwritable,
)


def test_the_cache_folder_is_the_systems_or_the_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv(VARIABLE)
    assert cache_folder().name == "fastdiff"


def test_links_and_what_belongs_to_others_are_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert distrust(tmp_path / "nothing") is None
    assert distrust(tmp_path) is None
    (tmp_path / "link").symlink_to(tmp_path)
    assert distrust(tmp_path / "link") == "is a link"
    tmp_path.chmod(0o775)
    assert distrust(tmp_path) == "can be written by others"
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert distrust(tmp_path) == "belongs to another user"


def test_what_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unwritable(tmp_path / "new" / "folder") is None
    (tmp_path / "file").write_text("")
    assert unwritable(tmp_path / "file") == "is a file, not a folder"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert unwritable(tmp_path / "new") == "can't be written"


def test_rates_can_be_kept_where_the_user_said_or_it_is_known_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    assert rates_folder() == tmp_path / "cache" / "machines"
    assert rates_unkeepable() is None
    (tmp_path / "cache").write_text("")
    assert rates_unkeepable() == f"{tmp_path / 'cache'} is a file, not a folder"
    (tmp_path / "cache").unlink()
    (tmp_path / "cache").mkdir()
    rates_folder().write_text("")
    assert rates_unkeepable() == f"{rates_folder()} is a file, not a folder"
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert rates_unkeepable() is None  # nobody asked for that folder


@pytest.mark.parametrize("shared", [False, True])
def test_a_kept_file_is_for_this_user_alone_unless_its_folder_is_anothers(
    tmp_path: Path, shared: bool
) -> None:
    file = KeptFile(tmp_path / "new" / "x.json", shared)
    assert file.read() == (None, None)
    assert file.keep({"a": 1}) is None
    assert file.read() == ({"a": 1}, None)
    assert (file.path.parent.stat().st_mode & 0o077 == 0) is not shared
    file.path.chmod(0o666)
    assert file.read() == (({"a": 1}, None) if shared else (None, "can be written by others"))
    for text in ("", "{", "[1]", "null", "[" * 100_000):
        file.keep({})
        file.path.write_text(text)
        assert file.read() == (None, "can't be read")
    assert KeptFile(file.path / "x.json", shared).keep({}) == "File exists"


def test_what_is_made_is_for_this_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)  # of systems where every user has a group of their own
    try:
        (tmp_path / "cache").mkdir(mode=0o755)
        made = [tmp_path / "cache" / "fastdiff", tmp_path / "cache" / "fastdiff" / "aot"]
        assert doubtful(*made) is None
        assert [folder.stat().st_mode & 0o777 for folder in made] == [0o700, 0o700]
        there = tmp_path / "there"
        there.mkdir()  # what is there already stays as it is
        assert doubtful(there, there / "aot") == (there, "can be written by others")
        assert there.stat().st_mode & 0o777 == 0o775
    finally:
        os.umask(before)
