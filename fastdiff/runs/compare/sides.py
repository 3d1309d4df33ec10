"""The two sides of a comparison: read as typed, planned, and found to do the same work."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdiff.config import PROVENANCE, Generation, Reference, RunConfig
from fastdiff.errors import FastdiffError, UsageError
from fastdiff.machine.files import read_json
from fastdiff.planning.plan import Plan
from fastdiff.runs.compare.verdict import A, B

PlanOf = Callable[[Sequence[str]], Plan]
"""Overrides → their plan. Raises FastdiffError."""


class SidesRefused(FastdiffError):
    """One side or both can't run here, or they would draw different pictures."""

    exit_code = 2


@dataclass(frozen=True)
class Side:
    """One side: what was typed, what it stands for, and its plan.

    own: its overrides alone; overrides: with those of both sides before them, so that its own win.
    source: the run's folder or report that the overrides were taken from; None if they were typed.
    notices: what of it a comparison doesn't heed.
    """

    name: str
    own: list[str]
    overrides: list[str]
    source: str | None
    plan: Plan
    notices: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What a person calls it."""
        typed = shlex.join(self.own) or "the defaults"
        return f"{self.source} ({typed})" if self.source else typed


def read_sides(words: Sequence[str], plan_of: PlanOf) -> tuple[Side, Side]:
    """The first two words are the sides, the others are overrides for both.

    Raises UsageError, or SidesRefused with what is wrong on either side.
    """
    _check_words(words)
    sides: list[Side] = []
    said: dict[str, list[str]] = {}
    for name, typed in zip((A, B), words, strict=False):
        try:
            own, source = read_side(typed)
            own, alone = _for_a_run_alone(own) if source else (own, [])
            overrides = [*words[2:], *own]
            _check_keys(overrides)
            plan = plan_of(overrides)
            _check_asked(plan.setting.run)
            sides.append(Side(name, own, overrides, source, plan, [*alone, *_ignored(overrides)]))
        except FastdiffError as error:
            said.setdefault(str(error), []).append(name)
    if said:
        raise SidesRefused("\n".join(_of_sides(names, text) for text, names in said.items()))
    a, b = sides
    _check_same_pictures(a, b)
    return a, b


def read_side(typed: str) -> tuple[list[str], str | None]:
    """A side's overrides, and the report that they come from. Raises UsageError.

    A side is a list of overrides in quotes, a recipe, a run's folder, or its report.json.
    """
    if not typed.strip() or re.match(r"[+~]*[\w.]+=", typed):
        return _split(typed), None
    path = Path(os.path.expanduser(typed))
    if path.suffix in (".yaml", ".yml"):
        return [f"recipe={typed}"], None
    report = path if path.name == "report.json" else path / "report.json"
    if report.is_file():
        return _overrides_of(report), typed
    raise UsageError(
        f"'{typed}' is neither a list of overrides, nor a recipe, nor the folder of a run\n"
        '  instead: "precision=bf16 compile=regional", "" for the defaults, team.yaml, or a run\'s folder'
    )


_NO_MATTER = {*PROVENANCE, "bench", "quality", "profile"}
"""Keys of a run that change neither its picture nor its calls."""


def same_run(a: Side, b: Side) -> bool:
    """Whether both sides are one run under two names: a comparison of a run with itself."""
    ours, theirs = (side.plan.setting.run.to_dict() for side in (a, b))
    return all(ours[key] == theirs[key] for key in ours.keys() - _NO_MATTER)


def _check_words(words: Sequence[str]) -> None:
    flags = [word for word in words if word.startswith("-")]
    if flags:
        raise UsageError(
            f"compare has no option {flags[0]}\n"
            "  there are: compare.pairs, compare.lives, compare.seed, compare.dir"
        )
    if len(words) < 2:
        raise UsageError(
            "compare needs two sides first, each in quotes: overrides, a recipe, or a run's folder\n"
            '  for example: python -m fastdiff compare "" "compile=regional" model=shapes'
        )


def _check_keys(overrides: Sequence[str]) -> None:
    for word in overrides:
        key = word.partition("=")[0]
        if re.match(r"[+~]*(hydra|compare)[./@]", key):
            raise UsageError(
                f"a side can't set {key}, which belongs to the whole command\n  instead: leave it out there"
            )


def _for_a_run_alone(own: Sequence[str]) -> tuple[list[str], list[str]]:
    """A finished run's overrides without its budgets, captions and profile, and what is said of those.

    Typed ones are refused; a run is compared as it was, and nobody can take them out of its folder.
    """
    alone = [word for word in own if re.match(r"(profile|quality\.(captions|m(in|ax)_\w+))=", word)]
    said = "compare judges no budgets, draws no captions and profiles nothing"
    notices = [f"{word} of that run is left out: {said}" for word in alone]
    return [word for word in own if word not in alone], notices


_IGNORED = {
    "bench.runs": "compare.pairs says how many calls are timed",
    "quality.exact": "compare holds no pass to fp64; a run of its own does",
    "quality.lpips": "compare measures no LPIPS; a run of its own does",
}


def _ignored(overrides: Sequence[str]) -> list[str]:
    """What is said of overrides that a comparison doesn't heed."""
    given = dict(word.split("=", 1) for word in overrides if "=" in word)
    return [
        f"{key}={given[key]} is ignored: {why}"
        for key, why in _IGNORED.items()
        if given.get(key, "false").lower() != "false"
    ]


