"""Ten minutes that prove a GPU: goes through `gpu_steps.py` and writes each result at once; `gpu.sh` prepares and starts it.

A step's result is `OUT/steps/NN-name.json`, and all of them are `OUT/gpu.json`. A step is begun again only if it has no result, or was
cut off by the limit of the whole; so the same line again goes on. Neither holds a path, a host's or a user's name.
"""

from __future__ import annotations

import argparse
import getpass
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import Any

from gpu_steps import ROOT, Bench, Ended, Step, Verdict, steps
from measuring import uncommitted_changes

from fastdiff.errors import nearest
from fastdiff.machine.files import read_json, write_json
from fastdiff.machine.software import git_commit

GOOD, OTHERWISE, TIMEOUT, CUT, LEFT_OUT = "as expected", "otherwise", "timeout", "cut", "left out"
"""How a step ended. `cut`: by the limit of the whole, so it is still to be run. `left out`: the card's memory is too small."""
UNFINISHED = 75
_GRACE_S = 10.0
_TAIL = 60


# Texts that may be shared --------------------------------------------------------------------------

_PATH = re.compile(r"(?<![\w:/.])/(?:[^\s/'\":,;()<>]+/)+([^\s/'\":,;()<>]*)")


def shareable(value: Any) -> Any:
    """Plain data without absolute paths but for their last part, and without the host's and the user's name."""
    if isinstance(value, str):
        return _without_names(_PATH.sub(lambda path: f".../{path[1]}", value))
    if isinstance(value, Mapping):
        return {name: shareable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [shareable(each) for each in value]
    return value


def _without_names(text: str) -> str:
    for word, name in _names().items():
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", word, text)
    return text


def _names() -> dict[str, str]:
    found = {"HOST": socket.gethostname()}
    with suppress(KeyError, OSError):  # a user id that no name belongs to
        found["USER"] = getpass.getuser()
    return {word: name for word, name in found.items() if name not in ("", "root", "localhost")}


def as_typed(command: Sequence[str]) -> str:
    words = ["python" if word == sys.executable else word for word in command]
    return shlex.join(word.replace(f"{ROOT}{os.sep}", "") for word in words)


# Commands ------------------------------------------------------------------------------------------


@dataclass
class Commands:
    """Processes that are alive, each with all that it started, so that none outlives this one."""

    alive: set[subprocess.Popen[bytes]] = field(default_factory=set)

    def run(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str], limit_s: float
    ) -> int | None:
        """Its exit code; None if it was stopped at the limit. What it prints goes to the end of the log."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=log.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.alive.add(process)
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.stop(process)
            return None
        finally:
            self.alive.discard(process)

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """First as Ctrl-C does, so that a run ends its own processes; then whatever is left."""
        for signal_, patience in ((signal.SIGINT, _GRACE_S), (signal.SIGKILL, 5.0)):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal_)
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)

    def stop_all(self) -> None:
        for process in list(self.alive):
            self.stop(process)


class CardMemory:
    """By how much a card's memory rises while something runs alone on it, as its driver counts; two looks a second."""

    def __init__(self, watched: bool) -> None:
        self._program = shutil.which("nvidia-smi") if watched else None
        self._over = threading.Event()
        self._seen: list[int] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> CardMemory:
        if self._program:
            self._look()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def rise_bytes(self) -> int | None:
        return max(self._seen) - self._seen[0] if self._seen else None

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self._look()

    def _look(self) -> None:
        asked = ["--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
        done = subprocess.run([str(self._program), *asked], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip().isdigit():
            self._seen.append(int(done.stdout) * 2**20)


# Steps ---------------------------------------------------------------------------------------------


@dataclass
class Proof:
    """One call: what is tried, where, until when.

    records: results by step, those of earlier calls among them. before: what the toolchain step found when they were made.
    """

    bench: Bench
    chosen: list[Step]
    numbers: Mapping[str, int]
    ends_at: float
    side_by_side: int
    commit: str | None
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    before: Mapping[str, Any] = field(default_factory=dict)
    commands: Commands = field(default_factory=Commands)
    interrupted: bool = False

    def go(self) -> None:
        """Try what has no result: the toolchain first, since the others' expectations follow from it."""
        for alone, wave in groupby(self.missing(), key=self._alone):
            with ThreadPoolExecutor(1 if alone else self.side_by_side) as pool:
                try:
                    list(pool.map(self._try, wave))
                except KeyboardInterrupt:
                    self.interrupted = True
                    self.commands.stop_all()  # else the pool waits for them
                    raise

    def _alone(self, step: Step) -> bool:
        return step.first or (step.alone and not self.bench.tiny)

    @property
    def ready(self) -> bool:
        return bool(self.bench.facts)

    def missing(self) -> list[Step]:
        return [step for step in self.chosen if not _is_over(self.records.get(step.name))]

    def _try(self, step: Step) -> None:
        left = self.ends_at - time.monotonic()
        if self.interrupted or left < 5 or not (self.ready or step.name == "toolchain"):
            return
        began = datetime.now(UTC).isoformat(timespec="seconds")
        started = time.perf_counter()
        memory = self.bench.facts.get("memory_bytes")
        if memory and step.memory_gb * 1e9 > memory:
            why = f"the card has less than {step.memory_gb:g} GB"
            found: dict[str, Any] = {
                "status": LEFT_OUT,
                "expected": {},
                "found": {},
                "wrong": [why],
            }
        else:
            found = self._found(step, left)
        if self.interrupted:  # it was stopped, which says nothing of it
            return
        seconds = round(time.perf_counter() - started, 2)
        if step.name == "toolchain" and (other := self._other_machine(found["found"])):
            found = found | {"status": OTHERWISE, "wrong": [other]}
        record = {"step": step.name, "began_at": began, "seconds": seconds, "commit": self.commit}
        self._keep(record | {"device": self.bench.device, "tiny": self.bench.tiny} | found)
        if step.name == "toolchain" and found["status"] == GOOD:
            self.bench = replace(self.bench, facts=found["found"])

    def _other_machine(self, now: Mapping[str, Any]) -> str | None:
        """Why the results of earlier calls can't stand beside this one's."""
        for name in ("torch_sees", "torch", "torch_cuda"):
            if self.before and now and self.before[name] != now.get(name):
                return (
                    f"the results that are there were made with {name} {self.before[name]}, here it is "
                    f"{now.get(name)}; instead: OUT=DIR, another folder"
                )
        return None

    def _found(self, step: Step, left: float) -> dict[str, Any]:
        """A step's status, its commands, and the verdict on them."""
        folder = self.bench.folder(step.name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        log = self.bench.scratch / "logs" / f"{step.name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        limit_s = min(step.limit_s, left)
        commands = step.commands(self.bench)
        with CardMemory(step.alone and self.bench.device == "cuda") as memory:
            codes, output = self._run(commands, log, _environment(self.bench, step), limit_s)
        whole = {"commands": [shareable(as_typed(command)) for command in commands]}
        tail = log.read_text(errors="replace").splitlines()[-_TAIL:]
        if codes[-1] is None:
            status = CUT if left < step.limit_s else TIMEOUT
            wrong = [f"stopped after {limit_s:.0f} s"]
            ended = {"expected": {"at_most_s": step.limit_s}, "found": {}, "wrong": wrong}
            return {"status": status, **whole, **ended, "log_tail": shareable(tail)}
        try:
            done = Ended(tuple(code or 0 for code in codes), output, memory.rise_bytes)
            verdict = step.judge(self.bench, done)
        except Exception as error:  # a report that isn't as it should be is a result as well
            verdict = Verdict({}, {}, [f"can't be judged: {type(error).__name__}: {error}"])
        said = {"expected": verdict.expected, "found": verdict.found, "wrong": verdict.wrong}
        status = CUT if verdict.unfinished else OTHERWISE if verdict.wrong else GOOD
        found = {"status": status, **whole, **shareable(said)}
        return found | ({"log_tail": shareable(tail)} if verdict.wrong else {})

    def _run(
        self,
        commands: Sequence[Sequence[str]],
        log: Path,
        environment: Mapping[str, str],
        limit_s: float,
    ) -> tuple[list[int | None], str]:
        """Exit codes up to the first that isn't 0, and what the last command printed."""
        ends_at = time.monotonic() + limit_s
        codes: list[int | None] = []
        begins = 0
        for command in commands:
            begins = log.stat().st_size
            codes.append(self.commands.run(command, log, environment, ends_at - time.monotonic()))
            if codes[-1] != 0:
                break
        return codes, log.read_bytes()[begins:].decode(errors="replace")

    def _keep(self, record: dict[str, Any]) -> None:
        name = record["step"]
        self.records[name] = record
        write_json(self.bench.out / "steps" / f"{self.numbers[name]:02d}-{name}.json", record)
        print(_line(record), flush=True)


def _is_over(record: Mapping[str, Any] | None) -> bool:
    return record is not None and record["status"] != CUT


def _environment(bench: Bench, step: Step) -> dict[str, str]:
    """Of a step's commands: nothing is downloaded, and what may be kept lies in the scratch folder."""
    kept = {
        "FASTDIFF_CACHE_DIR": bench.scratch / "cache",
        "FASTDIFF_RANDOM_WEIGHTS_DIR": bench.scratch / "weights",
        "TORCHINDUCTOR_CACHE_DIR": bench.scratch / "inductor",
        "TRITON_CACHE_DIR": bench.scratch / "triton",
        "HF_HOME": bench.scratch / "hub",
    }
    for folder in kept.values():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = {name: str(folder) for name, folder in kept.items()}
    quiet = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "100"}
    return {**os.environ, **own, **quiet, **step.environment}


# Results -------------------------------------------------------------------------------------------


def read_records(out: Path, earlier: Path | None) -> dict[str, dict[str, Any]]:
    """Results by step: of an earlier call's gpu.json, and over them those in the folder."""
    found = list(read_json(earlier)["steps"]) if earlier else []
    found += [read_json(path) for path in sorted((out / "steps").glob("*.json"))]
    return {record["step"]: record for record in found}


def whole(proof: Proof) -> dict[str, Any]:
    """All results as one: the card, the software, and each step in its order."""
    facts = proof.bench.facts
    card = (facts.get("cards") or [{}])[0]
    in_order = sorted(proof.records.values(), key=lambda record: proof.numbers[record["step"]])
    return {
        "schema": 1,
        "device": proof.bench.device,
        "tiny": proof.bench.tiny,
        "card": card.get("name") or facts.get("torch_sees"),
        "driver": card.get("driver_version"),
        "capability": facts.get("capability"),
        "memory_bytes": facts.get("memory_bytes"),
        "torch": facts.get("torch"),
        "torch_cuda": facts.get("torch_cuda"),
        "commits": sorted({record["commit"] or "unknown" for record in in_order}),
        "uncommitted_changes": uncommitted_changes(),
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "missing": [step.name for step in proof.missing()],
        "steps": in_order,
    }


def exit_code(proof: Proof) -> int:
    """0 only if nothing is missing and everything is as expected."""
    chosen = {step.name for step in proof.chosen}
    statuses = {r["status"] for name, r in proof.records.items() if name in chosen}
    if statuses & {OTHERWISE, TIMEOUT}:
        return 1
    return UNFINISHED if proof.missing() else 0


def summary(found: Mapping[str, Any]) -> str:
    """The table at the end, and what isn't as expected once more."""
    device = found["card"] or found["device"]
    lines = [
        f"{device}, driver {found['driver']}, torch {found['torch']}, commit {', '.join(found['commits'])}"
    ]
    lines += [_line(record) for record in found["steps"]]
    counts = {
        status: sum(record["status"] == status for record in found["steps"])
        for status in (GOOD, OTHERWISE, TIMEOUT, CUT, LEFT_OUT)
    }
    said = [f"{count} {status}" for status, count in counts.items() if count]
    lines.append(", ".join([*said, f"{len(found['missing'])} still to be run"]))
    return "\n".join(lines)


def _line(record: Mapping[str, Any]) -> str:
    words = "; ".join(record["wrong"]) or _in_words(record)
    return f"  {record['step']:<24} {record['status']:<12} {record['seconds']:6.1f} s  {words}"[
        :220
    ]


def _in_words(record: Mapping[str, Any]) -> str:
    """The figures of a step that a reader looks for first."""
    found, published = record["found"], record["expected"].get("published")
    said = [str(found["outcome"])] if found.get("outcome") else []
    if found.get("latency_s"):
        said.append(f"{found['latency_s']:.3g} s a picture")
    if published:
        said.append(
            f"published {published['latency_s']} s, {published['speedup']} times, {published['hardware']}"
        )
    if found.get("verdict"):
        said.append(str(found["verdict"]))
    return ", ".join(said)


# The command ---------------------------------------------------------------------------------------


def _asked(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help="small sizes on a CPU")
    parser.add_argument("--seconds", type=float, default=540, help="of the whole call (540)")
    parser.add_argument("--side-by-side", type=int, help="steps without figures at a time")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="STEP", help="names; * is any text"
    )
    parser.add_argument("--again", nargs="+", default=[], metavar="STEP", help="these once more")
    parser.add_argument(
        "--resume", type=Path, metavar="FILE", help="the gpu.json of an earlier call"
    )
    parser.add_argument("--summary", action="store_true", help="the table alone; nothing is run")
    parser.add_argument("--list", action="store_true", help="the names of all steps")
    parser.add_argument("--commit", help="of this checkout, where git can't tell")
    parser.add_argument(
        "--keep", action="store_true", help="copy gpu.json to benchmarks/results/cuda/"
    )
    return parser.parse_args(words)


def _matching(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = nearest(pattern, names)
            hint = f"did you mean: {near}" if near else "benchmarks/gpu.sh --list names them"
            print(f"gpu.sh: there is no step '{pattern}'\n  {hint}", file=sys.stderr)
            sys.exit(2)
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}


def prepared(asked: argparse.Namespace) -> Proof:
    """What this call is to try, with the results that are there already."""
    every = steps()
    names = [step.name for step in every]
    only, again = _matching(names, asked.only), _matching(names, asked.again)
    chosen = [
        step
        for step in every
        if step.name in {"toolchain", *only, *again} or not (only or step.asked)
    ]
    records = read_records(asked.out, asked.resume)
    device = "cpu" if asked.tiny else "cuda"
    of_this_kind = {"device": device, "tiny": asked.tiny}
    records = {
        name: record
        for name, record in records.items()
        if name in names and name not in again and of_this_kind.items() <= record.items()
    }
    known = records.get("toolchain", {"status": None})
    before = known["found"] if known["status"] == GOOD else {}
    if not asked.summary:  # asked anew in each call: it may be another machine
        records.pop("toolchain", None)
    facts = before if asked.summary else {}
    bench = Bench(device, asked.tiny, asked.out.resolve(), asked.scratch.resolve(), facts)
    processors = len(os.sched_getaffinity(0))
    return Proof(
        bench,
        chosen,
        {name: number for number, name in enumerate(names, 1)},
        time.monotonic() + asked.seconds,
        asked.side_by_side or max(1, processors // 2 if not asked.tiny else processors),
        asked.commit or git_commit(),
        records,
        before,
    )


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(words: Sequence[str] | None = None) -> int:
    asked = _asked(words)
    if asked.list:
        print("\n".join(step.name for step in steps()))
        return 0
    proof = prepared(asked)
    signal.signal(signal.SIGTERM, _as_interrupt)
    if not asked.summary:
        with suppress(KeyboardInterrupt):
            proof.go()
    elif not proof.records:
        print(f"gpu.sh: {asked.out} holds no results yet", file=sys.stderr)
        return UNFINISHED
    found = whole(proof)
    write_json(asked.out / "gpu.json", found)
    print(f"\n{summary(found)}")
    if asked.keep and found["card"]:
        name = re.sub(r"[^a-z0-9]+", "-", found["card"].lower()).strip("-")
        results = ROOT / "benchmarks" / "results" / "cuda"
        write_json(results / f"{name}.json", found)
        for folder in sorted(asked.out.glob("ladder-*")):
            kept = results / folder.name.removeprefix("ladder-")
            subprocess.run([ROOT / "benchmarks" / "keep.sh", folder, kept], check=True)
    return 130 if proof.interrupted else exit_code(proof)


if __name__ == "__main__":
    sys.exit(main())
