"""A ladder: the experiments of one document, run in its order on any model, each against the row above it.

Every measurement is its own process, and every rung is measured again in each round, the rungs in a new random order: what
the machine does meanwhile hits all of them. What is finished stays in the ladder's folder, so the same line goes on
where it stopped.
"""

from __future__ import annotations

import math
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fastdiff.config import NoQuality, fingerprint
from fastdiff.errors import FastdiffError, PlanError, UsageError, nearest
from fastdiff.experiments import ExperimentFile, ladder
from fastdiff.explaining import missing_keys
from fastdiff.models.sources import model_of
from fastdiff.pages.ladder import write_ladder_page
from fastdiff.pages.run import write_run_page
from fastdiff.planning import Plan
from fastdiff.process import Progress, RefusedByWorker, run_in_process
from fastdiff.report import run_id
from fastdiff.result import Status, read_json, write_json
from fastdiff.worker import Request

LADDERS = Path("outputs") / "ladders"
OUT_OF_TIME = 75
"""Exit code of a ladder that stopped at its time limit and goes on when it is called again (sysexits' EX_TEMPFAIL)."""


@dataclass(frozen=True)
class How:
    """How a ladder is measured: `ladder.rounds=5` and so on.

    rounds: processes for each rung; an interval of confidence needs two, and is useful from three on.
    limit_s: no measurement is begun after so many seconds; null is no limit.
    seed: of the order within the rounds. dir: where results are kept; null names a folder by what is measured.
    """

    rounds: int = 3
    limit_s: float | None = None
    seed: int = 0
    dir: str | None = None


def read_how(words: Sequence[str]) -> tuple[How, list[str]]:
    """`ladder.key=value` words, and the others. Raises UsageError."""
    given: dict[str, Any] = {}
    others = []
    known = {f.name: f for f in fields(How)}
    for word in words:
        key, equals, value = word.partition("=")
        if not key.startswith("ladder."):
            others.append(word)
            continue
        name = key.removeprefix("ladder.")
        if name not in known or not equals:
            near = nearest(name, known)
            hint = f"did you mean: ladder.{near}" if near else f"it has: {', '.join(known)}"
            raise UsageError(f"ladder has no key '{name}'\n  {hint}")
        given[name] = _number(key, name, value)
    return How(**given), others


def _number(key: str, name: str, value: str) -> Any:
    if name == "dir":
        return value
    low = {"rounds": 1, "seed": 0, "limit_s": 0}[name]
    if name == "limit_s" and value == "null":
        return None
    try:
        number = float(value) if name == "limit_s" else int(value)
    except ValueError:
        number = math.nan
    if not low <= number < math.inf:
        kind = "a number of seconds" if name == "limit_s" else "a whole number"
        raise UsageError(
            f"{key}={value} is not {kind} of at least {low}\n  for example: {key}={max(low, 3)}"
        )
    return number


