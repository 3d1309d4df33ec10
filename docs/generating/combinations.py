"""Which options can't be combined, found by planning every pair of them.

Much of it stands in rules that are code, so it is asked of the planner itself: on a machine that lacks nothing and on one
without a GPU, both made up, so that every build says the same; with the embedded model, an SDXL pipeline.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

from fastdiff.choices.compose import compose
from fastdiff.choices.options import shipped_files
from fastdiff.config import RunConfig, Slot
from fastdiff.errors import MachineProblem, PlanError, Problem
from fastdiff.machine.environment import TOOLS, Environment, Gpu
from fastdiff.models.facts import ModelFacts
from fastdiff.models.sources import model_of
from fastdiff.passes import OPTIONS
from fastdiff.planning.plan import make_plan


@dataclass(frozen=True)
class Clash:
    """Why an option can't be combined with another one. other: as typed, `qkv=fused`. instead: the way out."""

    other: str
    reason: str
    instead: str


def machines() -> tuple[Environment, Environment]:
    """One with a GPU and every package, one without a GPU."""
    needed = {
        r.module for options in OPTIONS.values() for o in options.values() for r in o.requires
    }
    without = Environment(
        python="3.11",
        os="Linux",
        cpu="made up",
        cpu_flags=frozenset({"avx512f", "avx512_bf16", "avx512_fp16"}),
        threads=8,
        memory_bytes=256 * 10**9,
        available_memory_bytes=256 * 10**9,
        modules=dict.fromkeys(filter(None, (*needed, "triton")), True),
        tools=TOOLS,
    )
    gpu = Gpu("made up", (9, 0), 80 * 10**9)
    return replace(without, gpus=(gpu,), torch_cuda="13.0"), without


@cache
def clashes() -> Mapping[str, tuple[Clash, ...]]:
    """By the option as typed, in the order of the slots."""
    found: dict[str, dict[Clash, None]] = {}
    plain = compose([])
    instances = {
        slot: {name: file.option() for name, file in shipped_files()[slot].items()}
        for slot in OPTIONS
    }
    for machine in machines():
        for one, other in combinations(OPTIONS, 2):
            problems = {
                (a, b): _problems(
                    plain,
                    machine,
                    {one: instances[one][a], other: instances[other][b]},
                    {one: a, other: b},
                )
                for a in instances[one]
                for b in instances[other]
            }
            for (a, b), problem in _of_the_pair(problems):
                first, second = f"{one}={a}", f"{other}={b}"
                found.setdefault(first, {})[_clash(problem, first, second)] = None
                found.setdefault(second, {})[_clash(problem, second, first)] = None
    order = [f"{slot}={name}" for slot in OPTIONS for name in shipped_files()[slot]]

    def place(clash: Clash) -> tuple[int, str, str]:
        return order.index(clash.other), clash.reason, clash.instead

    return {choice: tuple(sorted(found.get(choice, ()), key=place)) for choice in order}


def _problems(
    plain: RunConfig, machine: Environment, options: Mapping[str, Slot], choices: Mapping[str, str]
) -> frozenset[Problem]:
    """Problems with the choices themselves, whatever the machine."""
    run = copy.copy(plain)
    run.choices = {**plain.choices, **choices}
    for slot, option in options.items():
        setattr(run, slot, option)
    try:
        make_plan(run, machine, _facts())
    except PlanError as error:
        return frozenset(p for p in error.problems if not isinstance(p, MachineProblem))
    return frozenset()


@cache
def _facts() -> ModelFacts | None:
    return model_of(compose([])).facts()


def _of_the_pair(
    problems: Mapping[tuple[str, str], frozenset[Problem]],
) -> Iterator[tuple[tuple[str, str], Problem]]:
    """Problems that are there because of both options: gone with another one in either's place."""
    for (a, b), found in problems.items():
        without_b = [each for (one, other), each in problems.items() if one == a and other != b]
        without_a = [each for (one, other), each in problems.items() if other == b and one != a]
        for problem in found:
            if any(problem not in each for each in without_b) and any(
                problem not in each for each in without_a
            ):
                yield (a, b), problem


def _clash(problem: Problem, own: str, other: str) -> Clash:
    """The problem as it reads beside one of the two, where both are named already."""
    reason = re.sub(r"^can't be combined with [\w=.]+: ", "", problem.reason)
    for choice in (own, other):
        reason = reason.removesuffix(f"; {choice}")
    return Clash(other, reason, problem.instead)
