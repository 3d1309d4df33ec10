"""The fields of `report.json`, and what a report says of the machine."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdiff import __version__
from fastdiff.config import RunConfig, fingerprint
from fastdiff.environment import this_machine
from fastdiff.models.sources import files_identity, model_of
from fastdiff.planning import Plan
from fastdiff.result import SCHEMA, Latency


def run_id(config: RunConfig, device: str) -> str:
    """Hash of the resolved config and of what in the environment changes a result."""
    machine = this_machine()
    gpu = machine.gpus[0].name if device == "cuda" and machine.gpus else None
    versions = {**machine.versions, "fastdiff": __version__}
    choices = {key: value for key, value in config.to_dict().items() if key != "experiment"}
    return fingerprint([choices, device, gpu or machine.cpu, machine.threads, versions])


def weights_identity(run: RunConfig) -> str:
    """Hash of what tells the weights from others: the model's, and the files that its options name."""
    named: dict[str, Any] = {}
    for slot, _, option in run.options():
        path = getattr(option, "path", None)
        if slot != "model" and path:
            named[slot] = files_identity(Path(path).expanduser())
    return fingerprint([model_of(run).identity(), named])


def blank_report(
    config: RunConfig, plan: Plan | None, overrides: list[str], started_at: str
) -> dict[str, Any]:
    """A report with every field in its place and nothing measured yet."""
    device = plan.device if plan else this_machine().device(config.device)
    nothing = Latency(()).to_dict()
    return {
        "schema": SCHEMA,
        "run_id": run_id(config, device),
        "status": None,
        "error": None,
        "overrides": overrides,
        "config": config.to_dict(),
        "plan": plan.to_dict() if plan else None,
        "notices": [f"{n.choice}: {n.text}" for n in plan.notices] if plan else [],
        "effects": [],
        "applied": [],
        "import_s": None,
        "load_s": None,
        "apply_s": None,
        "first_call_s": None,
        "compile_s": None,
        "warmup_s": [],
        "latency_s": nothing,
        "step_latency_s": nothing,
        "throughput_images_per_s": None,
        "peak_memory_bytes": {"device_allocated": None, "device_reserved": None, "host": None},
        "compile": {
            "graphs": 0,
            "graph_breaks": 0,
            "recompiles": 0,
            "reasons": [],
            "cache": "none",
            "graphs_while_timing": 0,
        },
        "syncs": {"per_step": None, "places": [], "reason": "nothing was measured"},
        "repeatable": {"identical": None, "max_abs_difference": None},
        "quality": {
            "reference_run_id": None,
            "reference": None,
            "reason": "nothing was measured",
            "identical": None,
            "psnr_db": None,
            "ssim": None,
            "max_abs_difference": None,
        },
        "images": [],
        "environment": _without_torch(device),
        "started_at": started_at,
        "finished_at": None,
    }


def _without_torch(device: str) -> dict[str, Any]:
    machine = this_machine()
    gpu = machine.gpus[0] if device == "cuda" and machine.gpus else None
    return {
        "device": device,
        "device_name": gpu.name if gpu else machine.cpu,
        "capability": ".".join(map(str, gpu.capability)) if gpu else None,
        **{name: machine.versions.get(name) for name in machine.versions},
        "python": machine.python,
        "os": machine.os,
        "threads": machine.threads,
        "cpu": machine.cpu,
        "memory_bytes": machine.memory_bytes,
        "git": git_commit(),
    }


@dataclass(frozen=True)
class MeasuredOn:
    """The machine as the run's own process sees it."""

    device: str

    def to_dict(self) -> dict[str, Any]:
        import torch

        seen = _without_torch(self.device) | {"threads": torch.get_num_threads()}
        seen["process_flags"] = {
            "matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        }
        seen["environment_variables"] = {
            name: os.environ[name]
            for name in sorted(os.environ)
            if re.match(
                r"(OMP|MKL|KMP)_|TORCH(INDUCTOR|DYNAMO)_|CUDA_VISIBLE_DEVICES|PYTORCH_", name
            )
        }
        if self.device == "cuda":
            seen["device_name"] = torch.cuda.get_device_name()
        return seen


def git_commit() -> str | None:
    """Commit of fastdiff's own checkout; None for an installed wheel."""
    folder = Path(__file__).parent.parent / ".git"
    try:
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        reference = folder / head.removeprefix("ref: ")
        if reference.is_file():
            return reference.read_text().strip()
        packed = (folder / "packed-refs").read_text()
    except OSError:
        return None
    found = re.search(rf"^(\w+) {re.escape(head.removeprefix('ref: '))}$", packed, re.MULTILINE)
    return found.group(1) if found else None
