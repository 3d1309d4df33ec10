"""One run in its own process: a run folder in, a report out.

python -m fastdiff.measuring.worker RUN_DIR
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from pathlib import Path

from fastdiff.measuring.measure import run
from fastdiff.measuring.protocol import (
    Events,
    Request,
    describe,
    end_at_once,
    end_with_parent,
    limit_memory,
    own_standard_output,
    quiet_and_safe,
)


def main() -> int:
    folder = Path(sys.argv[1])
    events = Events(own_standard_output())
    end_with_parent()
    limit_memory()
    quiet_and_safe()
    try:
        run(folder, Request.read(folder), events)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        events.send(error=describe(error))
        with contextlib.suppress(OSError):  # on a full disk the log can't be written either
            traceback.print_exc()
        return getattr(error, "exit_code", 1)
    return 0


if __name__ == "__main__":
    end_at_once(main())
