"""What tests of measuring share."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fake_clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of this process, which stands still unless a test moves it."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


@pytest.fixture(scope="session")
def built() -> Any:
    """`built(plan)`: the pipeline of a plan, and how it is to be called."""

    def building(plan: Any) -> tuple[Any, Any]:
        from fastdiff.planning.build import build

        return build(plan).pipeline, plan.setting.run.generation

    return building
