"""A sweep from its overrides to its table: plan every cell, run what is missing, and have a row for each at any moment."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from fastdiff.choices.folders import OWN_NAME, as_flags, config_dirs, config_name, flags_in_use
from fastdiff.choices.grid import read_grid
from fastdiff.choices.hydras_keys import hydras_own
from fastdiff.choices.refusals import raise_all
from fastdiff.display.sweep import write_sweep_pages
from fastdiff.errors import Status, UsageError
from fastdiff.machine.environment import this_machine
from fastdiff.machine.files import read_json, write_json
from fastdiff.measuring.protocol import says_disk_full
from fastdiff.models.sources import model_of
from fastdiff.planning.cells import PlannedCell, grid_identity, planned_cells
from fastdiff.runs.folders import DiskFull, check_folder, no_room
from fastdiff.runs.process import Limits
from fastdiff.runs.sweep.folder import SWEEPS, Folder, SweepBusy
from fastdiff.runs.sweep.how import How, read_how
from fastdiff.runs.sweep.job import MOST_STARTS, Job, Task
from fastdiff.runs.sweep.launching import HERE, Launch, prepare, runs_elsewhere
from fastdiff.runs.sweep.made_with import MACHINE, WeightsOnce, differences, made_with
from fastdiff.runs.sweep.rows import (
    blank_row,
    completed,
    counts,
    disturbed,
    measured_row,
    unmeasured_row,
)

_LOOK_EVERY_S = 0.5
_GIGABYTE = 1_000_000_000


class Board(Protocol):
    """Who shows how a sweep gets on. `show` is called often, with every row and what is marked of those that run."""

    def show(
        self, rows: Sequence[dict[str, Any]], running: Mapping[str, dict[str, Any]]
    ) -> None: ...


@dataclass
class Sweep:
    """A planned sweep and its folder.

    words: everything that was typed after `-m`. cells: all, in the grid's order.
    again: names of the cells of this attempt, whose earlier results no longer count. blind: nobody can be shown anything any more.
    notices: what to know before it begins. written_s: when sweep.json was last written, and how long that took.
    """

    words: list[str]
    how: How
    cells: list[PlannedCell]
    varied: tuple[str, ...]
    folder: Folder
    launch: Launch
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex)
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    now: dict[str, dict[str, str]] = field(default_factory=dict)
    weights_of: WeightsOnce = field(default_factory=WeightsOnce)
    again: frozenset[str] = frozenset()
    turn: int = 0
    blind: bool = False
    notices: tuple[str, ...] = ()
    unwritten: bool = False
    written_s: tuple[float, float] = (0.0, 0.0)

    @cached_property
    def grid(self) -> str:
        """Of its cells; `sweep.json` is written often."""
        return grid_identity(self.cells)

    def go(self, board: Board) -> dict[str, Any]:
        """Run what is missing; returns what `sweep.json` holds in the end.

        Raises UsageError if the folder holds another sweep, or one whose versions have changed.
        """
        with self.folder.locked():
            self._refuse_another()
            kept = self._kept()
            job = self._job(kept)
            self.folder.clean()
            self.folder.open_attempt(self.attempt)
            self.again = frozenset(task.name for task in job.tasks)
            self._read_rows()
            self._write("running")
            state, error = self._run(job, board)
            with _undisturbed():
                self.folder.clean()
                if state != "complete":
                    self.folder.close_attempt(self.attempt)
                self.again = frozenset()  # what was not reached keeps its earlier result
                self._read_rows()
                data = self._write(state, error)
                with contextlib.suppress(OSError) if error else contextlib.nullcontext():
                    write_sweep_pages(self.folder.path, data)
            return data

    # Before anything runs --------------------------------------------------------------------------

    def _refuse_another(self) -> None:
        before = self.folder.read()
        if before is not None and before["grid"] != self.grid:
            raise UsageError(
                f"{self.folder.path} holds another sweep: {before['command']}\n"
                "  instead: another sweep.name, or remove that folder"
            )

    def _kept(self) -> frozenset[str]:
        """Names of the cells that stay as they are. Raises UsageError if they may not stand beside new ones."""
        if self.how.retry == "all":
            return frozenset()
        kept: set[str] = set()
        changed: dict[str, None] = {}
        for cell in self.cells:
            if not cell.to_run or not self.folder.finished(cell.name):
                continue
            report = self.folder.report(cell.name)
            status = report["status"]
            if self.how.retry == "disturbed" and disturbed(report):
                continue
            done = (Status.OK.value, Status.INCOMPATIBLE.value)
            if status == Status.INTERRUPTED.value or (
                status not in done and self.how.retry == "failed"
            ):
                continue
            kept.add(cell.name)
            before = self.folder.beside(cell.name)["made_with"]
            if before and cell.run is not None:
                for text in differences(before, self._made_with(cell, before)):
                    changed[text] = None
        if changed and not self.how.accept_changes:
            raise UsageError(
                f"{len(kept)} cells of {self.folder.path} were measured before something changed: "
                f"{'; '.join(changed)}\n"
                "  instead: sweep.accept_changes=true keeps them, sweep.retry=all measures them again, "
                "another sweep.name leaves them alone"
            )
        return frozenset(kept)

    def _made_with(self, cell: PlannedCell, before: Mapping[str, str]) -> dict[str, str]:
        """What the cell would be measured with now; asked once for each.

        before: what it was measured with. On a cluster the machine is taken from there: this one says nothing of it.
        """
        if cell.name not in self.now:
            assert cell.run is not None
            found = made_with(cell.run, this_machine().device(cell.run.device), self.weights_of)
            if self.launch.name not in HERE:
                found = {name: word for name, word in found.items() if name not in MACHINE}
                found |= {name: word for name, word in before.items() if name in MACHINE}
            self.now[cell.name] = found
        return self.now[cell.name]

    def _job(self, kept: frozenset[str]) -> Job:
        same: dict[str, Any] = {}  # what runs have in common is one object, and travels once
        tasks = []
        for cell in self.cells:
            if cell.run is not None and cell.to_run and cell.name not in kept:
                data = {k: same.setdefault(repr(v), v) for k, v in cell.run.to_dict().items()}
                del data["recipe"]  # its overrides are spelled out
                tasks.append(Task(cell.name, cell.typed.spelled_out, data))
        gigabytes = self.how.memory_limit_gb
        memory = None if gigabytes is None else round(gigabytes * _GIGABYTE)
        limits = Limits(self.how.timeout_s, memory)
        return Job(str(self.folder.path), self.attempt, limits, tuple(tasks))

    # While it runs ---------------------------------------------------------------------------------

    def _run(self, job: Job, board: Board) -> tuple[str, str | None]:
        """The state in the end, and why the sweep could not go on."""
        with self._watched(board):
            try:
                self.launch.told("on_multirun_start")
                return self._launched(job)
            except KeyboardInterrupt:
                return "interrupted", None
            except DiskFull as error:
                return "stopped", str(error)
            finally:
                self.launch.end()
                self.launch.told("on_multirun_end")

    def _launched(self, job: Job) -> tuple[str, str | None]:
        """Hand the tasks to the launcher until all are finished, or it gets no further."""
        while job.tasks:
            said = self._handed_over(job)
            left = self._left(job)
            begun = [task for task in left if self.folder.marked(task.name)]
            for task in begun:  # one of them took its process along, and the others were beside it
                said = self._alone(replace(job, tasks=(task,))) or said
            still = self._left(job)
            if len(still) == len(job.tasks):
                cells = "1 cell" if len(still) == 1 else f"{len(still)} cells"
                return "stopped", (
                    f"the launcher '{self.launch.name}' could not run {cells}: "
                    f"{said or 'it ended without a word'}\n"
                    "  instead: hydra/launcher=basic, or mend it and type the same line again"
                )
            job = replace(job, tasks=still)
        return "complete", None

    def _alone(self, job: Job) -> str | None:
        """Hand over one task until it is finished; once its starts are used up, its job finishes it as crashed."""
        said = None
        for _ in range(MOST_STARTS):
            if self._left(job):
                said = self._handed_over(job)
        return said

    def _handed_over(self, job: Job) -> str | None:
        """Why the launcher, or a job, could not go on; None if nothing was said. Raises DiskFull."""
        self.turn += 1
        self.folder.open_attempt(self.attempt, self.turn)
        said = None
        try:
            for returned in self.launch.run(replace(job, turn=self.turn)):
                said = self._take(returned) or said
        except DiskFull:
            raise
        except Exception as error:  # the launcher's own: a worker that died under joblib
            if says_disk_full(error):
                raise no_room(self.folder.path) from error
            self.launch.end()
            said = f"{type(error).__name__}: {error}"
        return said.strip().splitlines()[0] if said else None

    def _left(self, job: Job) -> tuple[Task, ...]:
        return tuple(t for t in job.tasks if not self.folder.finished(t.name, self.attempt))

    def _take(self, returned: Any) -> str | None:
        """What a job returned: files of another machine, that the disk is full, or what went wrong with it."""
        if isinstance(returned, BaseException):
            raise returned
        if "disk_full" in returned:
            raise DiskFull(returned["disk_full"])
        files: dict[str, bytes] = returned.get("files", {})
        if files:
            self.folder.take(returned["cell"], files)
        error: str | None = returned.get("error")
        return error

    @contextmanager
    def _watched(self, board: Board) -> Iterator[None]:
        """Look at the folder while the cells run; one thread, so that all launchers are shown alike."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(_LOOK_EVERY_S):
                self._look(board)

        thread = threading.Thread(target=look, name="sweep", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._look(board)

    def _look(self, board: Board) -> None:
        with contextlib.suppress(OSError):  # a full disk is the jobs' to tell
            if changed := self._read_rows():
                completed(self.rows.values())
            if changed or self.unwritten:
                self._write_if_cheap()
        waiting = [row["cell"] for row in self.rows.values() if row["status"] is None]
        marks = {name: mark for name in waiting if (mark := self.folder.marked(name))}
        if not self.blind:
            try:
                board.show(list(self.rows.values()), marks)
            except OSError:  # whoever read our output has seen enough; the sweep goes on
                self.blind = True

    def _write_if_cheap(self) -> None:
        """Write sweep.json, but spend no more than a hundredth of the time on it: cells are being timed meanwhile."""
        at, took = self.written_s
        self.unwritten = time.monotonic() - at < 100 * took
        if not self.unwritten:
            self._write("running")

    # Rows ------------------------------------------------------------------------------------------

    def _read_rows(self) -> bool:
        """Read what has been finished since the last time; returns whether anything was."""
        changed = not self.rows
        for place, cell in enumerate(self.cells, 1):
            if place not in self.rows:
                self.rows[place] = blank_row(cell, place)
            row = self.rows[place]
            attempt = self.attempt if cell.name in self.again else None
            if row["report"] is None and cell.to_run and self.folder.finished(cell.name, attempt):
                now = self.now.get(cell.name, {})
                self.rows[place] = measured_row(row, self.folder, now)
                changed = True
        return changed

    def _write(self, state: str, error: str | None = None) -> dict[str, Any]:
        began = time.monotonic()
        data = self.to_dict(state, error)
        with contextlib.suppress(OSError) if error else contextlib.nullcontext():
            write_json(self.folder.data_file, data)
        self.written_s = (time.monotonic(), time.monotonic() - began)
        return data

    def to_dict(self, state: str, error: str | None = None) -> dict[str, Any]:
        """The whole sweep as `sweep.json` has it; state: running, complete, interrupted or stopped."""
        rows = list(self.rows.values())
        if state in ("interrupted", "stopped"):
            for row in rows:
                if row["status"] is None and row["same_as"] is None:
                    why = "the sweep was interrupted" if error is None else "the sweep stopped"
                    row |= {"status": Status.INTERRUPTED.value, "reason": f"not run: {why}"}
        baseline = completed(rows)
        run = next((cell.run for cell in self.cells if cell.run is not None), None)
        return {
            "schema": 1,
            "name": self.folder.path.name,
            "grid": self.grid,
            "state": state,
            "error": error,
            "model": model_of(run).title if run else None,
            "overrides": self.words,
            "varied": list(self.varied),
            "launcher": self.launch.name,
            "command": command_of([*self.words, *flags_in_use()]),
            "config_dirs": [str(folder) for folder in config_dirs()],
            "config_name": config_name(),
            "baseline": baseline,
            "environment": self._environment(rows),
            "made_with": self._first_made_with(rows),
            "started_at": self.started_at,
            "finished_at": None
            if state == "running"
            else datetime.now(UTC).isoformat(timespec="seconds"),
            "counts": counts(rows),
            "rows": rows,
        }

    def _first_made_with(self, rows: Sequence[dict[str, Any]]) -> Any:
        """What the first finished cell was measured with."""
        first = next((row for row in rows if row["report"] and row["same_as"] is None), None)
        return self.folder.beside(first["cell"])["made_with"] if first else None

    def _environment(self, rows: Sequence[dict[str, Any]]) -> Any:
        """What the first measured row's report says of the machine."""
        first = next((row for row in rows if row["latency_s"] is not None), None)
        return read_json(self.folder.path / first["report"])["environment"] if first else None


def plan_sweep(words: Sequence[str]) -> Sweep:
    """A sweep of what was typed after `-m`; nothing is written. Raises UsageError for what can't be read in any cell."""
    how, overrides = read_how(words)
    own = hydras_own(overrides)
    elsewhere = runs_elsewhere(own)
    grid = read_grid([word for word in overrides if word not in own])
    if all(cell.run is None for cell in grid.cells):
        raise_all(list(dict.fromkeys(reason for cell in grid.cells for reason in cell.reasons)))
    cells = planned_cells(grid, elsewhere)
    folder = Folder(_folder(how, cells))
    check_folder(folder.path, "sweep.dir")
    on_gpu = elsewhere and any(cell.wants_gpu for cell in cells)
    launch = prepare(own, folder.path, on_gpu)
    sweep = Sweep(list(words), how, cells, grid.varied, folder, launch)
    if elsewhere and not on_gpu:
        sweep.notices = _left_open(cells, own)
    return sweep


def _left_open(cells: Sequence[PlannedCell], own: Sequence[str]) -> tuple[str, ...]:
    """That a cluster's jobs get no GPU because this machine has none, unless Hydra's own overrides ask for one."""
    auto = any(cell.to_run and cell.run and cell.run.device == "auto" for cell in cells)
    if not auto or this_machine().has_cuda or any("gpu" in word or "gres" in word for word in own):
        return ()
    return (
        "device=auto asks the cluster for no GPU, because this machine has none: jobs may measure processors\n"
        "  instead: device=cuda asks for one a job",
    )


def _folder(how: How, cells: Sequence[PlannedCell]) -> Path:
    """Where the sweep is kept: the same grid finds it again."""
    if how.dir is not None:
        return Path(os.path.expanduser(how.dir)).absolute()
    return (SWEEPS / (how.name or grid_identity(cells)[:8])).absolute()


def resumed(folder: Path, words: Sequence[str]) -> list[str]:
    """What to type after `-m` to go on with the sweep in a folder. words: more `sweep.key=value`. Raises UsageError.

    A team's folders of options are those that it was begun with, unless others are named now.
    """
    data = read_sweep(folder)
    others = [word for word in words if not word.startswith("sweep.")]
    placed = [word for word in words if word.startswith(("sweep.name=", "sweep.dir="))]
    if others or placed:
        raise UsageError(
            f"resume takes a sweep's folder and sweep.key=value, not '{(others or placed)[0]}'\n"
            "  instead: python -m fastdiff resume DIR sweep.retry=all"
        )
    given = {word.partition("=")[0] for word in words}
    given |= {
        f"sweep.{key}" for key in ("name", "dir", "retry", "accept_changes")
    }  # of one call alone
    kept = [word for word in data["overrides"] if word.partition("=")[0] not in given]
    return [*kept, *words, f"sweep.dir={folder}", *_config_dirs_of(data, folder)]


def _config_dirs_of(data: Mapping[str, Any], folder: Path) -> list[str]:
    """The words that name the team's folders which a sweep was begun with. Raises UsageError if one is gone."""
    if config_dirs():
        return []
    begun_with = data.get("config_dirs", [])
    for gone in (each for each in begun_with if not Path(each).is_dir()):
        raise UsageError(
            f"{folder} was begun with --config-dir {gone}, and there is no such folder any more\n"
            f"  instead: python -m fastdiff resume {folder} --config-dir DIR, where its options are now"
        )
    return as_flags(begun_with, data.get("config_name", OWN_NAME))


def read_sweep(folder: Path) -> dict[str, Any]:
    """A sweep's data. Raises UsageError if there is none."""
    found = Folder(folder.absolute()).read() if folder.is_dir() else None
    if found is None:
        raise UsageError(
            f"{folder} is no sweep's folder: there is no sweep.json in it\n"
            "  instead: python -m fastdiff -m slot=option,option makes one in outputs/sweeps/"
        )
    return found


def looked_again(folder: Path) -> dict[str, Any]:
    """A sweep's data with the rows as its cells' reports have them. Raises UsageError if there is none.

    What is found goes into sweep.json too, unless the sweep is going on.
    """
    data, home = read_sweep(folder), Folder(folder.absolute())
    for place, row in enumerate(data["rows"]):
        if row["same_as"] is not None:
            continue
        if home.finished(row["cell"]):
            data["rows"][place] = measured_row(row, home, {})
        elif row["report"] is not None:
            data["rows"][place] = unmeasured_row(row)
    data["baseline"], data["counts"] = completed(data["rows"]), counts(data["rows"])
    with contextlib.suppress(SweepBusy), home.locked():
        if data["state"] == "running":  # and nobody runs it
            data["state"] = "interrupted"
        write_json(home.data_file, data)
    return data


def exit_code(data: Mapping[str, Any]) -> int:
    """0 if every row is measured or can't be; 130 after Ctrl-C."""
    if data["state"] == "interrupted":
        return 130
    good = (Status.OK.value, Status.INCOMPATIBLE.value)
    return 0 if all(row["status"] in good for row in data["rows"]) else 1


def command_of(words: Sequence[str]) -> str:
    """The line that was typed, ready for a shell."""
    return " ".join(["python -m fastdiff -m", *(shlex.quote(word) for word in words)])


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits until the table and the pages are whole."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
