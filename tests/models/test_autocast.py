"""Under torch.autocast nothing is built and nothing drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fastdiff.errors import RunError
from fastdiff.models.pictures import draw, refuse_autocast
from fastdiff.planning.build import build

AUTOCAST_IS_ON = (
    "torch.autocast is on (cpu): it casts at every operation, which is slower than weights in half precision, and it "
    "can paint pictures black\n"
    "  instead: leave torch.autocast out and take precision=fp16 or precision=bf16\n"
    "  source: https://huggingface.co/docs/diffusers/optimization/fp16"
)


def test_a_pipeline_is_not_built_under_autocast(shapes_plan: Callable[..., Any]) -> None:
    import torch

    plan = shapes_plan()
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RunError) as refused:
        build(plan)
    assert str(refused.value) == AUTOCAST_IS_ON


def test_no_picture_is_drawn_under_autocast(shapes_plain: Any) -> None:
    import torch

    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RunError) as refused:
        draw(shapes_plain.pipeline, shapes_plain.generation)
    assert str(refused.value) == AUTOCAST_IS_ON
    with torch.autocast("cpu", enabled=False):
        assert draw(shapes_plain.pipeline, shapes_plain.generation)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_autocast_for_any_kind_of_device_is_refused(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == kind)
    with pytest.raises(RunError, match=rf"torch\.autocast is on \({kind}\)"):
        refuse_autocast()
