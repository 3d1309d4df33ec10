"""A sweep's folder: what is finished, what goes on, and who works in it.

sweep.json, sweep.csv, sweep.md, index.html     the rows, once as data and three times for people
cells/<name>/                                    a finished cell: report, pictures, log; whole, or not there
references/<id>/                                 the pictures that cells are compared with
.running/<name>.json                             a cell that was begun, and how far it is
.unfinished/<name>/                              where a cell works until it is finished
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastdiff.errors import FastdiffError, UsageError
from fastdiff.machine.files import read_json, write_json, write_text

SWEEPS = Path("outputs") / "sweeps"
_OLD = ".old"


def _is_whole(file: Path) -> bool:
    """Whether a file holds an object; read once as long as it doesn't change."""
    try:
        state = file.stat()
    except OSError:
        return False
    return _holds_an_object(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=20_000)
def _holds_an_object(file: Path, changed_ns: int, size: int) -> bool:
    try:
        return isinstance(read_json(file), dict)
    except (OSError, ValueError):
        return False


class SweepBusy(FastdiffError):
    """Another process works on the same sweep."""


@dataclass(frozen=True)
class Folder:
    """A sweep's folder, absolute."""

    path: Path

    @property
    def data_file(self) -> Path:
        return self.path / "sweep.json"

    def read(self) -> dict[str, Any] | None:
        """What `sweep.json` says; None where there is none. Raises UsageError for one that is broken."""
        if not self.data_file.is_file():
            return None
        try:
            found: dict[str, Any] = read_json(self.data_file)
            if not {"rows", "overrides", "command", "grid"} <= found.keys():
                raise ValueError
        except (ValueError, AttributeError) as error:
            raise UsageError(
                f"{self.data_file} is not what a sweep writes, or only a part of it\n"
                "  instead: remove that file and type the sweep's line again; finished cells stay"
            ) from error
        return found

    @property
    def imports_log(self) -> Path:
        """What libraries print where they are imported once for many cells."""
        return self.path / ".imports.log"

    @property
    def weights(self) -> Path:
        """Random weights that one cell has drawn, for the others; they go with the sweep's end."""
        return self.path / ".weights"

    def cell(self, name: str) -> Path:
        return self.path / "cells" / name

    def finished(self, name: str, attempt: str | None = None) -> bool:
        """Whether a cell is finished and can be read; attempt: by this attempt."""
        if not all(_is_whole(self.cell(name) / file) for file in ("report.json", "cell.json")):
            return False
        return attempt is None or self.beside(name).get("attempt") == attempt

    def report(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.cell(name) / "report.json")
        return found

    def beside(self, name: str) -> dict[str, Any]:
        """What is known of a finished cell beside its report: `made_with`, `seconds`, `references`, `attempt`."""
        found: dict[str, Any] = read_json(self.cell(name) / "cell.json")
        return found

    # A cell on its way -----------------------------------------------------------------------------

    def begin(self, name: str) -> Path:
        """An empty folder for a cell to work in."""
        folder = self.path / ".unfinished" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def finish(self, name: str) -> None:
        """Put the cell's folder into its place, whole; what lay there from an earlier attempt goes after that."""
        target, old = self.cell(name), self.path / ".unfinished" / f"{name}{_OLD}"
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        (self.path / ".unfinished" / name).rename(target)
        shutil.rmtree(old, ignore_errors=True)

    def take(self, name: str, files: Mapping[str, bytes]) -> None:
        """Put a cell that another machine has finished into its place, and its reference's pictures.

        files: content by path in a folder like this one. Each place is whole or not there.
        """
        for place, content in files.items():
            target = self.path / place
            if Path(place).parts[0] == "cells":
                target = self.path / ".unfinished" / Path(*Path(place).parts[1:])
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = target.with_name(f".{target.name}.{os.getpid()}")
            unfinished.write_bytes(content)
            os.replace(unfinished, target)
        if f"cells/{name}/report.json" in files:
            self.finish(name)

    # References that can't be drawn ----------------------------------------------------------------

    def miss(self, attempt: str, reasons: Mapping[str, str]) -> None:
        """Remember for the other cells of this attempt why references could not be drawn."""
        for identity, reason in reasons.items():
            place = self.path / ".missing" / attempt / f"{identity}.json"
            if not place.exists():
                write_json(place, reason)

    def missing(self, attempt: str) -> dict[str, str]:
        """Why references could not be drawn in this attempt, by the id of the run that draws them."""
        files = (self.path / ".missing" / attempt).glob("*.json")
        return {file.stem: read_json(file) for file in files if not file.name.startswith(".")}

    # Marks -----------------------------------------------------------------------------------------

    def mark(self, name: str, said: dict[str, Any]) -> None:
        write_json(self._marks / f"{name}.json", said)

    def marked(self, name: str) -> dict[str, Any] | None:
        """What was marked of a cell that goes on; None if it doesn't."""
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = read_json(self._marks / f"{name}.json")
            return found
        return None

    def unmark(self, name: str) -> None:
        (self._marks / f"{name}.json").unlink(missing_ok=True)

    @property
    def _marks(self) -> Path:
        return self.path / ".running"

    # The whole -------------------------------------------------------------------------------------

    def clean(self) -> None:
        """Remove what a sweep that was killed left behind; an earlier result whose place is empty goes back there."""
        for old in (self.path / ".unfinished").glob(f"*{_OLD}"):
            target = self.cell(old.name.removesuffix(_OLD))
            if not target.exists():
                old.rename(target)
        for name in (".running", ".unfinished", ".weights", ".missing"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in (".attempt", ".imports.log"):
            (self.path / name).unlink(missing_ok=True)

    def open_attempt(self, attempt: str, turn: int = 0) -> None:
        """Leave a word by which jobs see whether they share this folder, and whether anybody waits for them.

        turn: counts how often the attempt has handed cells to its launcher. Jobs of an earlier turn are over.
        """
        write_text(self.path / ".attempt", f"{attempt} {turn}")

    def close_attempt(self, attempt: str) -> None:
        """Tell jobs that a launcher begins later, or still runs on other machines, that the attempt is over."""
        with contextlib.suppress(OSError):
            write_text(self.path / ".attempt", f"{attempt} over")

    def is_shared(self, attempt: str) -> bool:
        """Whether this is the folder that the attempt began in, and not one of the same name on another machine."""
        return (self._attempt() or "").partition(" ")[0] == attempt

    def is_over(self, attempt: str, turn: int) -> bool:
        """Whether nobody waits any more for what was handed over in this turn; for jobs that share the folder."""
        found = self._attempt()
        return found is not None and found != f"{attempt} {turn}"

    def _attempt(self) -> str | None:
        """Attempt and turn; empty without them, None where the folder can't be read at this moment."""
        try:
            return (self.path / ".attempt").read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except OSError:
            return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process alone. Raises SweepBusy. The lock goes with the process, however it ends."""
        import fcntl

        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise SweepBusy(
                    f"process {file.read().strip() or 'unknown'} is working on {self.path}\n"
                    "  instead: wait for it, or give this sweep another sweep.name"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
