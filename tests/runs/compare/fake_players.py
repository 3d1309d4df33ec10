"""Sides and players without a process behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastdiff.choices.compose import compose
from fastdiff.machine.environment import this_machine
from fastdiff.models.sources import model_of
from fastdiff.planning.plan import Plan, make_plan
from fastdiff.runs.compare.sides import Side, read_sides


def plan_of(words: Sequence[str]) -> Plan:
    run = compose(["device=cpu", *words])
    return make_plan(run, this_machine(), model_of(run).facts())


def sides_of(*words: str, available_bytes: int | None = None) -> tuple[Side, Side]:
    """Both sides as planned here; available_bytes: on a machine with so much memory left."""

    def plan(overrides: Sequence[str]) -> Plan:
        made = plan_of(overrides)
        if available_bytes is None:
            return made
        here = replace(made.setting.environment, available_memory_bytes=available_bytes)
        return replace(made, setting=replace(made.setting, environment=here))

    return read_sides(words, plan)


class Told:
    """Notes what a user would be told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.phases: list[tuple[str, int, int]] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def tell(self, phase: str, done: int, of: int) -> None:
        self.phases.append((phase, done, of))


def quality_of(identical: bool = True, **more: Any) -> dict[str, Any]:
    return {
        "reference_run_id": None,
        "reference": "A",
        "reason": None,
        "identical": identical,
        "psnr_db": None if identical else 40.0,
        "ssim": 1.0 if identical else 0.99,
        "max_abs_difference": 0.0 if identical else 0.1,
        **more,
    }


def ready_of(host_bytes: int = 10**9, **more: Any) -> dict[str, Any]:
    """What a player says before its first turn."""
    return {
        "effects": [],
        "applied": ["attention.sdpa 14 kernel calls a step", "device cpu"],
        "import_s": 1.0,
        "load_s": 0.5,
        "apply_s": 0.1,
        "first_call_s": 2.0,
        "compile_s": 0.0,
        "warmup_s": [1.0],
        "warmup": {"asked": 1, "calls": 1, "most": 10, "steady": True},
        "notices": [],
        "compile": {
            "graphs": 0,
            "graph_breaks": 0,
            "recompiles": 0,
            "reasons": [],
            "cache": "none",
        },
        "images": [{"path": "image-0.png", "sha256": "0"}],
        "latents_shape": [1, 4, 8, 8],
        "quality": quality_of(),
        "peak_memory_bytes": {
            "device_allocated": None,
            "device_reserved": None,
            "host": host_bytes,
        },
        "environment": {"device": "cpu", "device_name": "a processor", "threads": 1},
        "room": {
            "threads": 1,
            "interop_threads": 1,
            "affinity": [0],
            "processors": 2,
            "tick_s": 0.01,
        },
        "gpu_names": [],
        **more,
    }


def ended_of(host_bytes: int = 10**9, **more: Any) -> dict[str, Any]:
    """What a player says after its last turn."""
    memory = {"device_allocated": None, "device_reserved": None, "host": host_bytes}
    return {
        "peak_memory_bytes": memory,
        "graphs_while_timing": 0,
        "same_picture": True,
        **more,
    }
