"""The documents' experiments: what each chooses, what was published, and what was measured of it so far."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fastdiff.choices.experiments import ExperimentFile, ladder, ladders
from fastdiff.display import words
from fastdiff.display.ladder import HEADINGS, cells, notes, reasons, title
from fastdiff.machine.files import read_json
from generating.markdown import anchor, code, fence, sentence, table, text

RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "results"


def render() -> str:
    """A section for each ladder: its rungs as published, then every committed measurement of it."""
    return "\n".join(line for name in ladders() for line in _ladder(name))


@cache
def measured() -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """Every `ladder.json` in `benchmarks/results/`, with its folder's path from the top of the checkout."""
    top = RESULTS.parent.parent
    return tuple(
        (path.parent.relative_to(top).as_posix(), read_json(path))
        for path in sorted(RESULTS.glob("**/ladder.json"))
    )


def _ladder(name: str) -> Iterator[str]:
    rungs = ladder(name)
    yield from (f"({anchor('ladder', name)})=", f"## {name}", "")
    yield from fence([f"python -m fastdiff ladder {name}"], "bash")
    for source in dict.fromkeys(e.published.source for e in rungs if e.published.source):
        yield f"Source: <{source}>"
    yield ""
    where = {
        f"{e.published.workload} on {e.published.hardware}" for e in rungs if e.published.workload
    }
    if where:
        yield from (f"Published for {text('; '.join(sorted(where)))}.", "")
    else:
        yield from ("The document names these techniques and gives no figures for them.", "")
    for experiment in rungs:
        yield from _rung(experiment)
    yield from _measurements(name, rungs)


def _rung(experiment: ExperimentFile) -> Iterator[str]:
    published = experiment.published
    yield code(experiment.name)
    figures = ""
    if published.latency_s is not None:
        figures = f"Published: {words.seconds(published.latency_s)}"
        if published.rung and published.speedup:
            figures += f", {published.speedup:.2f} times as fast as the first rung."
    yield f": {sentence(text(experiment.comment))}"
    yield ""
    yield f"  {', '.join(map(code, overrides(experiment)))}"
    yield ""
    if figures:
        yield from (f"  {figures}", "")


def overrides(experiment: ExperimentFile) -> list[str]:
    """What an experiment chooses, as one would type it."""
    said = [f"{slot}={option}" for slot, option in experiment.choices.items()]
    for slot, keys in experiment.keys.items():
        if slot != "experiment":
            said += [f"{slot}.{key}={_typed(value)}" for key, value in keys.items()]
    return said


def _typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _measurements(name: str, rungs: Sequence[ExperimentFile]) -> Iterator[str]:
    found = [(folder, data) for folder, data in measured() if data["ladder"] == name]
    for folder, data in found:
        yield from _measurement(folder, data)
    yield from _missing(name, rungs, [data for _, data in found])


def _measurement(folder: str, data: Mapping[str, Any]) -> Iterator[str]:
    """One committed measurement: what it ran on, its table, and what to know to read it."""
    whole = dict(data)
    environment = whole["environment"]
    yield from (f"### Measured: {text(title(whole))}", "")
    if environment:
        versions = ", ".join(
            f"{n} {environment[n]}" for n in ("torch", "diffusers", "torchao") if n in environment
        )
        yield from (
            f"On {text(environment['device_name'])}, with {text(versions)}. All figures: `{folder}/`.",
            "",
        )
    yield from table(HEADINGS, [_cells(row) for row in whole["rows"]])
    yield from (f"- {text(note)}" for note in notes(whole))
    yield from (f"- {code(name)} {text(reason)}" for name, reason in reasons(whole))
    yield from ("", "Again:", "")
    command = ["python -m fastdiff ladder", whole["ladder"], *map(shlex.quote, whole["overrides"])]
    yield from fence([" ".join([*command, f"ladder.rounds={whole['rounds']}"])], "bash")


def _cells(row: dict[str, Any]) -> list[str]:
    name, *figures = cells(row)
    return [code(name), *(text(words.replace("\n", ", ")) or "-" for words in figures)]


def _missing(
    name: str, rungs: Sequence[ExperimentFile], found: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """What nobody has measured yet, in so many words."""
    yield from ("### Not measured", "")
    if not any((data["environment"] or {}).get("device") == "cuda" for data in found):
        yield f"- The whole ladder on a CUDA GPU, which the document is about: `benchmarks/gpu.sh --only ladder-{name}` does it."
    done = {row["experiment"] for data in found for row in data["rows"] if "latency_s" in row}
    never = [rung.short for rung in rungs if rung.name not in done]
    if never:
        yield f"- On no machine so far: {', '.join(map(code, never))}."
    yield ""
