"""What a person sees: progress while a run goes on, and a small table when it ends. 80 columns, no colour needed."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path
from typing import Any

from fastdiff.config import Generation
from fastdiff.environment import Environment
from fastdiff.experiments import found_experiments, in_order
from fastdiff.models.sources import model_of
from fastdiff.options import (
    OptionFile,
    PluginOption,
    added_files,
    available,
    default_options,
    keys_of,
    schemas,
)
from fastdiff.pages import compare as compare_page
from fastdiff.pages import ladder as ladder_page
from fastdiff.pages import words
from fastdiff.planning import Plan
from fastdiff.verbs import VERBS

WIDTH = 80
_INDENT = 16


def row(label: str, text: str) -> str:
    """A labelled line, wrapped under its text."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=f"  {label:<{_INDENT - 3}} ",
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def headline(text: str) -> str:
    """The first line of a screen: what it is about."""
    return textwrap.fill(
        f"fastdiff  {text}",
        WIDTH,
        subsequent_indent=" " * 10,
        break_long_words=False,
        break_on_hyphens=False,
    )


def summary(report: dict[str, Any], folder: Path, title: str) -> str:
    """The end of a run."""
    config, environment = report["config"], report["environment"]
    where = environment["device"]
    where += (
        f", {words.counted(environment['threads'], 'thread')}"
        if where == "cpu"
        else f", {environment['device_name']}"
    )
    lines = [headline(f"{title} on {where}: {words.choices(config)}")]
    if report["status"] != "ok":
        lines.append(row("status", str(report["status"])))
        message = report["error"]["message"] or ""
        lines += _shortened(message)
        if report["status"] == "invalid_output" and report["quality"]["missed"]:
            lines.append(row("quality", words.quality(report["quality"])))
        if report["status"] == "oom" and "instead: " not in message:
            lines.append(row("instead", _LESS_MEMORY))
        lines.append(row("log", f"{shown(folder)}/log.txt"))
        return "\n".join(lines)
    first = f"first call {words.seconds(report['first_call_s'])}"
    if report["compile"]["graphs"]:
        first += f" (compile {words.compiling(report)})"
    load = f"{words.seconds(report['load_s'])}, passes {words.seconds(report['apply_s'])}"
    lines.append(row("load", f"{load}    {first}"))
    lines.append(row("latency", _latency(report)))
    lines.append(
        row(
            "throughput",
            f"{words.rate(report['throughput_images_per_s'])} pictures a second    "
            f"peak memory {words.device_peak(report['peak_memory_bytes'])}",
        )
    )
    lines.append(row("where", words.parts(report["parts_s"])))
    lines.append(row("roofline", words.roofline(report["roofline"])))
    lines.append(row("quality", words.quality(report["quality"])))
    if report["exactness"]["checked"]:
        lines.append(row("exact", words.exactness(report["exactness"])))
    lines += _published(config)
    if report["syncs"]["per_step"]:
        lines.append(row("GPU waits", words.syncs(report["syncs"])))
    lines.append(row("applied", "; ".join(_worth_showing(report))))
    lines += [row("notice", notice) for notice in report["notices"]]
    lines.append(row("written", f"{shown(folder)}/report.md, {report['images'][0]['path']}"))
    return "\n".join(lines)


def _latency(report: dict[str, Any]) -> str:
    """`0.41 s a picture, median of 5 (p10 0.40 s, p90 0.43 s), after 4 warm-up calls`."""
    latency, count, warm = report["latency_s"], len(report["images"]), report["warmup"]["calls"]
    what = "a picture" if count == 1 else f"{count} pictures"
    runs, spread = len(latency["samples"]), words.spread(latency)
    told = [f"{words.seconds(latency['median'])} {what}"]
    told.append(
        "one call" if runs == 1 else f"median of {runs}" + (f" ({spread})" if spread else "")
    )
    told.append(f"after {words.counted(warm, 'warm-up call')}" if warm else "no warm-up")
    return ", ".join(told)


def _published(config: dict[str, Any]) -> list[str]:
    """What a document says of this run, if it is one of its experiments."""
    said = words.published(config["experiment"])
    return [row("experiment", said)] if said else []


