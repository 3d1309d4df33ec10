"""A comparison in words: every verdict, every way of taking turns, in 80 columns."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from fake_players import quality_of

from fastdiff.display import compare as page
from fastdiff.display.layout import WIDTH, headline, labelled


def interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"ratio": value, "ci95_low": low, "ci95_high": high}


def side(title: str, seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "title": title,
        "overrides": title.split(),
        "notices": [],
        "applied": ["attention.sdpa 14 kernel calls a step, 14 flash", "device cpu"],
        "latency_s": {"median": seconds, "p10": seconds * 0.9, "p90": seconds * 1.1},
        "peak_memory_bytes": {"device_allocated": None, "host": 6 * 10**8},
        "images": [{"path": "a.png"}],
        **more,
    }


DATA: dict[str, Any] = {
    "state": "complete",
    "error": None,
    "verdict": "faster",
    "ratio": interval(1.23, 1.2, 1.26),
    "noise": interval(1.002, 0.995, 1.01),
    "resolution": None,
    "notices": [],
    "pairs": 20,
    "lives": 5,
    "ratio_by_life": [1.23, 1.25],
    "noise_by_life": [1.01],
    "fewest_pairs": 6,
    "seed": 0,
    "seats": "all live",
    "seats_reason": None,
    "calls_a_turn": 1,
    "rounds": [
        {
            "life": 1,
            "order": ["B", "A", "A again"],
            "seconds": {"A": 0.7, "B": 0.57, "A again": 0.7},
        }
    ],
    "same_run": False,
    "model": "shapes",
    "quality": quality_of(identical=False),
    "sides": {
        "A": side("the defaults", 0.7, overrides=[]),
        "B": side("compile=regional", 0.57, images=[{"path": "b.png"}]),
    },
    "again": {"identical": True},
    "environment": {"device": "cpu", "threads": 2, "device_name": "a processor"},
}


def data(**more: Any) -> dict[str, Any]:
    return copy.deepcopy(DATA) | more


def screen(found: dict[str, Any]) -> str:
    """What the command line prints of it."""
    lines = [
        headline(page.title(found)),
        *(labelled(label, text) for label, text in page.lines(found)),
    ]
    return "\n".join(lines)


def test_the_screen_of_a_comparison() -> None:
    assert screen(data()) == (
        "fastdiff  compare on shapes: cpu, 2 threads\n"
        "  A             the defaults: 0.700 s (p10 0.630 s, p90 0.770 s), 0.6 GB\n"
        "  B             compile=regional: 0.570 s (p10 0.513 s, p90 0.627 s), 0.6 GB\n"
        "  result        B is 1.230 [1.200, 1.260] times as fast as A\n"
        "  noise floor   A against itself 1.002 [0.995, 1.010]\n"
        "  turns         20 pairs of calls in 5 lives, each of new processes; A, B and A\n"
        "                again live, each round in random order, the next backwards\n"
        "  quality       B: PSNR 40.0 dB, SSIM 0.9900 against A\n"
        "  applied, A    attention.sdpa 14 kernel calls a step, 14 flash\n"
        "  applied, B    attention.sdpa 14 kernel calls a step, 14 flash"
    )


@pytest.mark.parametrize(
    ("verdict", "ratio", "text"),
    [
        (
            "slower",
            interval(0.8, 0.75, 0.9),
            "B takes 1.250 [1.111, 1.333] times as long as A",
        ),
        (
            "no difference",
            interval(1.002, 0.99, 1.01),
            "no difference: the interval of the ratio holds 1: 1.002 [0.990, 1.010]; one below 1.0 % "
            "would not have been seen",
        ),
        (
            "unclear",
            interval(1.02, 1.01, 1.03),
            "can't be told: B is 1.020 [1.010, 1.030] times as fast as A, and the machine is too "
            "noisy: A strays as far from itself",
        ),
        (None, None, "no verdict: 20 pairs are too few; from 6 on there is an interval"),
    ],
)
def test_every_verdict_in_words(
    verdict: str | None, ratio: dict[str, float] | None, text: str
) -> None:
    assert page.result(data(verdict=verdict, ratio=ratio, resolution=0.0101)) == text


def test_a_wide_interval_says_what_it_could_not_have_shown() -> None:
    found = data(verdict="no difference", ratio=interval(1.05, 0.843, 1.317), resolution=0.317)
    assert page.result(found).endswith("; one below 32 % would not have been seen")


def test_a_noise_floor_that_does_not_hold_one_is_said_plainly() -> None:
    for lives, why in ((5, "by chance, as once in 20"), (1, "the processes' luck")):
        said = dict(page.lines(data(noise=interval(0.93, 0.89, 0.95), lives=lives)))
        assert said["noise floor"] == (
            f"A against itself 0.930 [0.890, 0.950]: that doesn't hold 1: {why}, or something else was "
            "going on; doubt differences of this size"
        )


def test_a_single_life_speaks_of_its_processes_alone() -> None:
    assert page.result(data(lives=1)) == (
        "B is 1.230 [1.200, 1.260] times as fast as A; this speaks of these processes alone, which "
        "have their own luck with memory: compare.lives=5 starts them anew"
    )
    assert page.turns(data(lives=1)) == (
        "20 pairs of calls; A, B and A again live, each round in random order, the next backwards"
    )
    few = data(lives=1, ratio=None, verdict=None)
    assert page.result(few) == "no verdict: 20 pairs are too few; from 6 on there is an interval"


def test_two_at_a_time_is_said_with_its_reason() -> None:
    found = data(seats="two live at a time", seats_reason="A needs about 1.0 GB")
    assert page.turns(found) == (
        "20 pairs of calls of A and B, and as many of A and A again in 5 lives, each of new "
        "processes, two live at a time: all three don't fit: A needs about 1.0 GB"
    )


def test_a_notice_of_both_is_said_once() -> None:
    found = data()
    found["sides"]["A"]["notices"] = ["both", "ours"]
    found["sides"]["B"]["notices"] = ["both", "theirs"]
    found["notices"] = ["the machine's"]
    found["again"] = {"identical": False}
    assert [text for label, text in page.lines(found) if label == "notice"] == [
        "both",
        "A: ours",
        "B: theirs",
        "the machine's",
        "A draws another picture in a second process: it doesn't repeat itself exactly",
    ]


def test_everything_fits_80_columns() -> None:
    found = data(verdict="unclear", noise=interval(0.93, 0.89, 0.95), seats="one after the other")
    found["seats_reason"] = "A needs about 41.0 GB and B 41.0 GB, and 70.0 GB are there for them"
    assert max(len(line) for line in screen(found).splitlines()) <= WIDTH


def test_the_page_has_the_turns_both_pictures_and_the_command(tmp_path: Path) -> None:
    found = data(seed=3)
    found["rounds"].append({"life": 2, "order": ["A", "A again"], "seconds": {"A": 0.7}})
    page.write_comparison_page(tmp_path, found)
    text = (tmp_path / "comparison.md").read_text()
    assert text.startswith("# compare on shapes: cpu, 2 threads\n\n- **A** the defaults: 0.700 s")
    assert "| life | order | A | A again | B |" in text
    assert "## Every life\n\n" in text
    assert "|---|---|---|\n| 1 | 1.230 | 1.010 |\n| 2 | 1.250 | - |" in text
    assert "| 1 | B, A, A again | 0.7000 | 0.7000 | 0.5700 |" in text
    assert "| 2 | A, A again | 0.7000 | - | - |" in text
    assert "![A](a.png)\n![B](b.png)" in text
    command = "python -m fastdiff compare '' compile=regional compare.pairs=20 compare.lives=5"
    assert f"{command} compare.seed=3\n" in text


def test_a_failure_is_on_the_page_with_its_log() -> None:
    error = {"player": "B", "status": "crashed", "message": "it died", "log_tail": ["a line"]}
    text = page.render(data(state="failed", error=error, rounds=[], ratio=None, noise=None))
    assert "## What went wrong\n\nit died\n\n```\na line\n```" in text
    assert "- **state** failed: no verdict; 0 of 20 pairs were measured" in text


def test_visits_are_counted_as_visits() -> None:
    found = data(state="interrupted", seats="one after the other", lives=8)
    assert dict(page.lines(found))["state"] == (
        "interrupted: no verdict; 1 of 8 pairs of visits were measured"
    )
    assert "compare.lives" not in page.render(found)
