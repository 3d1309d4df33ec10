"""The fields of `report.json`: their order and their names from the program, their meaning from `report_fields.yaml`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fastdiff.choices.compose import compose
from fastdiff.machine import hardware, nvml
from fastdiff.measuring.conditions import Moment, Room, host_report
from fastdiff.measuring.exactness import Verdict
from fastdiff.measuring.report import blank_report
from fastdiff.passes.effects import Effect
from fastdiff.planning.outlook import planned
from generating.markdown import anchor, definition, marked, sentence, text

MEANINGS = Path(__file__).parent / "report_fields.yaml"


@dataclass(frozen=True)
class Field:
    """One field. path: `latency_s.median`, with `[]` behind a list. kind: its unit or type. meaning: Markdown."""

    path: str
    kind: str
    meaning: str


@cache
def described() -> Mapping[str, Mapping[str, Field]]:
    """What `report_fields.yaml` says: fields by path, below the heading of their part."""
    parts = yaml.safe_load(MEANINGS.read_text(encoding="utf-8"))
    return {
        heading: {path: Field(path, *_said(path, words)) for path, words in fields.items()}
        for heading, fields in parts.items()
    }


def _said(path: str, words: str) -> tuple[str, str]:
    """Kind and meaning of `seconds: what it is`. Raises ValueError for a text that has not both."""
    kind, colon, meaning = words.partition(": ")
    if not (kind and colon and meaning.strip()):
        raise ValueError(f"{MEANINGS.name}: {path} needs 'kind: meaning', and has '{words}'")
    return kind, " ".join(meaning.split())


def paths() -> list[str]:
    """Every field that the program itself tells of, in the report's order; found without torch.

    A field whose inside is free (an option's keys, versions of packages) is one path: what stands below it isn't described.
    """
    return list(dict.fromkeys(paths_of(example())))


def example() -> dict[str, Any]:
    """A blank report with one of everything that a measured one has in its lists and places."""
    plan = planned(compose(["model=shapes", "device=cpu"]))
    report = blank_report(plan.setting.run, plan, [], "2026-01-01T00:00:00+00:00")
    room, now = Room(1, 1, None, 1), Moment(0.0, 0.0, None)
    gpu = nvml.gpu_state([])
    report["conditions"] = {
        "host": host_report(room, now, now),
        "gpu": {"before": gpu, "after": gpu},
    }
    report["effects"] = [Effect("quant.int8", 63, "linears").to_dict()]
    report["exactness"] |= {"denoiser": asdict(Verdict()), "decode": asdict(Verdict())}
    files = hardware.Files()
    report["environment"] |= {
        "system": hardware.system(files, {}),
        "processor": hardware.processor(files),
        "host_memory": hardware.host_memory(files),
        "gpu": nvml.gpu_settings([]),
    }
    return report


def paths_of(data: Any, path: str = "") -> Iterator[str]:
    """Paths of all that isn't an object or a list of objects itself, as far as the description goes into it."""
    if path in _all() and not any(other.startswith((f"{path}.", f"{path}[]")) for other in _all()):
        yield path
    elif isinstance(data, Mapping) and data:
        for name, value in data.items():
            yield from paths_of(value, f"{path}.{name}" if path else name)
    elif isinstance(data, list) and data and isinstance(data[0], Mapping):
        for each in data:
            yield from paths_of(each, f"{path}[]")
    else:
        yield path


@cache
def _all() -> Mapping[str, Field]:
    return {path: field for fields in described().values() for path, field in fields.items()}


def missing(data: Any) -> list[str]:
    """Paths of a report that nobody has described; a null in the place of an object isn't held against it."""
    known = _all()
    return [
        path
        for path in dict.fromkeys(paths_of(data))
        if path not in known
        and not any(other.startswith((f"{path}.", f"{path}[]")) for other in known)
    ]


def render() -> str:
    """Every field below the heading of its part. Raises ValueError if the program has one that isn't described."""
    without = missing(example())
    if without:
        raise ValueError(
            f"{MEANINGS.name} says nothing of {', '.join(without)}\n"
            "  instead: a line 'path: kind: meaning' for each of them"
        )
    lines: list[str] = []
    for heading, fields in described().items():
        lines += [f"## {heading}", ""]
        for field in fields.values():
            term = marked(field.path, anchor("field", field.path), field.kind)
            lines += definition(term, _linked(field.meaning))
    return "\n".join(lines)


def _linked(meaning: str) -> str:
    """A meaning as Markdown, with fields that it names in backticks made links."""

    def link(found: re.Match[str]) -> str:
        path = found[1]
        return f"[`{path}`](#{anchor('field', path)})" if path in _all() else found[0]

    return re.sub(r"`([^`]+)`", link, sentence(text(meaning)))