def comparison_text(data: dict[str, Any], folder: Path) -> str:
    """The end of a comparison: both sides, what they say, and how it was measured."""
    lines = [headline(compare_page.title(data))]
    lines += [row(label, text) for label, text in compare_page.lines(data)]
    lines.append(row("written", f"{shown(folder)}/comparison.md, comparison.json"))
    return "\n".join(lines)


def ladder_text(data: dict[str, Any], folder: Path) -> str:
    """The end of a ladder: its table, what to know to read it, and the rungs without figures."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ladder_page.HEADINGS:
        table.add_column(heading, overflow="fold", header_style="", no_wrap=heading == "rung")
    for each in data["rows"]:
        table.add_row(*ladder_page.cells(each))
    console = Console(width=WIDTH, color_system=None)
    with console.capture() as captured:
        console.print(table)
    lines = [headline(f"ladder {ladder_page.title(data)}"), "", captured.get().rstrip(), ""]
    lines += [row("note", note) for note in ladder_page.notes(data)]
    lines += [row(name, reason) for name, reason in ladder_page.reasons(data)]
    if data["state"] != "complete":
        lines.append(row("state", f"{data['state']}; the same line again goes on from here"))
    lines.append(row("written", f"{shown(folder)}/ladder.md, ladder.json"))
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines())


_MOST_LINES = 8
_LESS_MEMORY = "precision=bf16, a smaller generation.height and width, or fewer pictures at once"


def _shortened(message: str) -> list[str]:
    """An error's first lines; a compiler's run to hundreds, and the log has them all."""
    first, *others = message.splitlines() or [""]
    rows = [row("error", first), *(row("", line.strip()) for line in others if line.strip())]
    lines = "\n".join(rows).splitlines()
    left = len(lines) - _MOST_LINES
    return (
        [*lines[:_MOST_LINES], row("", f"... {left} more lines in the log")] if left > 0 else lines
    )


def _worth_showing(report: dict[str, Any]) -> list[str]:
    """Effects in words, the move to the device left out: the first line has it."""
    return [text for text in report["applied"] if not text.startswith("device ")]


def shown(path: Path) -> str:
    """A path as a person would type it from here."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def plan_text(plan: Plan) -> str:
    """The plan for people."""
    run = plan.setting.run
    environment: Environment = plan.setting.environment
    config = run.to_dict()
    model = model_of(run)
    lines = [
        headline(
            f"plan for {model.title} on {environment.describe(plan.device)}: {words.choices(config)}"
        )
    ]
    for number, step in enumerate(plan.steps, 1):
        where = f" ({', '.join(step.components)})" if step.components else ""
        label = f"{number}. {step.stage.name.lower()}"
        lines.append(row(label, f"{step.pass_.key}: {step.does}{where}"))
    asked = run.generation
    size = (
        f"{asked.width}x{asked.height}" if asked.width and asked.height else "the model's own size"
    )
    steps = f"{asked.steps} steps" if asked.steps else "the model's own steps"
    pictures = len(asked.prompts) * asked.images_per_prompt
    lines.append(row("draws", f"{pictures} x {size}, {steps}, seed {asked.seed}"))
    lines += _published(config)
    lines += [row("notice", f"{n.choice}: {n.text}") for n in plan.notices]
    lines += [row("notice", text) for text in model.load_notices()]
    return "\n".join(lines)


