"""Moving the finished pipeline onto the device. Not a slot: `device=` decides."""

from __future__ import annotations

from typing import Any

from fastdiff.passes import base
from fastdiff.passes.effects import Effect
from fastdiff.script import Script, literal


class Place(base.Pass):
    key = "device"
    stage = base.Stage.PLACE
    fidelity = base.Fidelity.EXACT
    does = "move every component onto the device"

    def components(self, setting: base.Setting) -> tuple[str, ...]:
        return setting.weighty()

    def apply(self, pipeline: Any, context: base.Context) -> Effect:
        import torch

        if context.device == "cpu":
            return Effect(self.key, 0, "modules", already=True)
        pipeline.to(context.device)
        moved = sum(isinstance(part, torch.nn.Module) for part in pipeline.components.values())
        return Effect(self.key, moved, f"components on {context.device}")

    def script(self, script: Script, setting: base.Setting) -> None:
        if setting.device != "cpu":
            script.then(f"pipe.to({literal(setting.device)})")
