"""The fields of `report.json`, and what a report says of the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdiff.choices.options import origins
from fastdiff.config import PROVENANCE, RunConfig, fingerprint
from fastdiff.latency import Latency
from fastdiff.machine import hardware, nvml, software
from fastdiff.machine.environment import FASTDIFF_VERSION, this_machine
from fastdiff.machine.files import SCHEMA
from fastdiff.machine.software import git_commit
from fastdiff.measuring import quality
from fastdiff.measuring.exactness import not_checked
from fastdiff.measuring.memory import memory_not_told
from fastdiff.measuring.parts import not_timed
from fastdiff.measuring.profiling import not_profiled
from fastdiff.measuring.roofline import no_roofline
from fastdiff.measuring.syncs import not_counted
from fastdiff.models.sources import files_identity, model_of
from fastdiff.planning.plan import Plan

_NOTHING = "nothing was measured"


def run_id(config: RunConfig, device: str) -> str:
    """Hash of the resolved config and of what in the environment changes a result."""
    here = this_machine()
    gpu = here.gpus[0].name if device == "cuda" and here.gpus else None
    versions = {**here.versions, "fastdiff": FASTDIFF_VERSION}
    choices = {
        key: value for key, value in config.to_dict().items() if key not in (*PROVENANCE, "profile")
    }
    return fingerprint([choices, device, gpu or here.cpu, here.threads, versions])


def weights_identity(run: RunConfig) -> str:
    """Hash of what tells the weights from others: the model's, and the files that its options name."""
    named: dict[str, Any] = {}
    for slot, _, option in run.options():
        path = getattr(option, "path", None)
        if slot != "model" and path:
            named[slot] = files_identity(Path(os.path.expanduser(path)))
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
        "origins": origins(config.choices),
        "plan": plan.to_dict() if plan else None,
        "notices": [f"{n.choice}: {n.text}" for n in plan.notices] if plan else [],
        "effects": [],
        "applied": [],
        "flags_at_start": None,
        "import_s": None,
        "load_s": None,
        "apply_s": None,
        "first_call_s": None,
        "compile_s": None,
        "warmup_s": [],
        "warmup": {"asked": None, "calls": 0, "most": None, "steady": None},
        "latency_s": nothing,
        "device_latency_s": nothing,
        "step_latency_s": Latency.by_call(()).to_dict(),
        "throughput_images_per_s": None,
        "peak_memory_bytes": {"device_allocated": None, "device_reserved": None, "host": None},
        "compile": {
            "graphs": 0,
            "graph_breaks": 0,
            "recompiles": 0,
            "reasons": [],
            "cache": "none",
            "graphs_while_timing": 0,
            "cuda_graphs": None,
            "cuda_graphs_skipped": None,
            "cuda_graphs_reasons": [],
            "cold_compile_s": None,
            "saved_s": None,
            "saved_reason": _NOTHING,
        },
        "conditions": {"host": None, "gpu": None},
        "memory_bytes": memory_not_told(_NOTHING),
        "parts_s": not_timed(_NOTHING),
        "roofline": no_roofline(_NOTHING),
        "profile": not_profiled(_NOTHING),
        "exactness": not_checked(_NOTHING),
        "syncs": not_counted(_NOTHING),
        "repeatable": {"identical": None, "max_abs_difference": None},
        "quality": {
            "reference_run_id": None,
            "reference": None,
            "reason": _NOTHING,
            **quality.NOTHING,
            "caption": {
                "of": None,
                "pictures": None,
                "right": None,
                "shapes_right": None,
                "score": None,
                "reason": _NOTHING,
            },
            "missed": [],
        },
        "images": [],
        "environment": _without_torch(device),
        "started_at": started_at,
        "finished_at": None,
    }


def _without_torch(device: str) -> dict[str, Any]:
    here = this_machine()
    gpu = here.gpus[0] if device == "cuda" and here.gpus else None
    return {
        "device": device,
        "device_name": gpu.name if gpu else here.cpu,
        "capability": ".".join(map(str, gpu.capability)) if gpu and gpu.capability else None,
        **here.versions,
        "python": here.python,
        "os": here.os,
        "threads": here.threads,
        "cpu": here.cpu,
        "memory_bytes": here.memory_bytes,
        "git": git_commit(),
    }


@dataclass(frozen=True)
class MeasuredOn:
    """The machine as the run's own process sees it."""

    device: str

    def to_dict(self) -> dict[str, Any]:
        import torch

        files = hardware.Files()
        seen = _without_torch(self.device) | {"threads": torch.get_num_threads()}
        seen |= software.git_state()
        seen["system"] = hardware.system(files, os.environ)
        seen["processor"] = hardware.processor(files)
        seen["host_memory"] = hardware.host_memory(files)
        seen["gpu"] = _gpu() if self.device == "cuda" else None
        seen["packages"] = software.packages()
        seen["torch_build"] = software.torch_build()
        seen["torch_settings"] = software.torch_settings()
        seen["process_flags"] = software.process_flags()
        seen["cpp_compiler"] = software.cpp_compiler(os.environ)
        seen["environment_variables"] = software.variables(os.environ)
        if self.device == "cuda":
            seen["device_name"] = torch.cuda.get_device_name()
            seen["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        return seen


def _gpu() -> dict[str, Any]:
    """The GPU that torch computes on: CUDA's numbers say nothing of which one that is, its UUID does."""
    import torch

    properties = torch.cuda.get_device_properties()
    names = nvml.gpu_names(properties)
    uuids = [name for name in names if name.startswith("GPU-")]
    addresses = [name for name in names if ":" in name]
    return {
        "uuid": next(iter(uuids), None),
        "pci_address": next(iter(addresses), None),
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "visible": torch.cuda.device_count(),
        **nvml.gpu_settings(names),
    }
