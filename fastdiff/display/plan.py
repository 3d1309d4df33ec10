"""A plan on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

from fastdiff.display import words
from fastdiff.display.layout import WIDTH, headline, labelled
from fastdiff.display.report import _published
from fastdiff.models.sources import model_of
from fastdiff.passes.effects import Effect
from fastdiff.planning.plan import Plan


def plan_text(plan: Plan) -> str:
    """The plan for people."""
    run = plan.setting.run
    config = run.to_dict()
    model = model_of(run)
    lines = [_about("plan for", plan)]
    for number, step in enumerate(plan.steps, 1):
        where = f" ({', '.join(step.components)})" if step.components else ""
        label = f"{number}. {step.stage.name.lower()}"
        lines.append(labelled(label, f"{step.pass_.key}: {step.does}{where}"))
    asked = run.generation
    size = (
        f"{asked.width}x{asked.height}" if asked.width and asked.height else "the model's own size"
    )
    steps = f"{asked.steps} steps" if asked.steps else "the model's own steps"
    pictures = len(asked.prompts) * asked.images_per_prompt
    others = "".join(f", {name}={value}" for name, value in asked.call.items())
    lines.append(labelled("draws", f"{pictures} x {size}, {steps}, seed {asked.seed}{others}"))
    lines += _published(config)
    lines += [labelled("notice", f"{n.choice}: {n.text}") for n in plan.notices]
    lines += [labelled("notice", text) for text in model.load_notices()]
    return "\n".join(lines)


def applied_text(plan: Plan, effects: Sequence[Effect], pending: Sequence[str]) -> str:
    """What was done to a pipeline: its passes' effects, and the passes that work at its first call."""
    lines = [_about("applied to", plan), *(labelled("applied", str(each)) for each in effects)]
    if pending:
        lines.append(labelled("first call", ", ".join(pending)))
    lines += [labelled("notice", f"{n.choice}: {n.text}") for n in plan.notices]
    return "\n".join(lines)


def _about(what: str, plan: Plan) -> str:
    run, environment = plan.setting.run, plan.setting.environment
    where = environment.describe(plan.device)
    return headline(f"{what} {model_of(run).title} on {where}: {words.choices(run.to_dict())}")


_LONGEST_VALUE = 24


_MOST_LEFT = 46
"""Columns of choices beside which a reason still has room; wider ones get it below."""


def grid_text(rows: Sequence[dict[str, Any]], varied: Sequence[str]) -> str:
    """The table, and what it comes to.

    rows: of every cell its `overrides`, `status`, `problems`, `notices` and `same_as`, in order. varied: the keys in which
    they differ. Notices stand once below the table, by the numbers that their rows bear.
    """
    cells = [[str(place), *_values(row, varied)] for place, row in enumerate(rows, 1)]
    headings = ["", *varied]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    lines = [*_title(rows, varied), ""]
    if varied:
        lines += _line(headings, widths, "")
    notices = list(dict.fromkeys(notice for row in rows for notice in _notices(row)))
    first: dict[str, int] = {}
    for place, (row, values) in enumerate(zip(rows, cells, strict=True), 1):
        before = first.setdefault(repr(row["problems"]), place)
        numbers = sorted(notices.index(notice) + 1 for notice in _notices(row))
        marks = "".join(f" [{number}]" for number in numbers)
        lines += _line(
            values, widths, f"{_verdict(row, before if before < place else None)}{marks}"
        )
    lines += ["", *_footnotes(notices)] if notices else []
    return "\n".join([*lines, "", counts(rows)])


def counts(rows: Sequence[dict[str, Any]]) -> str:
    """`12 combinations: 8 ok, 4 incompatible; 2 are the same run as another`."""
    statuses = [row["status"] for row in rows]
    each = ", ".join(f"{statuses.count(s)} {s}" for s in ("ok", "incompatible") if s in statuses)
    again = sum(row["same_as"] is not None for row in rows)
    same = f"; {again} {'is' if again == 1 else 'are'} the same run as another" if again else ""
    return f"{len(rows)} combination{'s' if len(rows) != 1 else ''}: {each}{same}"


def _notices(row: dict[str, Any]) -> list[str]:
    return [f"{notice['choice']}: {notice['text']}" for notice in row["notices"]]


def _footnotes(notices: Sequence[str]) -> list[str]:
    marks = [f"[{number}]" for number in range(1, len(notices) + 1)]
    inside = " " * (3 + len(marks[-1]))
    return [
        line
        for mark, notice in zip(marks, notices, strict=True)
        for line in _wrapped(f"  {mark:<{len(marks[-1])}} {notice}", inside)
    ]


def _title(rows: Sequence[dict[str, Any]], varied: Sequence[str]) -> list[str]:
    fixed = [o for o in rows[0]["overrides"] if o.partition("=")[0] not in varied]
    each = f", each with {' '.join(fixed)}" if fixed else ""
    text = f"fastdiff  plan of {len(rows)} combination{'s' if len(rows) != 1 else ''}{each}"
    return wrap(text, WIDTH, subsequent_indent=" " * 10, break_on_hyphens=False)


def _values(row: dict[str, Any], varied: Sequence[str]) -> list[str]:
    values = dict(override.partition("=")[::2] for override in row["overrides"])
    return [_shortened(values[key]) for key in varied]


def _shortened(value: str) -> str:
    return value if len(value) <= _LONGEST_VALUE else f"{value[: _LONGEST_VALUE - 3]}..."


def _verdict(row: dict[str, Any], before: int | None) -> str:
    """`ok`, or the first reason; or the number of the cell that is the same, or has the same reasons (before)."""
    if row["same_as"] is not None:
        return f"{row['status']}, the same run as {row['same_as'] + 1}"
    if not row["problems"]:
        return str(row["status"])
    if before is not None:
        return f"{row['status']}, for the same reason as {before}"
    first, *others = row["problems"]
    said = f"{first['choice'] or ''} {first['reason']}".strip()
    more = f" (and {len(others)} more)" if others else ""
    return f"{row['status']}: {said}{more}"


def _line(values: list[str], widths: list[int], verdict: str) -> list[str]:
    """A row: what it chooses, and the verdict beside it, wrapped, or below it where the choices are wide."""
    _, *rest = (f"{value:<{width}}" for value, width in zip(values, widths, strict=True))
    left = f"  {'  '.join([values[0].rjust(widths[0]), *rest])}"
    if len(left) <= _MOST_LEFT:
        indent = " " * (len(left) + 2)
        return wrap(
            verdict,
            WIDTH,
            initial_indent=f"{left}  ",
            subsequent_indent=indent,
            break_on_hyphens=False,
        ) or [left.rstrip()]
    inside = " " * (widths[0] + 4)
    if len(left.rstrip()) > WIDTH:
        left = "  ".join(value for value in values if value)
        return _wrapped(f"  {left}", inside) + _wrapped(f"{inside}{verdict}".rstrip(), inside)
    return [left.rstrip(), *_wrapped(f"{inside}{verdict}".rstrip(), inside)]


def _wrapped(text: str, inside: str) -> list[str]:
    return wrap(text, WIDTH, subsequent_indent=inside, break_on_hyphens=False)