def help_text() -> str:
    """What can be typed, with every slot, its options and its keys."""
    lines = [
        "fastdiff: choose, apply and measure optimizations of diffusion pipelines",
        "",
        "  python -m fastdiff [slot=option ...] [slot.key=value ...]",
        "  python -m fastdiff -m slot=option,option ...   every combination in turn",
        "  python -m fastdiff plan -m slot=option,option ...   which of them can run here",
        *_verbs(),
        "",
        "slots and their options",
    ]
    defaults = default_options()
    for slot, options in available().files.items():
        others = [option for option in options if option != defaults[slot]]
        lines.append(row(slot, ", ".join([f"{defaults[slot]} (default)", *others])))
    added = [*added_rows(), *problem_rows()]
    lines += ["", "options that plug-ins and folders of your own bring", *added] if added else []
    lines += ["", "the documents' experiments, as in experiment=sdxl_tutorial/int8"]
    rungs: dict[str, list[str]] = {}
    for experiment in in_order(found_experiments().files).values():
        rungs.setdefault(experiment.ladder, []).append(experiment.short)
    lines += [row(f"{ladder}/", ", ".join(short)) for ladder, short in rungs.items()]
    lines += ["", "keys, as in quant.min_in_features=64 (not every option of a slot has each)"]
    owners: dict[str, list[type]] = {slot: list(own.values()) for slot, own in schemas().items()}
    owners["generation"] = [Generation]
    for slot, kinds in owners.items():
        keys = [key for kind in kinds for key in keys_of(kind) if "." not in key]
        if keys:
            lines.append(row(f"{slot}.", ", ".join(dict.fromkeys(keys))))
    lines += [
        "",
        "also",
        row("device", "auto (default), cpu, cuda, mps"),
        row("ladder.", "rounds, limit_s, seed, dir: how `ladder` measures"),
        row("compare.", "pairs, lives, seed, dir: how `compare` measures"),
        row("", "allow_no_effect=true lets a run go on when a pass changed nothing"),
        row("", "profile=true writes a trace for Perfetto and lists the heaviest operators"),
        row(
            "--config-dir",
            "DIR: options of your own, as DIR/model/ours.yaml, to be trusted like code; also FASTDIFF_CONFIG_DIR=DIR",
        ),
        row("examples", "python -m fastdiff precision=bf16 compile=max_autotune quant=int8"),
        row("", "python -m fastdiff plan model=sdxl precision=fp16 qkv=fused"),
        row("", "python -m fastdiff model=local model.path=DIR generation.steps=20"),
    ]
    return "\n".join(lines)


def added_rows() -> list[str]:
    """Options that don't ship, each with what brings it."""
    return [row(f"{file.slot}=", f"{file.name}: {_bringer(file)}") for file in added_files()]


def _bringer(file: OptionFile) -> str:
    if isinstance(file, PluginOption):
        return f"{file.plugin.distribution} {file.plugin.version}"
    return shown(file.path)


def problem_rows() -> list[str]:
    """What is wrong with options and experiments of plug-ins and folders; every other command is refused for it."""
    problems = (*available().problems, *found_experiments().problems)
    return [
        row("problem" if not number else "", line.strip())
        for text in problems
        for number, line in enumerate(text.splitlines())
    ]


def _verbs() -> list[str]:
    """The commands, the text below where both don't fit in a line."""
    lines = []
    for verb, text in VERBS.items():
        whole = f"  python -m fastdiff {verb:<8} [...]   {text}"
        lines += [whole] if len(whole) <= WIDTH else [whole[: -len(text)].rstrip(), f"      {text}"]
    return lines


class LineProgress:
    """Progress without a terminal: one plain line whenever something new begins."""

    def __init__(self) -> None:
        self._last = ""

    def __enter__(self) -> LineProgress:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def say(self, message: str) -> None:
        if message != self._last:
            print(f"  {message} ...", file=sys.stderr, flush=True)
            self._last = message

    def tell(self, phase: str, done: int, of: int) -> None:
        if phase != "first call":
            self.say(phase)


class BarProgress:
    """Progress on a terminal: one line with a spinner, what is going on, and the time it has taken."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            refresh_per_second=2,  # a busier line would take time from what is being timed
        )
        self._task = self._bar.add_task("starting", total=None)
        self._phase = ""

    def __enter__(self) -> BarProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, message: str) -> None:
        self._phase = message
        self._bar.reset(self._task, description=message, total=None)

    def tell(self, phase: str, done: int, of: int) -> None:
        if phase == "first call":
            phase = self._phase if self._phase in ("compiling", "first call") else phase
        elif phase != self._phase:
            self.say(phase)
        self._bar.update(self._task, description=phase, completed=done, total=of or None)


def progress() -> LineProgress | BarProgress:
    """A bar on a terminal, lines elsewhere."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return BarProgress()
    return LineProgress()
