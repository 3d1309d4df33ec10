"""Pairs shared out over lives, and what is kept of what processes said in all of them."""

from __future__ import annotations

from typing import Any

import pytest
from fake_players import ended_of, quality_of, ready_of

from fastdiff.runs.compare.lives import Heard, shared_out


@pytest.mark.parametrize(
    ("pairs", "lives", "sizes"),
    [
        (20, 5, [4, 4, 4, 4, 4]),
        (30, 4, [8, 8, 8, 6]),
        (21, 5, [4, 4, 4, 4, 5]),
        (6, 5, [2, 2, 2]),
        (7, 5, [2, 2, 3]),
        (3, 5, [3]),
        (1, 5, [1]),
        (20, 1, [20]),
    ],
)
def test_pairs_are_shared_out_by_twos(pairs: int, lives: int, sizes: list[int]) -> None:
    assert shared_out(pairs, lives) == sizes


def test_the_first_life_tells_what_a_run_costs() -> None:
    heard = Heard()
    heard.started(ready_of(load_s=1.0, notices=["never steady"]))
    heard.started(ready_of(load_s=2.0, notices=["never steady", "another"]))
    assert heard.ready["load_s"] == 1.0
    assert heard.ready["notices"] == ["never steady", "another"], "of all lives"


def test_the_distance_is_of_the_first_process_that_had_pictures_to_compare_with() -> None:
    heard = Heard()
    for ssim in (None, 0.5, 0.7):
        heard.started(ready_of(quality=quality_of(ssim=ssim)))
    assert heard.ready["quality"]["ssim"] == 0.5


@pytest.mark.parametrize(
    ("said", "identical"),
    [
        ([None, None], None),
        ([None, True, True], True),
        ([True, False, True], False),
        ([False], False),
    ],
)
def test_pictures_are_identical_if_every_process_says_so(
    said: list[bool | None], identical: bool | None
) -> None:
    heard = Heard()
    for word in said:
        heard.started(ready_of(quality={**quality_of(), "identical": word}))
    assert heard.identical is identical


def test_last_words_are_added_up() -> None:
    heard = Heard()
    assert heard.ended == {}
    words: list[dict[str, Any]] = [
        ended_of(5, graphs_while_timing=1),
        ended_of(7),
        ended_of(6, graphs_while_timing=2, same_picture=False),
    ]
    for word in words:
        heard.stopped(word)
    assert heard.ended == ended_of(7, graphs_while_timing=3, same_picture=False)
