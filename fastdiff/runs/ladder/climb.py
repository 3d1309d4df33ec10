"""Measuring a ladder, and going on where an earlier call stopped.

Every measurement is its own process, and every rung is measured again in each round, the rungs in a new random order: what
the machine does meanwhile hits all of them. What is finished stays in the ladder's folder.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from fastdiff.choices.command_keys import FOLDER, SEED, CommandKeys
from fastdiff.config import NoQuality, fingerprint, limits
from fastdiff.display.ladder import write_ladder_page
from fastdiff.display.report import write_run_page
from fastdiff.errors import Status
from fastdiff.machine.files import read_json, write_json
from fastdiff.measuring.protocol import ReferencePictures, Request
from fastdiff.measuring.report import run_id, weights_identity
from fastdiff.models.random_weights import kept_for_runs
from fastdiff.models.sources import model_of
from fastdiff.runs.ladder.rows import rows
from fastdiff.runs.ladder.rungs import Rung
from fastdiff.runs.process import Progress, RefusedByWorker, run_in_process

LADDERS = Path("outputs") / "ladders"
OUT_OF_TIME = 75
"""Exit code of a ladder that stopped at its time limit and goes on when it is called again (sysexits' EX_TEMPFAIL)."""


@dataclass(frozen=True)
class How(CommandKeys):
    """How a ladder is measured: `ladder.rounds=5` and so on.

    rounds: processes for each rung; an interval of confidence needs two, and is useful from three on.
    limit_s: no measurement is begun after so many seconds; null is no limit.
    seed: of the order within the rounds. dir: where results are kept; null names a folder by what is measured.
    """

    command: ClassVar[str] = "ladder"
    rounds: int = field(
        default=3, metadata=limits(10_000, "more say nothing more of a median", least=1)
    )
    limit_s: float | None = field(
        default=None, metadata=limits(10**9, "that is thirty years", least=0, example="600")
    )
    seed: int = field(default=0, metadata=SEED)
    dir: str | None = field(default=None, metadata=FOLDER)


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
        with kept_for_runs(self.folder / ".weights"):
            return self._go()

    def _go(self) -> str:
        self._read_finished()
        for done, (number, rung) in enumerate(self._order()):
            if number in rung.reports:
                continue
            if self.how.limit_s is not None and time.monotonic() - self.started > self.how.limit_s:
                return self._write("out of time")
            self.progress.say(f"round {number + 1}, {rung.experiment.short} ({done + 1})")
            report = self._measured(number, rung)
            if report["status"] == Status.INTERRUPTED.value:
                return self._write("interrupted")
            rung.reports[number] = report
            self._write("running")
        for rung in self.rungs:  # of no use to anybody once its times are known
            self._forget_compiled(rung)
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

    def _forget_compiled(self, rung: Rung) -> None:
        shutil.rmtree(self._cell(rung, None) / "compiled", ignore_errors=True)

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
                run = rung.plan.setting.run
                same = report["run_id"] == run_id(run, rung.plan.device)
                same = same and report.get("weights") == weights_identity(run)
                if same and report["status"] == "ok":
                    rung.reports[number] = report

    def _measured(self, number: int, rung: Rung) -> dict[str, Any]:
        """Measure, and go on from what an interrupted attempt had compiled, if there was one.

        Compiling may take longer than a call of the ladder may. `compile.resumed` in the report says that it took some of
        its code from there, so that its seconds aren't those of an empty cache. What was cut short while it was written can't be
        taken: a rung that fails with it is measured once more, without.
        """
        left = not rung.measured and _holds_files(self._cell(rung, None) / "compiled")
        report = self._measure(number, rung)
        ended = report["status"]
        if left and ended in (Status.FAILED.value, Status.CRASHED.value):
            self._forget_compiled(rung)
            left, report = False, self._measure(number, rung)
        if "compile" in report:
            report["compile"]["resumed"] = left
            write_json(self._cell(rung, number) / "report.json", report)
        return report

    def _measure(self, number: int, rung: Rung) -> dict[str, Any]:
        assert rung.plan is not None
        folder = self._cell(rung, number)
        run = rung.plan.setting.run
        request = Request(run.to_dict(), rung.overrides, self._reference(rung, number))
        compiled = (self._cell(rung, None) / "compiled").absolute()
        given = getattr(run.compile, "cache_dir", None)
        environment = {"FASTDIFF_CACHE_DIR": str(compiled / "own")}
        if given is None:
            environment["TORCHINDUCTOR_CACHE_DIR"] = str(compiled / "inductor")
            environment["TRITON_CACHE_DIR"] = str(compiled / "triton")
        try:
            report = run_in_process(rung.plan, request, folder, self.progress, environment)
        except RefusedByWorker as error:
            if not any(other.measured for other in self.rungs):
                raise  # a model that isn't there: no other rung would find it
            return {"status": Status.INCOMPATIBLE.value, "error": {"message": str(error)}}
        report["compile"]["cache_shared"] = given is not None
        report["weights"] = weights_identity(run)
        recorded = report["environment"].get("environment_variables", {})
        for name in environment:  # of this measurement, and not of the machine
            recorded.pop(name, None)
        write_json(folder / "report.json", report)
        write_run_page(folder, report)
        return report

    def _reference(self, rung: Rung, number: int) -> ReferencePictures:
        """The pictures of the first row's first round."""
        assert rung.plan is not None
        first = next(r for r in self.rungs if r.plan is not None)
        if isinstance(rung.plan.setting.run.quality, NoQuality):
            return ReferencePictures(reason="quality=none")
        if rung is first and number == 0:
            return ReferencePictures.itself()
        report = first.reports.get(0)
        if report is None or report["status"] != "ok":
            return ReferencePictures(
                reason=f"no reference: {first.experiment.short} could not be drawn"
            )
        drawn = [self._cell(first, 0) / image["path"] for image in report["images"]]
        return ReferencePictures.drawn(drawn, first.experiment.short, report["run_id"])

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


def _holds_files(folder: Path) -> bool:
    return any(path.is_file() for path in folder.rglob("*"))


def folder_of(name: str, overrides: Sequence[str], how: How) -> Path:
    """Where this ladder's results are kept: the same line finds them again."""
    if how.dir is not None:
        return Path(os.path.expanduser(how.dir))
    return LADDERS / f"{name}-{fingerprint([name, sorted(overrides), how.seed])[:8]}"


def exit_code(state: str, rung_rows: Sequence[dict[str, Any]]) -> int:
    """0 if every row is measured or can't be on this machine; 2 if nothing could be measured."""
    if state == "interrupted":
        return 130
    if state == "out of time":
        return OUT_OF_TIME
    if not any(row["status"] == Status.OK.value for row in rung_rows):
        return 2
    good = (Status.OK.value, Status.INCOMPATIBLE.value)
    return 0 if all(row["status"] in good for row in rung_rows) else 1
