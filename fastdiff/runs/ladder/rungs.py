"""The rungs of a ladder: each experiment composed and planned, or why it can't be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastdiff.choices.experiments import ExperimentFile, ladder
from fastdiff.choices.refusals import missing_keys
from fastdiff.errors import FastdiffError, PlanError
from fastdiff.planning.plan import Plan


@dataclass
class Rung:
    """One row: its experiment, and either its plan or why there is none.

    left_out: overrides of the ladder whose key this rung's options haven't got. reports: of its rounds, from 0.
    """

    experiment: ExperimentFile
    overrides: list[str]
    plan: Plan | None = None
    refused: str | None = None
    left_out: list[str] = field(default_factory=list)
    reports: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def failed(self) -> dict[str, Any] | None:
        """The report of a round that ended otherwise than well."""
        return next((r for r in self.reports.values() if r["status"] != "ok"), None)

    @property
    def measured(self) -> dict[int, dict[str, Any]]:
        """Reports of the rounds that ended well."""
        return {n: r for n, r in self.reports.items() if r["status"] == "ok"}


def rungs_of(
    name: str, overrides: Sequence[str], plan_of: Callable[[Sequence[str]], Plan]
) -> list[Rung]:
    """Every rung composed and planned. Raises the first rung's refusal if none of them can run here."""
    rungs = []
    refusals: list[FastdiffError] = []
    rest = _fitting(ladder(name), overrides)
    for experiment in ladder(name):
        words = [f"experiment={experiment.name}", *rest[experiment.name]]
        rung = Rung(experiment, words, left_out=[w for w in overrides if w not in words])
        try:
            rung.plan = plan_of(words)
        except FastdiffError as error:
            rung.refused = _reasons(error)
            refusals.append(error)
        rungs.append(rung)
    if len(refusals) == len(rungs):
        raise refusals[0]
    return rungs


def _fitting(
    experiments: Sequence[ExperimentFile], overrides: Sequence[str]
) -> dict[str, list[str]]:
    """The overrides of each rung: a key that its option lacks, and another rung's has, is left out there.

    So `compile.freezing=false` is for the rungs that compile. A key that no rung has stays, and is refused.
    """
    misfits = {e.name: missing_keys([f"experiment={e.name}", *overrides]) for e in experiments}
    nowhere = set.intersection(*map(set, misfits.values()))
    return {
        name: [word for word in overrides if word not in missing or word in nowhere]
        for name, missing in misfits.items()
    }


def _reasons(error: FastdiffError) -> str:
    """A refusal on one line."""
    if isinstance(error, PlanError):
        said = (f"{p.choice} {p.reason} (instead: {p.instead})" for p in error.problems)
        return "; ".join(said)
    return " ".join(str(error).split())
