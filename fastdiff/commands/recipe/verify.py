"""`recipe verify`: measure again what a recipe says was measured, and compare."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from fastdiff.choices.command_keys import CommandKeys
from fastdiff.choices.compose import compose
from fastdiff.choices.recipe.checking import read_recipe
from fastdiff.choices.recipe.format import Recipe
from fastdiff.choices.recipe.using import spelled_out
from fastdiff.commands.words import Words, print_json
from fastdiff.display import words
from fastdiff.display.layout import headline, labelled, shown, table
from fastdiff.display.progress import progress
from fastdiff.errors import FastdiffError, UsageError
from fastdiff.machine.files import write_json
from fastdiff.planning.outlook import planned
from fastdiff.runs.single import execute, new_folder


@dataclass(frozen=True)
class How(CommandKeys):
    """How far measured figures may be from what a recipe says.

    tolerance: of times and memory, as a part of them: 0.1 lets them be a tenth more. tolerance_db: of PSNR, in dB less.
    """

    command: ClassVar[str] = "verify"
    tolerance: float = field(default=0.1, metadata={"least": 0})
    tolerance_db: float = field(default=1.0, metadata={"least": 0})


def run(asked: Words) -> int:
    """`recipe verify FILE`: a run of the recipe's choices, and the work that it says was measured."""
    how, others = How.read(asked.overrides)
    (path,) = asked.files
    recipe = read_recipe(path)
    overrides = [f"recipe={path}", *work_words(recipe, others), *others]
    plan = planned(compose(overrides))
    folder = new_folder()
    with progress() as told:
        report = execute(plan, spelled_out(overrides, plan.setting.run.recipe), folder, told)
    if report["status"] == "interrupted":
        return 130
    if report["status"] not in ("ok", "invalid_output"):
        message = report["error"]["message"]
        raise FastdiffError(
            f"recipe '{recipe.name}' could not be measured again: {report['status']}\n"
            f"  {message}\n  instead: look into {shown(folder)}/log.txt"
        )
    found = figures(recipe, report, how)
    data = {
        "recipe": recipe.name,
        "recipe_sha256": recipe.sha256,
        "holds": all(figure.holds is not False for figure in found),
        "figures": [figure.to_dict() for figure in found],
        "another_machine": another_machine(recipe, report),
    }
    write_json(folder / "verify.json", data)
    if "--json" in asked.flags:
        print_json(data)
    else:
        print(headline(f"{path} {'holds' if data['holds'] else 'does not hold'} here"))
        print(figures_text(found, how, another_machine(recipe, report)))
        print(labelled("written", f"{shown(folder)}/verify.json, report.md"))
    return 0 if data["holds"] else 1


def work_words(recipe: Recipe, typed: Sequence[str]) -> list[str]:
    """Overrides that repeat the work that was measured, where nobody asked for other work. Raises UsageError if nothing was."""
    if "latency_s" not in recipe.measured:
        raise UsageError(
            f"recipe '{recipe.name}' says nothing of what was measured, so there is nothing to verify\n"
            "  instead: run it, and save it with its figures: python -m fastdiff recipe save RUN_DIR"
        )
    work = dict(recipe.measured.get("work") or {})
    work.pop("images", None)
    asked = {word.partition("=")[0] for word in typed}
    given = {f"generation.{key}": value for key, value in work.items() if value is not None}
    return [f"{key}={value}" for key, value in given.items() if key not in asked]


@dataclass(frozen=True)
class Figure:
    """One figure: what the recipe says, what was measured now, and whether it holds; None where that can't be said."""

    name: str
    said: Any
    measured: Any
    holds: bool | None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def figures(recipe: Recipe, report: Mapping[str, Any], how: How) -> list[Figure]:
    """Every figure of a recipe beside the same of a run's report."""
    return [
        *_times_and_memory(recipe.measured, report, how),
        *_quality(recipe.measured, report, how),
    ]


def _times_and_memory(
    said: Mapping[str, Any], report: Mapping[str, Any], how: How
) -> Iterator[Figure]:
    memory = report["peak_memory_bytes"]
    now = {
        "latency_s": report["latency_s"]["median"],
        "step_latency_s": report["step_latency_s"]["median"],
        "compile_s": report["compile_s"],
        "peak_memory_bytes": memory["device_allocated"] or memory["host"],
    }
    for name, value in now.items():
        before = said.get(name)
        if before is None:
            continue
        if name == "compile_s" and report["compile"]["cache"] != "cold":
            warm = report["compile"]["cache"] == "warm"
            reason = "the compile cache was warm" if warm else "nothing was compiled"
            yield Figure(name, before, value, None, reason)
        elif value is None:
            yield Figure(name, before, None, False, "wasn't measured")
        else:
            yield Figure(name, before, value, value <= before * (1 + how.tolerance))


def _quality(said: Mapping[str, Any], report: Mapping[str, Any], how: How) -> Iterator[Figure]:
    before, now = said.get("quality") or {}, report["quality"]
    if before.get("identical") is not None:
        holds = not before["identical"] or now["identical"]
        yield Figure("identical", before["identical"], now["identical"], holds)
    if before.get("psnr_db") is not None:
        value = math.inf if now["identical"] else now["psnr_db"]
        if value is None:
            yield Figure("psnr_db", before["psnr_db"], None, False, "wasn't measured")
        else:
            shown = now["psnr_db"]
            reason = "now identical" if now["identical"] else ""
            holds = value >= before["psnr_db"] - how.tolerance_db
            yield Figure("psnr_db", before["psnr_db"], shown, holds, reason)


def another_machine(recipe: Recipe, report: Mapping[str, Any]) -> str | None:
    """What to know before times are compared; None where the recipe was measured on the same."""
    before, now = recipe.measured.get("environment") or {}, report["environment"]
    others = [
        f"{name} {before[name]}, here {now.get(name)}"
        for name in before
        if name in now and before[name] != now[name]
    ]
    return f"measured with {'; '.join(others)}" if others else None


def figures_text(found: Sequence[Figure], how: How, notice: str | None) -> str:
    """The table: said, measured, holds."""
    verdicts = {True: "holds", False: "does not hold", None: "not compared"}
    rows = [
        [
            *words.compared(figure.name, figure.said, figure.measured),
            verdicts[figure.holds] + (f" ({figure.reason})" if figure.reason else ""),
        ]
        for figure in found
    ]
    right = ("recipe", "here", "ratio")
    lines = [table(("figure", *right, ""), rows, right=right, wrapped=[""])]
    lines.append(
        labelled(
            "tolerance",
            f"{how.tolerance:.0%} more time or memory, {how.tolerance_db:g} dB less PSNR",
        )
    )
    if notice:
        lines.append(labelled("notice", notice))
    return "\n".join(lines)
