"""A comparison for people: the lines on the screen, and `comparison.md`."""

from __future__ import annotations

import shlex
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fastdiff.choices.folders import flags_in_use
from fastdiff.display import words
from fastdiff.display.layout import headline, labelled, shown
from fastdiff.machine.files import write_text
from fastdiff.measuring.fields import MeasuredOn, PeakMemory, Quality


def write_comparison_page(folder: Path, data: dict[str, Any]) -> None:
    """Write `comparison.md` beside `comparison.json`."""
    write_text(folder / "comparison.md", render(data))


def title(data: dict[str, Any]) -> str:
    """What was compared, and where."""
    environment = data["environment"]
    if not environment:
        return f"compare on {data['model']}: nothing measured yet"
    return f"compare on {data['model']}: {words.device(MeasuredOn.of(environment))}"


def lines(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Labels and texts, the same on the screen and on the page: what was measured, and what it says."""
    found = [(name, _side(side)) for name, side in data["sides"].items()]
    if data["same_run"]:
        found.append(("", "both sides are the same run: this compares it with itself"))
    if data["state"] == "complete":
        found += [("result", result(data)), *_noise(data)]
    else:
        found.append(("state", f"{data['state']}: no verdict; {_counted(data)}"))
    found.append(("turns", turns(data)))
    if data["quality"]:
        found.append(("quality", f"B: {words.quality(Quality.of(data['quality']))}"))
    for name, side in data["sides"].items():
        if side["applied"]:
            found.append((f"applied, {name}", words.applied(side["applied"])))
    found += [("notice", text) for text in _notices(data)]
    return found


def _side(side: dict[str, Any]) -> str:
    latency = side["latency_s"]
    if latency["median"] is None:
        return f"{side['title']}: not timed"
    spread = f"p10 {words.seconds(latency['p10'])}, p90 {words.seconds(latency['p90'])}"
    memory = words.device_peak(PeakMemory.of(side["peak_memory_bytes"]))
    return f"{side['title']}: {words.seconds(latency['median'])} ({spread}), {memory}"


def result(data: dict[str, Any]) -> str:
    """The verdict in words, and of whom it speaks."""
    if data["ratio"] is None or data["lives"] > 1:
        return _verdict(data)
    return (
        f"{_verdict(data)}; this speaks of these processes alone, which have their own luck with "
        "memory: compare.lives=5 starts them anew"
    )


def _verdict(data: dict[str, Any]) -> str:
    ratio = data["ratio"]
    if ratio is None:
        return (
            f"no verdict: {data['pairs']} pairs are too few; from {data['fewest_pairs']} on there is "
            "an interval"
        )
    if data["verdict"] == "no difference":
        return (
            f"no difference: the interval of the ratio holds 1: {_interval(ratio)}; one below "
            f"{_percent(data['resolution'])} would not have been seen"
        )
    if data["verdict"] == "unclear":
        return (
            f"can't be told: B is {_interval(ratio)} times as fast as A, and the machine is too noisy: "
            "A strays as far from itself"
        )
    if data["verdict"] == "faster":
        return f"B is {_interval(ratio)} times as fast as A"
    slower = {
        "ratio": 1 / ratio["ratio"],
        "ci95_low": 1 / ratio["ci95_high"],
        "ci95_high": 1 / ratio["ci95_low"],
    }
    return f"B takes {_interval(slower)} times as long as A"


def _percent(part: float) -> str:
    """`32 %`, and with a decimal below ten."""
    return f"{100 * part:.{0 if part >= 0.0995 else 1}f} %"


def _interval(ratio: dict[str, float]) -> str:
    return f"{ratio['ratio']:.3f} [{ratio['ci95_low']:.3f}, {ratio['ci95_high']:.3f}]"


def _noise(data: dict[str, Any]) -> list[tuple[str, str]]:
    """A against itself, and what that means."""
    noise = data["noise"]
    if noise is None:
        return []
    said = f"A against itself {_interval(noise)}"
    if not noise["ci95_low"] <= 1 <= noise["ci95_high"]:
        why = "by chance, as once in 20, or " if data["lives"] > 1 else "the processes' luck, or "
        said += f": that doesn't hold 1: {why}something else was going on; doubt differences of this size"
    return [("noise floor", said)]


def turns(data: dict[str, Any]) -> str:
    """How the turns were taken, and why not with all processes alive."""
    lives = f" in {data['lives']} lives, each of new processes" if data["lives"] > 1 else ""
    if data["seats"] == "all live":
        return (
            f"{data['pairs']} pairs of calls{lives}; A, B and A again live, each round in random order, the "
            "next backwards"
        )
    if data["seats"] == "two live at a time":
        return (
            f"{data['pairs']} pairs of calls of A and B, and as many of A and A again{lives}, two live at a "
            f"time: all three don't fit: {data['seats_reason']}"
        )
    return (
        f"{len(data['rounds'])} pairs of visits, one process after the other, each with "
        f"{data['calls_a_turn']} calls: both don't fit: {data['seats_reason']}"
    )


def _counted(data: dict[str, Any]) -> str:
    """How many rounds are whole, and in which life it ended."""
    whole = [r for r in data["rounds"] if len(r["seconds"]) == len(r["order"])]
    if data["seats"] == "one after the other":
        return f"{len(whole)} of {data['lives']} pairs of visits were measured"
    counted = f"{len(whole)} of {data['pairs']} pairs were measured"
    if data["lives"] == 1 or not data["rounds"]:
        return counted
    return f"{counted}, up to life {data['rounds'][-1]['life']} of {data['lives']}"


def _notices(data: dict[str, Any]) -> list[str]:
    """Of both sides, those of both said once."""
    ours, theirs = (data["sides"][name]["notices"] for name in ("A", "B"))
    found = [text if text in theirs else f"A: {text}" for text in ours]
    found += [f"B: {text}" for text in theirs if text not in ours]
    found += data["notices"]
    if data["again"]["identical"] is False:
        found.append(
            "A draws another picture in a second process: it doesn't repeat itself exactly"
        )
    return found


def render(data: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    page = [f"# {title(data)}", ""]
    page += [f"- **{label}** {text}" if label else f"- {text}" for label, text in lines(data)]
    if data["error"]:
        page += ["", "## What went wrong", "", str(data["error"]["message"]), "", "```"]
        page += [*data["error"]["log_tail"], "```"]
    page += ["", "## Every life", "", *_lives(data)]
    page += ["", "## Every turn, in seconds", "", *_table(data["rounds"])]
    page += ["", "## Pictures", ""]
    for name, side in data["sides"].items():
        page += [f"![{name}]({image['path']})" for image in side["images"]]
    page += ["", "## Again", "", "```", _command(data), "```", ""]
    return "\n".join(page)


def _lives(data: dict[str, Any]) -> list[str]:
    """The ratios of each life by itself."""
    if not data["ratio_by_life"]:
        return ["None."]
    head = ["| life | B is so many times as fast as A | A against itself |", "|---|---|---|"]
    both = zip_longest(data["ratio_by_life"], data["noise_by_life"])
    return head + [
        f"| {life} | {ratio:.3f} | {'-' if noise is None else f'{noise:.3f}'} |"
        for life, (ratio, noise) in enumerate(both, 1)
    ]


def _table(rounds: list[dict[str, Any]]) -> list[str]:
    if not rounds:
        return ["None."]
    names = sorted(rounds[0]["order"])
    head = ["| life | order | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 2)]
    return head + [
        f"| {r['life']} | {', '.join(r['order'])} | "
        + " | ".join(f"{r['seconds'][n]:.4f}" if n in r["seconds"] else "-" for n in names)
        + " |"
        for r in rounds
    ]


def _command(data: dict[str, Any]) -> str:
    typed = [" ".join(map(shlex.quote, data["sides"][name]["overrides"])) for name in ("A", "B")]
    command = ["python -m fastdiff compare", *map(shlex.quote, typed)]
    command += map(shlex.quote, flags_in_use())
    command.append(f"compare.pairs={data['pairs']}")
    if data["seats"] != "one after the other":  # there each visit is a life
        command.append(f"compare.lives={data['lives']}")
    return " ".join(command + ([f"compare.seed={data['seed']}"] if data["seed"] else []))


def comparison_text(data: dict[str, Any], folder: Path) -> str:
    """The end of a comparison: both sides, what they say, and how it was measured."""
    found = [*lines(data), ("written", f"{shown(folder)}/comparison.md, comparison.json")]
    return "\n".join([headline(title(data)), *(labelled(*each) for each in found)])
