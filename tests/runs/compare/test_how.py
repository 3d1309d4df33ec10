"""`compare.key=value` as typed."""

from __future__ import annotations

import pytest

from fastdiff.errors import UsageError
from fastdiff.runs.compare.how import How, read_how


def test_keys_are_read_and_the_other_words_left() -> None:
    how, others = read_how(["", "compile=regional", "compare.pairs=30", "compare.seed=4", "x=1"])
    assert how == How(pairs=30, lives=5, seed=4)
    assert others == ["", "compile=regional", "x=1"]
    assert read_how(["compare.dir=here"])[0].dir == "here"
    assert read_how(["compare.dir=null"])[0].dir is None
    assert read_how([])[0] == How(pairs=20, lives=5, seed=0, dir=None)
    assert read_how(["compare.lives=3"])[0].lives == 3


@pytest.mark.parametrize(("pairs", "lives"), [(6, 3), (9, 4), (10, 5), (3, 1), (1, 1)])
def test_few_pairs_are_played_in_fewer_lives(pairs: int, lives: int) -> None:
    assert read_how([f"compare.pairs={pairs}"])[0].lives == lives


def test_more_lives_than_pairs_allow_are_refused() -> None:
    with pytest.raises(UsageError) as raised:
        read_how(["compare.lives=5", "compare.pairs=6"])
    assert str(raised.value) == (
        "compare.lives=5 needs 10 pairs, two for each life, and there are 6\n"
        "  instead: compare.pairs=10, or compare.lives=3"
    )
    assert read_how(["compare.lives=1", "compare.pairs=1"])[0].lives == 1


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("compare.pair=3", "compare has no key 'pair'\n  did you mean: compare.pairs"),
        ("compare.xyz=3", "compare has no key 'xyz'\n  it has: pairs, lives, seed, dir"),
        ("compare.pairs", "compare has no key 'pairs'\n  did you mean: compare.pairs"),
        (
            "compare.pairs=0",
            "compare.pairs can't be '0': it must be a whole number of at least 1\n  for example: compare.pairs=20",
        ),
        (
            "compare.pairs=-3",
            "compare.pairs can't be '-3': it must be a whole number of at least 1\n  for example: compare.pairs=20",
        ),
        (
            "compare.pairs=2.5",
            "compare.pairs can't be '2.5': it must be a whole number of at least 1\n  for example: compare.pairs=20",
        ),
        (
            "compare.lives=0",
            "compare.lives can't be '0': it must be a whole number of at least 1\n  for example: compare.lives=5",
        ),
        (
            "compare.seed=x",
            "compare.seed can't be 'x': it must be a whole number of at least 0\n  for example: compare.seed=0",
        ),
        (
            "compare.dir=",
            "compare.dir can't be '': it must be a folder or null\n  for example: compare.dir=DIR",
        ),
    ],
)
def test_what_can_not_be_read_is_refused(word: str, text: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_how([word])
    assert str(raised.value) == text
