"""A ladder for people: the table on the screen, and `ladder.md`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from fastdiff.choices.folders import flags_in_use
from fastdiff.display import words
from fastdiff.display.layout import headline, labelled, shown, table
from fastdiff.machine.files import write_text
from fastdiff.measuring.fields import MeasuredOn, PeakMemory

HEADINGS = ("rung", "published", "here", "gain", "quality", "memory", "compile")


def write_ladder_page(folder: Path, data: dict[str, Any]) -> None:
    """Write `ladder.md` beside `ladder.json`."""
    write_text(folder / "ladder.md", render(data))


def cells(row: dict[str, Any]) -> list[str]:
    """One row's cells, in the order of HEADINGS."""
    name = row["experiment"].rpartition("/")[2]
    published = _pair(row["published"]["latency_s"], row["published"]["speedup"])
    if "latency_s" not in row:
        return [name, published, row["status"], "", "", "", ""]
    here = _pair(row["latency_s"], row["speedup"]["ratio"])
    memory = words.device_peak(PeakMemory.of(row["peak_memory_bytes"])).removesuffix(
        " on the device"
    )
    return [name, published, here, _gain(row), _quality(row["quality"]), memory, _compile(row)]


def _pair(latency_s: float | None, speedup: float | None) -> str:
    """`2.43 s 3.03x`; a dash for what nobody published."""
    if latency_s is None:
        return "-"
    return words.seconds(latency_s) + (f" {speedup:.2f}x" if speedup is not None else "")


def _gain(row: dict[str, Any]) -> str:
    gain = row["gain"]
    if gain is None or gain["ratio"] is None:
        return "-"
    text = f"{gain['ratio']:.2f}"
    if gain["ci95"] is None:
        return text
    low, high = gain["ci95"]
    mark = "" if row["verdict"] == "pays" else f"\n{row['verdict']}"
    return f"{text} [{low:.2f}, {high:.2f}]{mark}"


def _quality(found: dict[str, Any]) -> str:
    if found["reference"] == "itself":
        return "first"
    if found["identical"]:
        return "same"
    return "-" if found["psnr_db"] is None else f"{found['psnr_db']:.1f} dB"


def _compile(row: dict[str, Any]) -> str:
    """Seconds from an empty cache; marked where they are not."""
    if row["compile_cache"] == "none":
        return "-"
    shared = " shared" if row["compile_cache_shared"] else ""
    shared += " resumed" if row.get("compile_resumed") else ""
    warm = " warm" if row["compile_cache"] == "warm" else ""
    return f"{words.seconds(row['compile_s'])}{warm}{shared}"


def title(data: dict[str, Any]) -> str:
    """What was measured, where, how often."""
    environment = data["environment"]
    where = words.device(MeasuredOn.of(environment)) if environment else "nothing measured yet"
    rounds = words.counted(data["rounds"], "round")
    return f"{data['ladder']} on {data['model']}: {where}, {rounds}"


def reasons(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Rungs without figures, each with its reason."""
    return [
        (row["experiment"].rpartition("/")[2], f"{row['status']}: {row['reason']}")
        for row in data["rows"]
        if row["reason"]
    ]


def notes(data: dict[str, Any]) -> list[str]:
    """What a reader has to know to read the table."""
    lines = ["here: median of the rounds' medians, and the speed-up over the first row measured"]
    measured = [row for row in data["rows"] if "latency_s" in row]
    if any(row["gain"] and row["gain"]["ci95"] for row in measured):
        lines.append(
            f"gain: {_over(measured)}, mean ratio of the rounds with its 95 % interval; marked where it "
            "doesn't pay here"
        )
    elif measured:
        lines.append(
            f"gain: {_over(measured)}; one round only, so no interval: ladder.rounds=3 gives one"
        )
    if any(row["quality"]["reference"] for row in measured):
        lines.append("quality: PSNR against the first row's pictures")
    published = {
        f"{row['published']['workload']} on {row['published']['hardware']}"
        for row in data["rows"]
        if row["published"]["latency_s"] is not None
    }
    if published:
        lines.append(f"published: {'; '.join(sorted(published))}")
    if without := left_out(data):
        lines.append(without)
    if any(row["compile_cache"] == "cold" for row in measured):
        lines.append("compile: from an empty cache, in the first round")
    if any(row.get("compile_resumed") for row in measured):
        lines.append(
            "resumed: an attempt that was interrupted had compiled some of it, so an empty cache takes longer"
        )
    return lines


def _over(measured: list[dict[str, Any]]) -> str:
    """What gains are measured over: the row above, and where a rung builds on another one, which."""
    others: dict[str, list[str]] = {}
    for row in measured:
        if row["published"]["over"] is not None and row["gain_over"]:
            others.setdefault(row["gain_over"], []).append(row["experiment"].rpartition("/")[2])
    said = [f"of {', '.join(names)} over {under}" for under, names in others.items()]
    return "; ".join(["over the measured row above", *said])


def left_out(data: dict[str, Any]) -> str | None:
    """Overrides that some rungs have no key for; None if all have."""
    rungs: dict[str, list[str]] = {}
    for row in data["rows"]:
        for word in row["left_out"]:
            rungs.setdefault(word, []).append(row["experiment"].rpartition("/")[2])
    said = [
        f"{word} left out for {', '.join(names)}, which has no such key"
        for word, names in rungs.items()
    ]
    return "; ".join(said) or None


def render(data: dict[str, Any]) -> str:
    """The ladder as Markdown."""
    lines = [f"# {title(data)}", "", f"State: {data['state']}.", ""]
    lines += ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    for row in data["rows"]:
        lines.append("| " + " | ".join(cell.replace("\n", ", ") for cell in cells(row)) + " |")
    lines += ["", *(f"- {note}" for note in notes(data)), ""]
    if reasons(data):
        lines += ["## Rungs without figures", ""]
        lines += [f"- **{name}** {reason}" for name, reason in reasons(data)]
        lines.append("")
    lines += ["## What was applied", ""]
    for row in data["rows"]:
        if "applied" in row:
            name = row["experiment"].rpartition("/")[2]
            lines.append(f"- **{name}**: {'; '.join(row['applied'])}")
    sources = sorted({row["published"]["source"] for row in data["rows"]} - {None})
    lines += ["", "## Sources", "", *(f"- {source}" for source in sources), ""]
    command = ["python -m fastdiff ladder", data["ladder"], *map(shlex.quote, data["overrides"])]
    command.append(f"ladder.rounds={data['rounds']}")
    command += [f"ladder.seed={data['seed']}"] if data["seed"] else []
    command += map(shlex.quote, flags_in_use())
    lines += ["## Again", "", "```", " ".join(command), "```", ""]
    return "\n".join(lines)


def ladder_text(data: dict[str, Any], folder: Path) -> str:
    """The end of a ladder: its table, what to know to read it, and the rungs without figures."""
    rows = map(cells, data["rows"])
    lines = [headline(f"ladder {title(data)}"), "", table(HEADINGS, rows, wrapped=HEADINGS[1:]), ""]
    lines += [labelled("note", note) for note in notes(data)]
    lines += [labelled(name, reason) for name, reason in reasons(data)]
    if data["state"] != "complete":
        lines.append(labelled("state", f"{data['state']}; the same line again goes on from here"))
    lines.append(labelled("written", f"{shown(folder)}/ladder.md, ladder.json"))
    return "\n".join(lines)
