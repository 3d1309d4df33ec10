"""The documents' experiments: `conf/experiment/<ladder>/<name>.yaml`, each a set of choices with what was published.

A ladder is a folder of them; its rungs stand in the document's order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any

from fastdiff.config import CONF_DIR, NO_EXPERIMENT, Experiment
from fastdiff.errors import UsageError, nearest


@dataclass(frozen=True)
class ExperimentFile:
    """One YAML.

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
        return self.name.partition("/")[0]

    @property
    def short(self) -> str:
        """Its name within its ladder."""
        return self.name.rpartition("/")[2]


FOLDER = CONF_DIR / "experiment"


@cache
def experiments() -> dict[str, ExperimentFile]:
    """Every experiment by name, ladder by ladder, in the order of the rungs."""
    found = [read_experiment(name) for name in names()]
    return {e.name: e for e in sorted(found, key=lambda e: (e.ladder, e.published.rung))}


@cache
def names() -> tuple[str, ...]:
    """Names of the experiments; none of them is read."""
    return tuple(
        path.relative_to(FOLDER).with_suffix("").as_posix()
        for path in sorted(FOLDER.glob("*/*.yaml"))
    )


@cache
def read_experiment(name: str) -> ExperimentFile:
    """The experiment of a name that `names` has."""
    from omegaconf import OmegaConf

    path = FOLDER / f"{name}.yaml"
    _, *lines = path.read_text(encoding="utf-8").splitlines()  # the first says where the keys go
    comment = [line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    choices = {
        slot.removeprefix("override /"): option
        for entry in content.pop("defaults")
        for slot, option in entry.items()
    }
    published = Experiment(**content["experiment"])
    return ExperimentFile(name, choices, content, " ".join(comment), published)


def ladders() -> list[str]:
    """Names of the ladders."""
    return list(dict.fromkeys(e.ladder for e in experiments().values()))


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
    elif "*" in name or name.startswith("glob("):
        named = next((each for each in ladders() if each in name), ladders()[0])
        hint = f"instead: python -m fastdiff ladder {named}, which runs all of its rungs"
    else:
        whole = nearest(name, experiments())
        shorts = [e.name for e in experiments().values() if e.short == name]
        near = ", ".join(shorts) or whole
        hint = f"did you mean: {near}" if near else f"ladders: {', '.join(ladders())}"
    raise UsageError(f"there is no experiment '{name}'\n  {hint}")