@dataclass
class Rung:
    """One row: its experiment, and either its plan or why there is none.

    left_out: overrides of the ladder whose key this rung's options haven't got.
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


@dataclass
class Climb:
    """A ladder that is being measured, and the folder that holds what is finished."""

    name: str
    rungs: list[Rung]
    overrides: list[str]
    how: How
    folder: Path
    progress: Progress
    started: float = field(default_factory=time.monotonic)

    def go(self) -> str:
        """Measure what is missing. Returns `complete`, `out of time` or `interrupted`."""
        self._read_finished()
        for done, (number, rung) in enumerate(self._order()):
            if number in rung.reports:
                continue
            if self.how.limit_s is not None and time.monotonic() - self.started > self.how.limit_s:
                return self._write("out of time")
            self.progress.say(f"round {number + 1}, {rung.experiment.short} ({done + 1})")
            report = self._measure(number, rung)
            if report["status"] == Status.INTERRUPTED.value:
                return self._write("interrupted")
            rung.reports[number] = report
            self._write("running")
        for rung in self.rungs:  # compiled code is of no use to anybody once its times are known
            shutil.rmtree(self._cell(rung, None) / "compiled", ignore_errors=True)
        return self._write("complete")

    def _order(self) -> Iterator[tuple[int, Rung]]:
        """Round by round, each in its own random order; the first round begins with the row that is compared with."""
        possible = [rung for rung in self.rungs if rung.plan is not None]
        for number in range(self.how.rounds):
            shuffled = list(possible)
            random.Random(f"{self.how.seed}:{number}").shuffle(shuffled)
            if number == 0 and possible:
                shuffled.remove(possible[0])
                shuffled.insert(0, possible[0])
            for rung in shuffled:
                if rung.failed is None or number in rung.reports:
                    yield number, rung

    def _cell(self, rung: Rung, number: int | None) -> Path:
        folder = self.folder / rung.experiment.short
        return folder if number is None else folder / f"round-{number + 1}"

    def _read_finished(self) -> None:
        """Take over what an earlier call measured, if it is the same run on the same machine with the same versions."""
        for rung in self.rungs:
            for number in range(self.how.rounds):
                file = self._cell(rung, number) / "report.json"
                if rung.plan is None or not file.is_file():
                    continue
                report = read_json(file)
                same = report["run_id"] == run_id(rung.plan.setting.run, rung.plan.device)
                if same and report["status"] == "ok":
                    rung.reports[number] = report

    def _measure(self, number: int, rung: Rung) -> dict[str, Any]:
        assert rung.plan is not None
        folder = self._cell(rung, number)
        run = rung.plan.setting.run
        request = Request(run.to_dict(), rung.overrides, self._reference(rung, number))
        cache = (self._cell(rung, None) / "compiled").absolute()
        given = getattr(run.compile, "cache_dir", None)
        environment = {"FASTDIFF_CACHE_DIR": str(cache)}
        if given is None:
            environment["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "inductor")
        try:
            report = run_in_process(rung.plan, request, folder, self.progress, environment)
        except RefusedByWorker as error:
            return {"status": Status.INCOMPATIBLE.value, "error": {"message": str(error)}}
        report["compile"]["cache_shared"] = given is not None
        recorded = report["environment"].get("environment_variables", {})
        for name in environment:  # of this measurement, and not of the machine
            recorded.pop(name, None)
        write_json(folder / "report.json", report)
        write_run_page(folder, report)
        return report

    def _reference(self, rung: Rung, number: int) -> dict[str, Any]:
        """The pictures of the first row's first round."""
        assert rung.plan is not None
        first = next(r for r in self.rungs if r.plan is not None)
        found: dict[str, Any] = {"run_id": None, "pictures": None, "reason": None, "name": None}
        if isinstance(rung.plan.setting.run.quality, NoQuality):
            return found | {"reason": "quality=none"}
        if rung is first and number == 0:
            return found | {"pictures": "own", "name": "itself"}
        report = first.reports.get(0)
        if report is None or report["status"] != "ok":
            return found | {"reason": f"no reference: {first.experiment.short} could not be drawn"}
        paths = [
            str((self._cell(first, 0) / image["path"]).absolute()) for image in report["images"]
        ]
        return found | {
            "run_id": report["run_id"],
            "pictures": paths,
            "name": first.experiment.short,
        }

    def _write(self, state: str) -> str:
        data = self.to_dict(state)
        write_json(self.folder / "ladder.json", data)
        write_ladder_page(self.folder, data)
        return state

    def to_dict(self, state: str) -> dict[str, Any]:
        """The whole ladder as `ladder.json` has it; state: complete, running, out of time or interrupted."""
        measured = next((r for rung in self.rungs for r in rung.measured.values()), None)
        planned = next((rung.plan for rung in self.rungs if rung.plan is not None), None)
        return {
            "schema": 1,
            "ladder": self.name,
            "state": state,
            "model": model_of(planned.setting.run).title if planned else None,
            "overrides": self.overrides,
            "rounds": self.how.rounds,
            "seed": self.how.seed,
            "environment": measured["environment"] if measured else None,
            "rows": rows(self.rungs),
        }


