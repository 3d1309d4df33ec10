"""`report.md`: a run's report for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastdiff.pages import words
from fastdiff.result import write_text


def write_run_page(folder: Path, report: dict[str, Any]) -> None:
    """Write `report.md` beside `report.json`."""
    write_text(folder / "report.md", render(report))


def render(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    config, environment = report["config"], report["environment"]
    model = config["model"]["option"]
    lines = [
        f"# {model}: {words.choices(config)}",
        "",
        f"Status **{report['status']}** on {environment['device']} ({environment['device_name']}), "
        f"{environment['threads']} threads, {report['started_at']}.",
        "",
    ]
    if report["error"]:
        tail = "\n".join(report["error"]["log_tail"])
        lines += [f"{report['error']['message']}", "", "```", tail, "```", ""]
    lines += _figures(report)
    if report["notices"]:
        lines += ["## To know", "", *(f"- {notice}" for notice in report["notices"]), ""]
    lines += _applied(report)
    lines += _heaviest(report["profile"])
    lines += ["## Pictures", "", *(f"![{i['path']}]({i['path']})" for i in report["images"]), ""]
    lines += ["## Again", "", "```", _command(report["overrides"]), "```", ""]
    return "\n".join(lines)


def _figures(report: dict[str, Any]) -> list[str]:
    latency, found = report["latency_s"], report["quality"]
    rows = [
        ("load", words.seconds(report["load_s"])),
        ("apply the passes", words.seconds(report["apply_s"])),
        ("first call", words.seconds(report["first_call_s"])),
        ("compile", words.compiling(report)),
        ("latency, median", words.seconds(latency["median"])),
        (
            "latency, p10 and p90",
            f"{words.seconds(latency['p10'])}, {words.seconds(latency['p90'])}",
        ),
        ("one step, median", words.seconds(report["step_latency_s"]["median"])),
        ("pictures a second", words.rate(report["throughput_images_per_s"])),
        ("where the time goes", words.parts(report["parts_s"])),
        ("a step against the machine's limit", words.roofline(report["roofline"])),
        ("peak memory", words.device_peak(report["peak_memory_bytes"])),
        ("memory in parts", words.memory(report["memory_bytes"]) or "-"),
        ("quality", words.quality(found)),
        ("exactness", words.exactness(report["exactness"])),
    ]
    compiled = report["compile"]
    if compiled["graphs"]:
        counts = ("graphs", "graph_breaks", "recompiles")
        rows.append(("graphs, breaks, recompiles", ", ".join(str(compiled[c]) for c in counts)))
        rows += [("why", reason.replace("|", "\\|")) for reason in compiled["reasons"]]
    published = words.published(report["config"]["experiment"])
    if published:
        rows.append(("experiment", published))
    if report["syncs"]["per_step"] is not None:
        rows.append(("waits for the GPU in a step", words.syncs(report["syncs"])))
    return ["| figure | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows), ""]


def _heaviest(profile: dict[str, Any]) -> list[str]:
    """The operators that took most of a profiled call; nothing without profile=true."""
    if not profile["trace"]:
        return []
    rows = [
        f"| `{each['operator']}` | {each['calls']} | {words.seconds(each['self_s'])} | {each['share']:.1%} |"
        for each in profile["heaviest"]
    ]
    told = f"{profile['steps']} steps, text encoders and VAE; the whole trace: {profile['trace']}, for ui.perfetto.dev"
    table = ["| operator | calls | its own time | share |", "|---|---|---|---|", *rows]
    return ["## Heaviest operators", "", f"Of {told}.", "", *table, ""]


def _applied(report: dict[str, Any]) -> list[str]:
    lines = ["## Applied", "", "| pass | stage | changed |", "|---|---|---|"]
    stages = {step["pass"]: step["stage"] for step in report["plan"] or ()}
    for effect, sentence in zip(report["effects"], report["applied"], strict=True):
        what = sentence.removeprefix(effect["pass"]).strip()
        lines.append(f"| {effect['pass']} | {stages.get(effect['pass'], '')} | {what} |")
    return [*lines, ""]


def _command(overrides: list[str]) -> str:
    import shlex

    return " ".join(["python -m fastdiff", *(shlex.quote(o) for o in overrides)])
