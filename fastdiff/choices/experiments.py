"""The documents' experiments: `conf/experiment/<ladder>/<name>.yaml`, each a set of choices with what was published.

A ladder is a folder of them; its rungs stand in the document's order. A team's folders may hold experiments of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from fastdiff.choices.folder_contents import EXPERIMENTS, contents
from fastdiff.choices.folders import config_dirs
from fastdiff.choices.option_yaml import content, why_unreadable
from fastdiff.choices.options import available, said_together, twice
from fastdiff.config import CONF_DIR, NO_EXPERIMENT, SCALARS, SLOTS, Experiment
from fastdiff.errors import UsageError, nearest


@dataclass(frozen=True, eq=False)
class ExperimentFile:
    """One YAML; read once, so that no other object is the same.

    name: as typed, `sdxl_tutorial/int8`. choices: the option that it takes in each slot it names. keys: what it sets
    in them, and outside them. published: its place in its ladder, and what its document says.
    """

    name: str
    choices: dict[str, str]
    keys: dict[str, Any]
    comment: str
    published: Experiment

    @property
    def ladder(self) -> str:
        """The folder that it lies in; empty for one of a team's own that stands alone."""
        return self.name.rpartition("/")[0]

    @property
    def short(self) -> str:
        """Its name within its ladder."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class Found:
    """Files of experiments by name, and what is wrong with others in folders: each a message with its way out."""

    files: Mapping[str, Path]
    problems: tuple[str, ...]


def found_experiments() -> Found:
    """What `names` looks at, with problems instead of an error."""
    return _found(config_dirs())


@cache
def _found(folders: tuple[Path, ...]) -> Found:
    shipped = CONF_DIR / EXPERIMENTS
    files = {
        path.relative_to(shipped).with_suffix("").as_posix(): path
        for path in sorted(shipped.glob("*/*.yaml"))
    }
    problems = []
    for folder in folders:
        for name, path in contents(folder).experiments:
            if name in files:
                problems.append(twice(f"experiment={name}", path, files[name]))
            elif wrong := why_unreadable(path) or next(_faults(path), None):
                problems.append(wrong)
            else:
                files[name] = path
    return Found(files, tuple(problems))


def _files() -> Mapping[str, Path]:
    found = found_experiments()
    if found.problems:
        raise UsageError(said_together(found.problems))
    return found.files


def names() -> tuple[str, ...]:
    """Names of the experiments; of those that ship none is read. Raises UsageError for what is wrong with a folder's."""
    return tuple(_files())


def experiments() -> dict[str, ExperimentFile]:
    """Every experiment by name, ladder by ladder, in the order of the rungs. Raises UsageError like `names`."""
    return in_order(_files())


def in_order(files: Mapping[str, Path]) -> dict[str, ExperimentFile]:
    """The experiments in these files, by name, ladder by ladder, in the order of the rungs."""
    found = [_read(name, path) for name, path in files.items()]
    return {e.name: e for e in sorted(found, key=lambda e: (e.ladder, e.published.rung))}


def read_experiment(name: str) -> ExperimentFile:
    """The experiment of a name that `names` has."""
    return _read(name, _files()[name])


@cache
def _read(name: str, path: Path) -> ExperimentFile:
    _, *lines = path.read_text(encoding="utf-8").splitlines()  # the first says where the keys go
    comment = [line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]
    said = dict(content(path))
    choices = dict(filter(None, map(choice_of, said.pop("defaults", ()))))
    published = Experiment(**said.get("experiment", {}))
    return ExperimentFile(name, choices, said, " ".join(comment), published)


def choice_of(entry: object) -> tuple[str, str] | None:
    """The slot and option that an entry of a defaults list takes; None for any other entry."""
    if not isinstance(entry, dict) or len(entry) != 1:
        return None
    ((key, option),) = entry.items()
    slot = str(key).removeprefix("override ")
    return None if slot == key else (slot.removeprefix("/"), str(option))