def rows(rungs: Sequence[Rung]) -> list[dict[str, Any]]:
    """One row for each rung: published figures beside ours.

    latency_s is the median over rounds of each round's median. speedup compares with the first measured row, gain with
    the nearest one above; both are geometric means of the rounds' ratios, with a 95 % interval of Student's t over the
    rounds (null below two rounds).
    """
    found: list[dict[str, Any]] = []
    first: Rung | None = None
    above: Rung | None = None
    for rung in rungs:
        row: dict[str, Any] = {
            "experiment": rung.experiment.name,
            "status": _status(rung),
            "reason": rung.refused,
            "published": _published(rung.experiment.published),
            "rounds": len(rung.measured),
            "overrides": rung.overrides,
            "left_out": rung.left_out,
        }
        failed = rung.failed
        if failed is not None:
            row["reason"] = failed["error"]["message"]
        if rung.measured:
            row |= _figures(rung)
            row["speedup"] = ratio(first or rung, rung)
            row["gain"] = ratio(above, rung) if above else None
            row["gain_over"] = above.experiment.short if above else None
            row["verdict"] = verdict(row["gain"])
            first, above = first or rung, rung
        found.append(row)
    return found


def _published(words: dict[str, str]) -> dict[str, Any]:
    numbers = {key: float(words[key]) if key in words else None for key in ("latency_s", "speedup")}
    return {**numbers, "hardware": words.get("hardware"), "source": words.get("source")}


def _status(rung: Rung) -> str:
    if rung.plan is None:
        return Status.INCOMPATIBLE.value
    if rung.failed is not None:
        return str(rung.failed["status"])
    return Status.OK.value if rung.measured else "missing"


def _figures(rung: Rung) -> dict[str, Any]:
    """What the rounds say together."""
    reports = [rung.measured[number] for number in sorted(rung.measured)]
    medians = [report["latency_s"]["median"] for report in reports]
    compiled = next((r for r in reports if r["compile"]["cache"] == "cold"), reports[0])
    peaks = reports[0]["peak_memory_bytes"]
    return {
        "latency_s": statistics.median(medians),
        "latency_s_by_round": {
            str(number + 1): rung.measured[number]["latency_s"]["median"]
            for number in sorted(rung.measured)
        },
        "pictures": len(reports[0]["images"]),
        "quality": reports[0]["quality"],
        "peak_memory_bytes": {
            name: max(
                (r["peak_memory_bytes"][name] for r in reports if r["peak_memory_bytes"][name]),
                default=None,
            )
            for name in peaks
        },
        "compile_s": compiled["compile_s"],
        "compile_cache": compiled["compile"]["cache"],
        "compile_cache_shared": compiled["compile"].get("cache_shared", False),
        "first_call_s": compiled["first_call_s"],
        "applied": reports[0]["applied"],
        "notices": reports[0]["notices"],
    }


def ratio(slow: Rung, fast: Rung) -> dict[str, Any]:
    """How many times as fast the second is as the first: geometric mean of the rounds' ratios, and its interval."""
    common = sorted(slow.measured.keys() & fast.measured.keys())
    logs = [
        math.log(slow.measured[n]["latency_s"]["median"] / fast.measured[n]["latency_s"]["median"])
        for n in common
    ]
    if not logs:
        return {"ratio": None, "ci95": None, "rounds": 0}
    mean = statistics.fmean(logs)
    interval = None
    if slow is not fast and len(logs) > 1:
        from scipy.stats import t

        half = float(t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
        interval = [math.exp(mean - half), math.exp(mean + half)]
    return {"ratio": math.exp(mean), "ci95": interval, "rounds": len(logs)}


def verdict(gain: dict[str, Any] | None) -> str | None:
    """What a rung is worth here: `pays`, `no gain` (none is shown) or `slower`; None where the rounds can't tell."""
    if gain is None or gain["ci95"] is None:
        return None
    low, high = gain["ci95"]
    if low > 1:
        return "pays"
    return "slower" if high < 1 else "no gain"


def folder_of(name: str, overrides: Sequence[str], how: How) -> Path:
    """Where this ladder's results are kept: the same line finds them again."""
    if how.dir is not None:
        return Path(how.dir).expanduser()
    return LADDERS / f"{name}-{fingerprint([name, sorted(overrides), how.seed])[:8]}"


def exit_code(state: str, rung_rows: Sequence[dict[str, Any]]) -> int:
    """0 if every row is measured or can't be on this machine."""
    if state == "interrupted":
        return 130
    if state == "out of time":
        return OUT_OF_TIME
    good = (Status.OK.value, Status.INCOMPATIBLE.value)
    return 0 if all(row["status"] in good for row in rung_rows) else 1
