"""Passes that other packages bring: entry points of the group `fastdiff.passes`, each an option of a slot.

    [project.entry-points."fastdiff.passes"]
    "quant.ours_int4" = "ours.passes:OursInt4"

The class derives from Option and Pass like those of `fastdiff.passes`; its fields are the option's keys, and the first paragraph of
its docstring says what it does. A plug-in is code, and installing it is trusting it.
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from importlib import metadata

from omegaconf import OmegaConf

from fastdiff.choices.folder_contents import NAME
from fastdiff.errors import first_line, nearest
from fastdiff.passes import BASES, OPTIONS
from fastdiff.passes.base import Option, Pass, Stage

GROUP = "fastdiff.passes"


@dataclass(frozen=True)
class Plugin:
    """One option that another package brings. distribution, version: of that package."""

    slot: str
    option: str
    kind: type[Option]
    distribution: str
    version: str

    @property
    def comment(self) -> str:
        """The first paragraph of its docstring as one line; what it does, if it has none."""
        text = inspect.cleandoc(self.kind.__doc__ or "").partition("\n\n")[0]
        if not text or text.startswith(f"{self.kind.__name__}("):  # as dataclass writes one itself
            text = str(getattr(self.kind, "does", ""))
        return " ".join(text.split())


@dataclass(frozen=True)
class Found:
    """Plug-ins that can be chosen, and what is wrong with the others: each a message with its way out."""

    plugins: tuple[Plugin, ...]
    problems: tuple[str, ...]


class _Refused(Exception):
    """A plug-in can't be an option: why, and the way out."""

    def __init__(self, reason: str, instead: str) -> None:
        super().__init__(reason)
        self.reason, self.instead = reason, instead


@cache
def plugins() -> Found:
    """Look for plug-ins, once in a process; each is imported."""
    kept: dict[tuple[str, str], Plugin] = {}
    problems = []
    for point in sorted(_entry_points(), key=lambda p: (p.name, _distribution(p))):
        package = _distribution(point)
        try:
            plugin = _plugin(point)
            first = kept.setdefault((plugin.slot, plugin.option), plugin)
            if first is not plugin:
                raise _Refused(
                    f"has the name of one of {first.distribution} {first.version}",
                    f"pip uninstall {package}, or {first.distribution}",
                )
        except _Refused as error:
            problems.append(
                f"the plug-in {point.name} of {package} {error.reason}\n  instead: {error.instead}"
            )
    return Found(tuple(kept.values()), tuple(problems))


def _entry_points() -> Iterator[metadata.EntryPoint]:
    """The group's. Others' are only read and not parsed, which `metadata.entry_points` takes four times as long for."""
    names = set()
    for each in metadata.distributions():
        if GROUP in (each.read_text("entry_points.txt") or ""):
            names.add(re.sub(r"[-_.]+", "-", each.name).lower())
    for (
        name
    ) in names:  # of two distributions of one name the first counts, as for whoever imports them
        yield from metadata.distribution(name).entry_points.select(group=GROUP)


def _distribution(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else "an unknown package"


def _plugin(point: metadata.EntryPoint) -> Plugin:
    """The option that an entry point names. Raises _Refused."""
    slot, option = _name(point.name)
    without = f"pip uninstall {_distribution(point)}"
    try:
        kind = point.load()
    except (Exception, SystemExit) as error:
        last = traceback.format_exception_only(error)[-1].strip()
        raise _Refused(
            f"can't be imported: {last}",
            f'mend it (python -c "import {point.module}" shows where), or {without}',
        ) from error
    reason = _why_no_option(kind, slot, point)
    if reason:
        raise _Refused(reason, f"mend it, or {without}")
    version = point.dist.version if point.dist else "of unknown version"
    return Plugin(slot, option, kind, _distribution(point), version)


def _name(name: str) -> tuple[str, str]:
    """Slot and option of an entry point's name. Raises _Refused."""
    slot, _, option = name.partition(".")
    if not re.fullmatch(r"\w+\.\w+", name) or not NAME.fullmatch(option):
        raise _Refused("isn't named SLOT.OPTION", "a name such as quant.ours_int4")
    if slot not in OPTIONS:
        near = nearest(slot, OPTIONS)
        hint = f"{near}.{option}" if near else f"one of {', '.join(OPTIONS)}"
        raise _Refused(f"is for a slot that takes none, '{slot}'", hint)
    if option in OPTIONS[slot]:
        raise _Refused("has the name of an option of fastdiff's own", f"{slot}.ours_{option}")
    return slot, option


def _why_no_option(kind: object, slot: str, point: metadata.EntryPoint) -> str | None:
    """Why what an entry point names can't be chosen."""
    if not (isinstance(kind, type) and issubclass(kind, Option) and issubclass(kind, Pass)):
        return f"is no class derived from Option and Pass: {point.value}"
    base = BASES.get(slot, Option)
    if not issubclass(kind, base):
        return f"doesn't derive from {base.__name__}, as every option of {slot} does"
    if "__dataclass_fields__" not in vars(kind):
        return f"is no dataclass: @dataclass is missing above {kind.__name__}"
    lacks = [name for name in ("key", "does", "stage") if not hasattr(kind, name)]
    lacks += ["apply()"] if kind.apply is Pass.apply else []
    if lacks:
        return f"lacks {', '.join(lacks)}"
    wanted = {"slot": slot, "key": point.name}
    for name, value in wanted.items():
        if getattr(kind, name) != value:
            return f"must have {name} = '{value}', and has {getattr(kind, name)!r}"
    if not isinstance(kind.stage, Stage):
        return f"must have one of Stage's members as its stage, and has {kind.stage!r}"
    if any(f.name == "option" for f in fields(kind)):
        return "has a key called option, which is what reports call its name"
    try:
        OmegaConf.to_object(OmegaConf.structured(kind))
    except Exception as error:  # of whatever its fields are declared to be
        return f"has keys that can't be read: {first_line(error, 1000)}"
    return None
