"""`report.md`: a run's report for people."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdiff.choices.folders import flags_in_use
from fastdiff.display import words
from fastdiff.display.layout import headline, labelled, shown
from fastdiff.machine.files import write_text
from fastdiff.measuring.fields import Host, Profile, Report, Times


def write_run_page(folder: Path, report: Mapping[str, Any]) -> None:
    """Write `report.md` beside `report.json`."""
    write_text(folder / "report.md", render(Report.of(report)))


def render(report: Report) -> str:
    """The report as Markdown."""
    config, environment = report.config, report.environment
    model = config["model"]["option"]
    lines = [
        f"# {model}: {words.choices(config)}",
        "",
        f"Status **{report.status}** on {environment.device} ({environment.device_name}), "
        f"{words.counted(environment.threads or 0, 'thread')}, {report.started_at}.",
        "",
    ]
    if report.error:
        tail = report.error.log_tail
        lines += [f"{report.error.message}", ""]
        lines += ["```", *tail, "```", ""] if tail else []
    lines += _figures(report)
    if report.notices:
        lines += ["## To know", "", *(f"- {notice}" for notice in report.notices), ""]
    lines += _applied(report)
    lines += _heaviest(report.profile)
    lines += ["## Pictures", "", *(f"![{i.path}]({i.path})" for i in report.images), ""]
    lines += ["## Again", "", "```", _command(report.overrides), "```", ""]
    return "\n".join(lines)


def _figures(report: Report) -> list[str]:
    rows = [
        ("import", words.seconds(report.import_s)),
        ("load", words.seconds(report.load_s)),
        ("apply the passes", words.seconds(report.apply_s)),
        ("first call", words.seconds(report.first_call_s)),
        ("compile", words.compiling(report)),
        ("warm-up", words.warm_up(report.warmup)),
        *_times("latency", report.latency_s),
        *_times("one step", report.step_latency_s),
        *_conditions(report.conditions.host),
        ("pictures a second", words.rate(report.throughput_images_per_s)),
        ("where the time goes", words.parts(report.parts_s)),
        ("a step against the machine's limit", words.roofline(report.roofline)),
        ("peak memory", words.device_peak(report.peak_memory_bytes)),
        ("memory in parts", words.memory(report.memory_bytes) or "-"),
        ("quality", words.quality(report.quality)),
        ("exactness", words.exactness(report.exactness)),
    ]
    compiled = report.compile
    if compiled.graphs:
        counts = ("graphs", "graph_breaks", "recompiles")
        rows.append(
            ("graphs, breaks, recompiles", ", ".join(str(getattr(compiled, c)) for c in counts))
        )
        rows += [("why", reason.replace("|", "\\|")) for reason in compiled.reasons]
    published = words.published(report.config["experiment"])
    if published:
        rows.append(("experiment", published))
    if report.syncs.per_step is not None:
        rows.append(("waits for the GPU in a step", words.syncs(report.syncs)))
    return ["| figure | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows), ""]


def _times(what: str, latency: Times) -> list[tuple[str, str]]:
    """A median, how sure it is, and how far single times lie from it."""
    rows = [
        (f"{what}, median", words.seconds(latency.median)),
        (f"{what}, median's 95 % interval", words.interval(latency)),
        (f"{what}, spread", words.spread(latency) or "-"),
    ]
    if latency.p99 is not None:
        rows.append((f"{what}, p99", words.seconds(latency.p99)))
    return rows


def _conditions(host: Host | None) -> list[tuple[str, str]]:
    """What the run computed with, and what others took of it; nothing where no call was timed."""
    if host is None:
        return []
    return [
        ("threads and CPUs", words.room(host)),
        ("load average", words.load(host)),
        ("others took", words.others(host)),
    ]


def _heaviest(profile: Profile) -> list[str]:
    """The operators that took most of a profiled call; nothing without profile=true."""
    if not profile.trace:
        return []
    rows = [
        f"| `{each.operator}` | {each.calls} | {words.seconds(each.self_s)} | {each.share:.1%} |"
        for each in profile.heaviest
    ]
    told = f"{profile.steps} steps, text encoders and VAE; the whole trace: {profile.trace}, for ui.perfetto.dev"
    table = ["| operator | calls | its own time | share |", "|---|---|---|---|", *rows]
    return ["## Heaviest operators", "", f"Of {told}.", "", *table, ""]


def _applied(report: Report) -> list[str]:
    lines = ["## Applied", "", "| pass | stage | changed |", "|---|---|---|"]
    stages = {step.pass_: step.stage for step in report.plan or ()}
    for effect, sentence in zip(report.effects, report.applied, strict=True):
        what = sentence.removeprefix(effect.pass_).strip()
        lines.append(f"| {effect.pass_} | {stages.get(effect.pass_, '')} | {what} |")
    return [*lines, ""]


def _command(overrides: list[str]) -> str:
    return shlex.join(["python", "-m", "fastdiff", *overrides, *flags_in_use()])


def summary(data: Mapping[str, Any], folder: Path, title: str) -> str:
    """The end of a run, by its report."""
    report = Report.of(data)
    config, environment = report.config, report.environment
    where = words.device(environment)
    lines = [headline(f"{title} on {where}: {words.choices(config)}")]
    if report.status != "ok":
        lines.append(labelled("status", str(report.status)))
        message = (report.error.message if report.error else None) or ""
        lines += _shortened(message)
        if report.status == "invalid_output" and report.quality.missed:
            lines.append(labelled("quality", words.quality(report.quality)))
        if report.status == "oom" and "instead: " not in message:
            lines.append(labelled("instead", _LESS_MEMORY))
        lines.append(labelled("log", f"{shown(folder)}/log.txt"))
        return "\n".join(lines)
    first = f"first call {words.seconds(report.first_call_s)}"
    if report.compile.graphs:
        first += f" (compile {words.compiling(report)})"
    load = f"{words.seconds(report.load_s)}, passes {words.seconds(report.apply_s)}"
    lines.append(labelled("load", f"{load}    {first}"))
    lines.append(labelled("latency", _latency(report)))
    lines.append(
        labelled(
            "throughput",
            f"{words.rate(report.throughput_images_per_s)} pictures a second    "
            f"peak memory {words.device_peak(report.peak_memory_bytes)}",
        )
    )
    lines.append(labelled("where", words.parts(report.parts_s)))
    lines.append(labelled("roofline", words.roofline(report.roofline)))
    lines.append(labelled("quality", words.quality(report.quality)))
    if report.exactness.checked:
        lines.append(labelled("exact", words.exactness(report.exactness)))
    lines += _published(config)
    if report.syncs.per_step:
        lines.append(labelled("GPU waits", words.syncs(report.syncs)))
    lines.append(labelled("applied", words.applied(report.applied)))
    lines += [labelled("notice", notice) for notice in report.notices]
    lines.append(labelled("written", f"{shown(folder)}/report.md, {report.images[0].path}"))
    return "\n".join(lines)


def _latency(report: Report) -> str:
    """`0.41 s a picture, median of 5 (p10 0.40 s, p90 0.43 s), after 4 warm-up calls`."""
    latency, count, warm = report.latency_s, len(report.images), report.warmup.calls
    what = "a picture" if count == 1 else f"{count} pictures"
    runs, spread = len(latency.samples), words.spread(latency)
    told = [f"{words.seconds(latency.median)} {what}"]
    told.append(
        "one call" if runs == 1 else f"median of {runs}" + (f" ({spread})" if spread else "")
    )
    told.append(f"after {words.counted(warm, 'warm-up call')}" if warm else "no warm-up")
    return ", ".join(told)


def _published(config: dict[str, Any]) -> list[str]:
    """What a document says of this run, if it is one of its experiments."""
    said = words.published(config["experiment"])
    return [labelled("experiment", said)] if said else []


_MOST_LINES = 8


_LESS_MEMORY = "precision=bf16, a smaller generation.height and width, or fewer pictures at once"


def _shortened(message: str) -> list[str]:
    """An error's first lines; a compiler's run to hundreds, and the log has them all."""
    first, *others = message.splitlines() or [""]
    rows = [
        labelled("error", first),
        *(labelled("", line.strip()) for line in others if line.strip()),
    ]
    lines = "\n".join(rows).splitlines()
    left = len(lines) - _MOST_LINES
    return (
        [*lines[:_MOST_LINES], labelled("", f"... {left} more lines in the log")]
        if left > 0
        else lines
    )
