"""The command line: a verb, a run, a sweep, or one of Hydra's own answers.

A refusal answers before torch is imported and leaves no folder behind.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from fastdiff.choices.folders import named_in
from fastdiff.choices.verbs import RUNS, SWEEPS, VERBS
from fastdiff.commands.hydra import is_asked, refuse
from fastdiff.display.layout import in_columns
from fastdiff.errors import FastdiffError, PlanError, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with named_in(words) as others:
            return _dispatch(others)
    except FastdiffError as error:
        _complain(str(error), error)
        return error.exit_code
    except KeyboardInterrupt as error:
        _complain("interrupted", error)
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _complain(
            f"no room on the disk: {error}\n  instead: make room and type the same line again",
            error,
        )
        return 1


def _complain(text: str, error: BaseException) -> None:
    """The message; with HYDRA_FULL_ERROR=1 the traceback too."""
    said = f"fastdiff: {text}"
    own = isinstance(error, PlanError)  # which lays out its lines itself
    print(said if own else in_columns(said), file=sys.stderr)
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)


def _dispatch(words: list[str]) -> int:
    if any(word in ("-h", "--help", "help") for word in words):
        from fastdiff.display.help import help_text

        print(help_text())
        return 0
    if "--version" in words:
        from fastdiff.machine.environment import FASTDIFF_VERSION

        print(f"fastdiff {FASTDIFF_VERSION}")
        return 0
    if words and words[0] in VERBS:
        return _carried_out(words[0], words[1:])
    if is_asked(words):
        return _carried_out("hydra", words)
    refuse(words)
    flags = [word for word in words if word.startswith("-") and word not in RUNS]
    overrides = [word for word in words if not word.startswith("-")]
    unknown = [flag for flag in flags if flag not in SWEEPS]
    if unknown:
        raise UsageError(
            f"there is no option {unknown[0]}\n  there are: -m (every combination), --config-dir DIR, --help, --version"
        )
    return _carried_out("sweep" if flags else "run", overrides)


def _carried_out(verb: str, words: list[str]) -> int:
    """A verb's exit code; its module is imported only now."""
    code: int = import_module(f"fastdiff.commands.{verb.replace('-', '_')}").run(words)
    return code


def console() -> None:
    """The console script. A scheduler's SIGTERM ends a run as Ctrl-C does: with a report that says so."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())


if __name__ == "__main__":
    console()
