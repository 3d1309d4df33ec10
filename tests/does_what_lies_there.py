"""A worker that does what lies in its folder: `program.py`, which may set `code`, its exit code.

python -m does_what_lies_there FOLDER
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fastdiff.measuring.child import end_with_parent

FOR_PROGRAMS = (atexit, os, signal, subprocess, sys, time, Path)
"""What programs use without importing it."""


def send(**event: Any) -> None:
    """Tell the parent."""
    print(json.dumps(event), flush=True)


def main() -> int:
    folder = Path(sys.argv[1])
    end_with_parent()
    given: dict[str, Any] = {**globals(), "folder": folder, "code": 0}
    exec((folder / "program.py").read_text(), given)
    return int(given["code"])


if __name__ == "__main__":
    sys.exit(main())