def _faults(path: Path) -> Iterator[str]:
    """What is wrong with an experiment of a folder, each with its way out."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    if first.split() != ["#", "@package", "_global_"]:
        yield f"{path}: its first line must say where its keys go\n  instead: # @package _global_"
    said = content(path)
    defaults = said.get("defaults", [])
    if not isinstance(defaults, list):
        defaults = [defaults]
    for entry in defaults:
        if entry != "_self_":
            yield from _choice_faults(path, entry)
    known = (*SLOTS, "generation", *SCALARS, "experiment", "defaults")
    for key in said:
        if key not in known:
            near = nearest(str(key), known)
            hint = f"did you mean: {near}" if near else f"there are: {', '.join(known)}"
            yield f"{path}: an experiment has no key '{key}'\n  {hint}"
    alone = path.parent.name == EXPERIMENTS
    if "experiment" in said or not alone:
        yield from _place_faults(path, said.get("experiment"), alone)


def _choice_faults(path: Path, entry: object) -> Iterator[str]:
    """An entry of its defaults must take one option of one slot."""
    slot, option = choice_of(entry) or ("", "")
    if slot not in SLOTS:
        shown = "{}: {}".format(*next(iter(entry.items()))) if isinstance(entry, dict) else entry
        yield f"{path}: '{shown}' chooses nothing\n  instead: - override /<slot>: <option>, as in - override /quant: int8"
    elif option not in (options := available().files[slot]):
        near = nearest(str(option), options)
        hint = f"did you mean: {near}" if near else f"there are: {', '.join(options)}"
        yield f"{path}: {slot} has no option '{option}'\n  {hint}"


def _place_faults(path: Path, said: object, alone: bool) -> Iterator[str]:
    """Its own keys must be those of Experiment, of their types, and on a ladder its rung among them."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(said, dict) or (not alone and "rung" not in said):
        yield f"{path}: it doesn't say its place in its ladder\n  instead: experiment: {{rung: 0}}"
        return
    try:
        OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Experiment), said))
    except (OmegaConfBaseException, ValueError) as error:
        keys = ", ".join(Experiment.__dataclass_fields__)
        yield f"{path}: experiment: {str(error).strip().splitlines()[0]}\n  it has: {keys}"


def ladders() -> list[str]:
    """Names of the ladders."""
    return list(dict.fromkeys(e.ladder for e in experiments().values() if e.ladder))


def ladder(name: str) -> list[ExperimentFile]:
    """The rungs of a ladder, lowest first. Raises UsageError if there is none of that name."""
    rungs = [e for e in experiments().values() if e.ladder == name]
    if rungs:
        return rungs
    begun = [each for each in ladders() if each.startswith(name)]
    near = begun[0] if len(begun) == 1 else nearest(name, ladders())
    hint = f"did you mean: {near}" if near else f"there are: {', '.join(ladders())}"
    if name in experiments():
        hint = f"it is one experiment: python -m fastdiff experiment={name}"
    raise UsageError(f"there is no ladder '{name}'\n  {hint}")


def check_experiment(name: str) -> None:
    """Raises UsageError unless there is an experiment of that name."""
    if name == NO_EXPERIMENT or name in names():
        return
    if name in ladders():
        hint = f"it is a ladder: python -m fastdiff ladder {name}; its rungs: "
        hint += ", ".join(e.short for e in ladder(name))
    elif "*" in name:
        named = next((each for each in ladders() if each in name), ladders()[0])
        hint = f"instead: python -m fastdiff ladder {named}, which runs all of its rungs"
    else:
        whole = nearest(name, experiments())
        shorts = [e.name for e in experiments().values() if e.short == name]
        near = ", ".join(shorts) or whole
        hint = f"did you mean: {near}" if near else f"ladders: {', '.join(ladders())}"
    raise UsageError(f"there is no experiment '{name}'\n  {hint}")
