"""One run in its own process: a run folder in, a report out.

python -m fastdiff.measuring.worker RUN_DIR
"""

from __future__ import annotations

from fastdiff.measuring.child import carry_out, end_at_once
from fastdiff.measuring.measure import run


def main() -> int:
    return carry_out(run)


if __name__ == "__main__":
    end_at_once(main())
