"""What a pass is said to have done, and the words that a run ends with."""

from __future__ import annotations

import pytest

from fastdiff.errors import Status
from fastdiff.passes.effects import Effect


@pytest.mark.parametrize(
    ("effect", "words", "empty"),
    [
        (Effect("quant.int8", 63, "linears"), "quant.int8 63 linears", False),
        (Effect("quant.int8", 0, "linears"), "quant.int8 0 linears", True),
        (
            Effect("scheduler.pndm", 0, "schedulers", already=True),
            "scheduler.pndm already so",
            False,
        ),
        (
            Effect("precision.tf32", 1, "matmul.allow_tf32", flag=True),
            "precision.tf32 matmul.allow_tf32",
            False,
        ),
        (
            Effect("compile.default", 2, "graphs", details={"summary": "0 breaks"}),
            "compile.default 2 graphs, 0 breaks",
            False,
        ),
    ],
)
def test_an_effect_in_words(effect: Effect, words: str, empty: bool) -> None:
    assert str(effect) == words
    assert effect.empty is empty


def test_an_effect_as_data() -> None:
    effect = Effect("qkv.fused", 14, "blocks", details={"components": {"unet": 14}})
    assert effect.to_dict() == {
        "pass": "qkv.fused",
        "changed": 14,
        "unit": "blocks",
        "details": {"components": {"unet": 14}, "already": False, "flag": False},
    }


def test_the_statuses_are_those_that_other_tools_read() -> None:
    assert [status.value for status in Status] == [
        "ok",
        "incompatible",
        "failed",
        "oom",
        "timeout",
        "crashed",
        "invalid_output",
        "interrupted",
    ]
