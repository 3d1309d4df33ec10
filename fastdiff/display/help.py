"""What --help prints."""

from __future__ import annotations

from fastdiff.choices.experiments import found_experiments, in_order
from fastdiff.choices.options import (
    OptionFile,
    PluginOption,
    added_files,
    available,
    default_options,
    every_key,
)
from fastdiff.choices.verbs import VERBS
from fastdiff.config import SLOTS
from fastdiff.display.layout import WIDTH, labelled, shown


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
        lines.append(labelled(slot, ", ".join([f"{defaults[slot]} (default)", *others])))
    added = [*added_rows(), *problem_rows()]
    lines += ["", "options that plug-ins and folders of your own bring", *added] if added else []
    lines += ["", "the documents' experiments, as in experiment=sdxl_tutorial/int8"]
    rungs: dict[str, list[str]] = {}
    for experiment in in_order(found_experiments().files).values():
        rungs.setdefault(experiment.ladder, []).append(experiment.short)
    lines += [
        labelled(f"{ladder}/" if ladder else "your own", ", ".join(short))
        for ladder, short in rungs.items()
    ]
    lines += ["", "keys, as in quant.min_in_features=64 (not every option of a slot has each)"]
    for slot in (*SLOTS, "generation"):
        keys = [key.partition(".")[2] for key in every_key() if key.startswith(f"{slot}.")]
        if bare := [key for key in keys if "." not in key]:
            lines.append(labelled(f"{slot}.", ", ".join(bare)))
    lines += [
        "",
        "also",
        labelled("device", "auto (default), cpu, cuda, mps"),
        labelled(
            "sweep.",
            "name, dir, timeout_s, memory_limit_gb, retry, accept_changes: how `-m` goes about it",
        ),
        labelled("ladder.", "rounds, limit_s, seed, dir: how `ladder` measures"),
        labelled("compare.", "pairs, lives, seed, dir: how `compare` measures"),
        labelled("verify.", "tolerance, tolerance_db: how `recipe verify` judges"),
        labelled("", "allow_no_effect=true lets a run go on when a pass changed nothing"),
        labelled("", "profile=true writes a trace for Perfetto and lists the heaviest operators"),
        labelled(
            "--config-dir",
            "DIR: options of your own, as DIR/model/ours.yaml, to be trusted like code; also FASTDIFF_CONFIG_DIR=DIR",
        ),
        labelled("examples", "python -m fastdiff precision=bf16 compile=max_autotune quant=int8"),
        labelled("", "python -m fastdiff plan model=sdxl precision=fp16 qkv=fused"),
        labelled("", "python -m fastdiff model=local model.path=DIR generation.steps=20"),
    ]
    return "\n".join(lines)


def added_rows() -> list[str]:
    """Options that don't ship, each with what brings it."""
    return [labelled(f"{file.slot}=", f"{file.name}: {_bringer(file)}") for file in added_files()]


def _bringer(file: OptionFile) -> str:
    if isinstance(file, PluginOption):
        return f"{file.plugin.distribution} {file.plugin.version}"
    return shown(file.path)


def problem_rows() -> list[str]:
    """What is wrong with options and experiments of plug-ins and folders; every other command is refused for it."""
    problems = (*available().problems, *found_experiments().problems)
    return [
        labelled("problem" if not number else "", line.strip())
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
