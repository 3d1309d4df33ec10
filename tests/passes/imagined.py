"""Plans of models and machines that are only told of."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastdiff.choices.compose import compose
from fastdiff.errors import PlanError
from fastdiff.machine.environment import TOOLS, Gpu, this_machine
from fastdiff.models.architectures import ARCHITECTURES
from fastdiff.models.facts import Component, ModelFacts
from fastdiff.models.sources import model_of
from fastdiff.planning.plan import Plan, make_plan

PACKAGES = ("DeepCache", "peft", "torchao", "triton", "xformers")
CPU = replace(this_machine(), gpus=(), has_mps=False, tools=TOOLS)
GPU = replace(CPU, gpus=(Gpu("NVIDIA H100", (9, 0), 80 * 2**30),), torch_cuda="12.8")
MACHINES = {"cpu": CPU, "mps": replace(CPU, has_mps=True), "cuda": GPU}
"""By the device that is asked for."""


def facts_of(model: Mapping[str, Any]) -> ModelFacts:
    """`like` a published model, and then its `pipeline` and the class of each part, or {class: its configuration}."""
    like = ARCHITECTURES[model["like"]].facts() if "like" in model else ModelFacts("", {})
    parts = dict(like.components)
    for name in model.keys() - {"like", "pipeline"}:
        told = model[name] if isinstance(model[name], dict) else {model[name]: {}}
        ((class_name, config),) = told.items()
        parts[name] = Component(name, "diffusers", class_name, 0, 0, config)
    return ModelFacts(model.get("pipeline", like.pipeline), parts)


def planned(
    typed: str,
    *,
    model: Mapping[str, Any] | None = None,
    device: str = "cpu",
    lacks: str | None = None,
) -> Plan:
    """The plan of what is typed, on a machine with every package but one. Raises PlanError.

    model: as `facts_of` takes it; without one the facts are those of the model that is typed.
    """
    run = compose([f"device={device}", *shlex.split(typed)])
    modules = {name: name != lacks for name in PACKAGES}
    facts = facts_of(model) if model else model_of(run).facts()
    return make_plan(run, replace(MACHINES[device], modules=modules), facts, calls=False)


def problems(plan: Any, *given: Any, **more: Any) -> list[tuple[str, str, str]]:
    """Choice, reason and way out of everything for which `plan(*given, **more)` is refused."""
    try:
        plan(*given, **more)
    except PlanError as error:
        return [(p.choice, p.reason, p.instead) for p in error.problems]
    return []
