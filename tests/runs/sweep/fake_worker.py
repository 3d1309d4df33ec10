"""Stands in for fastdiff.measuring.worker: writes a report at once, or ends in the way that the run's seed names.

python fake_worker.py RUN_DIR
"""

import base64
import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from fastdiff.machine.files import write_json
from fastdiff.measuring.child import end_with_parent, limit_memory, own_standard_output
from fastdiff.measuring.protocol import Events, Request, describe

RAISES, EXITS_7, HANGS, KILLED, NO_MEMORY, NAN, DISK_FULL, NO_REFERENCE = range(101, 109)
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYPgPAAEDAQAIicLsAAAAAElFTkSuQmCC"
)


def report_of(request: Request) -> dict[str, Any]:
    """A report as a run that took 0.1 s, and 0.01 s more for each of its seed's digits' sum, would write it."""
    from fastdiff.choices.compose import restore
    from fastdiff.latency import Latency
    from fastdiff.measuring.report import blank_report

    report = blank_report(
        restore(request.config), None, request.overrides, "2026-01-01T00:00:00+00:00"
    ).to_dict()
    seconds = 0.1 + 0.01 * sum(map(int, str(request.config["generation"]["seed"])))
    report["latency_s"] = Latency(
        tuple(seconds * f for f in (1.0, 1.01, 0.99, 1.0, 1.02))
    ).to_dict()
    report["status"] = "ok"
    report |= {"images": [{"path": "image-0.png", "sha256": "0"}], "load_s": 0.1}
    report["finished_at"] = "2026-01-01T00:00:01+00:00"
    if request.reference.run_id:
        report["quality"]["reference_run_id"] = request.reference.run_id
    else:
        report["quality"]["reason"] = request.reference.reason or "quality=none"
    return report


def behave(seed: int, events: Events) -> None:
    """End as the seed says, or return."""
    if seed == RAISES:
        raise RuntimeError("this cell was meant to fail")
    if seed == EXITS_7:
        os._exit(7)
    if seed == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == NO_MEMORY:
        kept = [bytearray(100_000_000) for _ in range(100)]
        raise AssertionError(f"{len(kept)} pieces of memory and no end")
    if seed == NAN:
        from fastdiff.errors import InvalidOutputError

        raise InvalidOutputError("the picture is not a number")
    if seed == DISK_FULL:
        raise OSError(errno.ENOSPC, "No space left on device")
    if seed == HANGS:
        events.say("hanging")
        time.sleep(600)


def main() -> int:
    folder = Path(sys.argv[1])
    events = Events(own_standard_output())
    end_with_parent()
    limit_memory()
    request = Request.read(folder)
    try:
        print("a library says something", flush=True)
        behave(request.config["generation"]["seed"], events)
        (folder / "image-0.png").write_bytes(PICTURE)
        if request.only_pictures:
            if request.config["generation"]["seed"] == NO_REFERENCE:
                os._exit(3)
            return 0
        write_json(folder / "report.json", report_of(request))
    except Exception as error:
        print(f"Traceback: {error}", flush=True)
        events.send(error=describe(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