def _check_asked(run: RunConfig) -> None:
    """Raises UsageError if a run asks for what only a run of its own gives."""
    lines = []
    if isinstance(run.quality, Reference):
        budgets = [f"quality.{key}={limit:g}" for key, limit in run.quality.budgets().items()]
        if budgets:
            lines.append(("judges no budgets", ", ".join(budgets)))
        if run.quality.captions:
            lines.append(("draws no captions", f"quality.captions={run.quality.captions}"))
    if run.profile:
        lines.append(("profiles nothing", "profile=true"))
    if lines:
        what, keys = zip(*lines, strict=True)
        raise UsageError(
            f"compare {', '.join(what)}\n"
            f"  instead: leave out {', '.join(keys)}, and run that side alone"
        )


def _split(typed: str) -> list[str]:
    try:
        return shlex.split(typed)
    except ValueError as error:
        raise UsageError(
            f"{typed}: {str(error).lower()}\n"
            "  instead: quotes inside the quotes: \"generation.prompt='a red circle'\""
        ) from error


def _overrides_of(report: Path) -> list[str]:
    """The overrides that a run was typed with; where it was written to is left out."""
    try:
        data: Any = read_json(report)
        overrides = [str(word) for word in data["overrides"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{report} can't be read as a run's report: {type(error).__name__}\n"
            '  instead: its overrides in quotes, "precision=bf16 compile=regional"'
        ) from error
    return [word for word in overrides if not word.startswith("hydra.")]


def _of_sides(names: Sequence[str], text: str) -> str:
    """A refusal with the sides that it is about."""
    return f"side {names[0]}: {text}" if len(names) == 1 else f"both sides: {text}"


_SAME = ("prompts", "negative_prompt", "height", "width", "images_per_prompt", "seed")
"""What two sides must share: prompts, and what makes the starting latents. Steps and guidance are theirs to choose."""


def _check_same_pictures(a: Side, b: Side) -> None:
    ours, theirs = (side.plan.setting.run.generation for side in (a, b))
    lines = []
    for key in _SAME:
        one, other = getattr(ours, key), getattr(theirs, key)
        if one != other:
            name = "prompt" if key == "prompts" else key
            lines.append(f"  generation.{name}: {_shown(ours, key)} and {_shown(theirs, key)}")
    if lines:
        raise SidesRefused(
            "the sides would not start from the same latents and prompts\n"
            + "\n".join(lines)
            + "\n  instead: give these once, for both, after the two sides"
        )


def _shown(generation: Generation, key: str) -> str:
    value = getattr(generation, key)
    if key == "prompts":
        return ", ".join(f"'{text}'" for text in value)
    return "the model's own" if value is None else str(value)
