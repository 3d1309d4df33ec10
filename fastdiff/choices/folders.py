"""A team's own folders of options and experiments: how they are named, and for how long.

Such a folder is code, and whoever names one trusts it like code: its files say what is loaded and from where, and may read
environment variables. A recipe is data, and can't name one.

They are kept in an environment variable, so that every process of a run and every job of a sweep sees the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from fastdiff.errors import UsageError

VARIABLE = "FASTDIFF_CONFIG_DIR"
"""Environment variable with the folders, between them what the system puts between folders (`:`, on Windows `;`)."""

FLAGS = ("--config-dir", "-cd")
NAME_VARIABLE = "FASTDIFF_CONFIG_NAME"
"""Environment variable with the name of the primary config, where it isn't fastdiff's own."""

NAME_FLAGS = ("--config-name", "-cn")
OWN_NAME = "config"
_SEARCH_PATH = re.compile(r"\+{0,2}hydra\.searchpath=")


def config_dirs() -> tuple[Path, ...]:
    """The folders in use, absolute, in the order in which they were named, each once."""
    named = os.environ.get(VARIABLE, "")
    return _absolute(named, os.getcwd()) if named else ()


@cache
def _absolute(named: str, _: str) -> tuple[Path, ...]:
    """For a working directory, where relative ones begin."""
    found = (_folder(name) for name in named.split(os.pathsep) if name)
    return tuple(dict.fromkeys(found))


def config_name() -> str:
    """The primary config: fastdiff's own, or that of a team's folder which `--config-name` names."""
    return os.environ.get(NAME_VARIABLE) or OWN_NAME


@contextmanager
def searched(folders: Iterable[Path]) -> Iterator[None]:
    """Use these folders, and no others, until the end; also in processes that are started meanwhile."""
    before = os.environ.get(VARIABLE)
    use(os.pathsep.join(str(folder) for folder in dict.fromkeys(folders)))
    try:
        yield
    finally:
        use(before or "")


def use(named: str) -> None:
    """Set the variable, or remove it where nothing is named."""
    if named:
        os.environ[VARIABLE] = named
    else:
        os.environ.pop(VARIABLE, None)


@contextmanager
def named_in(words: Sequence[str]) -> Iterator[list[str]]:
    """The words that name no folder; those that are named are used until the end, beside the ones in use.

    `--config-name NAME` names a primary config in one of them, for as long. A folder is named by `--config-dir DIR`, wherever it stands, and by Hydra's `hydra.searchpath=[DIR,...]`. Raises
    UsageError.
    """
    folders, name, others = _read(words)
    before = os.environ.get(NAME_VARIABLE)
    with searched([*config_dirs(), *folders]):
        if name:
            os.environ[NAME_VARIABLE] = name
        try:
            yield others
        finally:
            os.environ.pop(NAME_VARIABLE, None)
            os.environ |= {NAME_VARIABLE: before} if before else {}


def as_flags(folders: Iterable[object], name: str = OWN_NAME) -> list[str]:
    """The words that name these folders, and the primary config in one of them."""
    named = [] if name == OWN_NAME else [NAME_FLAGS[0], name]
    return [word for folder in folders for word in (FLAGS[0], str(folder))] + named


def flags_in_use() -> list[str]:
    """The words that name what is in use."""
    return as_flags(config_dirs(), config_name())


def why_no_folder(folder: Path) -> str | None:
    """Why nothing can be read there, a sentence without a subject; None for a folder."""
    if not folder.is_dir():
        return "is a file, not a folder" if folder.exists() else "there is no such folder"
    return None if os.access(folder, os.R_OK | os.X_OK) else "may not be read"


EXAMPLE = "a folder that holds your own options, such as DIR/model/ours.yaml"


def _read(words: Sequence[str]) -> tuple[list[Path], str | None, list[str]]:
    folders: list[Path] = []
    others: list[str] = []
    name = None
    left = iter(words)
    for word in left:
        flag, equals, value = word.partition("=")
        if flag in FLAGS:
            folders.append(_typed(value if equals else next(left, ""), flag))
        elif flag in NAME_FLAGS:
            name = (value if equals else next(left, "")).removesuffix(".yaml")
            if not re.fullmatch(r"[A-Za-z_][\w-]*", name):
                raise UsageError(
                    f"{flag} needs the name of a config in a team's folder\n"
                    f"  instead: {FLAGS[0]} DIR {NAME_FLAGS[0]} NAME, for DIR/NAME.yaml"
                )
        elif _SEARCH_PATH.match(word):
            folders += _search_path(word)
        else:
            others.append(word)
    return folders, name, others


def _folder(name: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(name)))


def _typed(name: str, key: str) -> Path:
    """A folder as typed. Raises UsageError if there is none of that name."""
    if not name:
        raise UsageError(f"{key} needs a folder\n  instead: {FLAGS[0]} DIR, {EXAMPLE}")
    folder = _folder(name)
    why = why_no_folder(folder)
    if why:
        raise UsageError(f"{key} {name}: {why}\n  instead: {FLAGS[0]} DIR, {EXAMPLE}")
    if os.pathsep in str(folder):
        raise UsageError(
            f"{key} {name}: '{os.pathsep}' in its path would part it in two\n"
            "  instead: a folder without it"
        )
    return folder


def _search_path(word: str) -> list[Path]:
    """The folders of `hydra.searchpath=[DIR,file:///DIR,pkg://a.package]`. Raises UsageError."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        value = OverridesParser.create().parse_override(word.lstrip("+")).value()
    except HydraException:
        value = None
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise UsageError(
            f"{word} can't be read as a list of folders\n"
            "  instead: hydra.searchpath=[DIR], or --config-dir DIR"
        )
    return [_place(each) for each in value]


def _place(name: str) -> Path:
    """A place of Hydra's search path. Raises UsageError."""
    scheme, there, rest = name.partition("://")
    if there and scheme == "pkg":
        return _package(rest, name)
    if there and scheme != "file":
        raise UsageError(
            f"hydra.searchpath: {name} names no folder\n"
            "  instead: DIR, file:///DIR or pkg://a.package"
        )
    return _typed(rest if there else name, "hydra.searchpath")


def _package(package: str, name: str) -> Path:
    """The folder of an installed package; the packages above it are imported to find it. Raises UsageError."""
    from importlib import util

    try:
        spec = util.find_spec(package.replace("/", "."))
    except (ImportError, ValueError):
        spec = None
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise UsageError(
            f"hydra.searchpath: there is no package for {name} in this Python\n"
            "  instead: install it, or --config-dir DIR"
        )
    return _typed(places[0], "hydra.searchpath")
