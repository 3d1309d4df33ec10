"""What can go wrong, and what the command line answers with.

    FastdiffError            exit code 1
    ├── UsageError           exit code 2: what was typed can't be read (a misspelling, a wrong type, a bad value)
    │   └── RecipeError      a recipe can't be read, or says what a recipe can't; holds every RecipeProblem
    ├── ModelError           exit code 2: the model asked for isn't there or isn't a pipeline
    ├── PlanError            exit code 2: the choices can't work together or not on this machine; holds every Problem
    └── RunError             exit code 1: the run began and failed
        ├── NoEffectError    a pass changed nothing
        └── InvalidOutputError   the picture is black, constant or not a number

Every message says what is wrong, why, and the way out.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class Problem:
    """One reason why a run can't start.

    choice: what was chosen, as typed: `quant=fp8`.
    reason: why it can't work, a sentence without a full stop.
    instead: the way out, as typed (`quant=int8`) or in words.
    source: where the rule comes from, if it is written down somewhere.
    """

    choice: str
    reason: str
    instead: str
    source: str | None = None


class MachineProblem(Problem):
    """A Problem with this machine: another one wouldn't have it."""


class NoGpuProblem(MachineProblem):
    """A Problem that a machine with an NVIDIA GPU wouldn't have."""


class FastdiffError(Exception):
    """Base of every error that fastdiff raises on purpose."""

    exit_code = 1


class UsageError(FastdiffError):
    """What was asked for can't be read: a misspelled name, a wrong type, a value out of range.

    reasons: every one of them, where the message lays out several or tells the first.
    """

    exit_code = 2

    def __init__(self, message: str, reasons: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.reasons = tuple(reasons) or (message,)


@dataclass(frozen=True)
class RecipeProblem:
    """One reason why a file is no recipe.

    line: from 1; None where it is about the whole file. key: with dots, `choices.quant`; empty for the whole file.
    reason: a sentence without a full stop. instead: the way out.
    """

    line: int | None
    key: str
    reason: str
    instead: str

    def __str__(self) -> str:
        line = f"line {self.line}" if self.line else ""
        place = ", ".join(filter(None, (line, self.key)))
        said = f"{place}: {self.reason}" if place else f"it {self.reason}"
        leads = self.instead.startswith(("did you mean: ", "there are: ", "for example: "))
        return f"{said}\n  {self.instead if leads else f'instead: {self.instead}'}"


class RecipeError(UsageError):
    """A file can't be used as a recipe. `problems` holds every reason, in the order of their lines."""

    def __init__(self, path: str, problems: Sequence[RecipeProblem]) -> None:
        self.path, self.problems = path, tuple(problems)
        count = len(self.problems)
        head = f"{path} can't be used as a recipe ({count} problem{'s' if count != 1 else ''})"
        super().__init__("\n".join([head, *(textwrap.indent(str(p), "  ") for p in problems)]))


class ModelError(FastdiffError):
    """The model can't be had: no such folder, no pipeline in it, no network, no permission.

    what: what is wrong, or the whole message; why, instead: its further lines, if they were given apart.
    """

    exit_code = 2

    def __init__(self, what: str, why: str = "", instead: str = "") -> None:
        self.what, self.why, self.instead = what, why, instead
        lines = [
            what,
            *([f"why: {why}"] if why else []),
            *([f"instead: {instead}"] if instead else []),
        ]
        super().__init__("\n  ".join(lines))


class PlanError(FastdiffError):
    """The choices can't work here. `problems` holds every reason, not only the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        lines = [f"this run can't work here ({count} problem{'s' if count != 1 else ''})"]
        labels = [len(p.choice) for p in self.problems if len(p.choice) <= _LONGEST_LABEL]
        width = max(labels, default=14) + 3
        for problem in self.problems:
            said = (problem.reason, f"instead: {problem.instead}")
            wrapped = [line for text in said for line in _wrapped(text, 78 - width)]
            if problem.source:
                wrapped.append(f"source: {problem.source}")
            label = problem.choice
            if len(label) > _LONGEST_LABEL:
                lines.append(f"  {label}")
                label = ""
            for line in wrapped:
                lines.append(f"  {label:<{width}}{line}")
                label = ""
        super().__init__("\n".join(lines))


_LONGEST_LABEL = 28
"""Of a choice beside its reason; a longer one, such as a path, gets a line of its own."""


def _wrapped(text: str, width: int) -> list[str]:
    """A text in lines of a width in characters, at least 40; words and addresses stay whole."""
    return wrap_words(text, max(40, width))


_SHELL_WORD = re.compile(
    r"""(?<![\w'])(?:[\w.]+='[^'\n]*'|'[\w./]+=[^'\n]*(?:'"'"'[^'\n]*)*')(?!\w)"""
)
"""An override with a quoted text in it: a line break within would change the text of whoever copies it."""


def wrap_words(text: str, width: int, subsequent_indent: str = "") -> list[str]:
    """A text in lines of a width in characters. Words, addresses, and overrides as a shell quotes them, stay whole."""
    held = _SHELL_WORD.sub(lambda word: word[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(
        held,
        width,
        subsequent_indent=subsequent_indent,
        break_long_words=False,
        break_on_hyphens=False,
        expand_tabs=False,
        replace_whitespace=False,
    )
    return [line.replace("\0", " ") for line in lines]


class RunError(FastdiffError):
    """The run began and could not end well."""


class NoEffectError(RunError):
    """A pass ran and changed nothing; `allow_no_effect=true` lets such a run go on."""


class InvalidOutputError(RunError):
    """The pictures are no result: black, of one colour, or not a number."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like `word`; None when none is near."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.62)
    return found[0] if found else None


def did_you_mean(
    word: str, known: Iterable[str], form: str = "{}", otherwise: str | None = None
) -> str:
    """The second line of a refusal: the nearest right spelling, or what there is.

    form: how a spelling is typed, as in `quant={}`. otherwise: what is said where none is near.
    """
    names = list(known)
    if near := nearest(word, names):
        return f"did you mean: {form.format(near)}"
    return f"there are: {', '.join(names)}" if otherwise is None else otherwise


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def first_line(error: BaseException, most: int = 160) -> str:
    """What an error says, its first line; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:most] if lines else type(error).__name__


def named_line(error: BaseException) -> str:
    """An error's class and what it says, in one line."""
    return f"{type(error).__name__}: {first_line(error)}"


class Status(StrEnum):
    """How a run ended."""

    OK = "ok"
    INCOMPATIBLE = "incompatible"
    FAILED = "failed"
    OOM = "oom"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    INVALID_OUTPUT = "invalid_output"
    INTERRUPTED = "interrupted"
