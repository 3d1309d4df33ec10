"""`sweep.key=value`, as typed."""

from __future__ import annotations

import pytest

from fastdiff.errors import UsageError
from fastdiff.runs.sweep.how import How, read_how


def test_words_of_the_sweep_are_told_from_the_others() -> None:
    words = ["quant=none,int8", "sweep.timeout_s=600", "sweep.name=a.b-c_1", "hydra/launcher=ray"]
    how, others = read_how(words)
    assert how == How(name="a.b-c_1", timeout_s=600.0)
    assert others == ["quant=none,int8", "hydra/launcher=ray"]
    assert read_how([]) == (How(), [])


def test_every_key_has_a_value_and_the_last_one_counts() -> None:
    how, _ = read_how(
        [
            *("sweep.dir=~/a folder, mine", "sweep.timeout_s=null", "sweep.memory_limit_gb=1.5"),
            *("sweep.retry=all", "sweep.retry=none", "sweep.accept_changes=true"),
        ]
    )
    assert how == How(None, "~/a folder, mine", None, 1.5, "none", True)
    assert read_how(["sweep.name=null", "sweep.dir=null"])[0] == How()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep.timeout=5"], "sweep has no key 'timeout'\n  did you mean: sweep.timeout_s"),
        (
            ["sweep.colour=red"],
            "sweep has no key 'colour'\n  it has: name, dir, timeout_s, memory_limit_gb, retry, accept_changes",
        ),
        (["sweep.name"], "sweep has no key 'name'\n  did you mean: sweep.name"),
        (
            ["sweep.dir="],
            "sweep.dir can't be '': it must be a folder or null\n  for example: sweep.dir=DIR",
        ),
        (
            ["sweep.name=a b"],
            "sweep.name can't be 'a b': it must be letters, digits, '.', '_' and '-' (sweep.dir=DIR takes any folder) or null\n  for example: sweep.name=NAME",
        ),
        (
            ["sweep.memory_limit_gb=inf"],
            "sweep.memory_limit_gb can't be 'inf': it must be a number above 0 or null\n  for example: sweep.memory_limit_gb=8",
        ),
        (
            ["sweep.timeout_s=nan"],
            "sweep.timeout_s can't be 'nan': it must be a number above 0 or null\n  for example: sweep.timeout_s=3600",
        ),
        (["sweep.retry=al"], "sweep.retry can't be 'al'\n  did you mean: sweep.retry=all"),
        (
            ["sweep.accept_changes=1"],
            "sweep.accept_changes can't be '1': it must be true or false\n  for example: sweep.accept_changes=true",
        ),
        (
            ["sweep.name=a", "sweep.dir=b"],
            "sweep.name and sweep.dir both say where the sweep is kept\n  instead: one of them",
        ),
    ],
)
def test_what_cant_be_read_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_how(words)
    assert str(refused.value) == said
