"""The report of a run before anything of it is measured, and what a report says of the machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastdiff.choices.options import origins
from fastdiff.config import PROVENANCE, RunConfig, fingerprint
from fastdiff.machine import hardware, nvml, software
from fastdiff.machine.environment import FASTDIFF_VERSION, this_machine
from fastdiff.machine.software import git_commit
from fastdiff.measuring.fields import MeasuredOn, PlannedPass, Report
from fastdiff.models.sources import files_identity, model_of
from fastdiff.planning.plan import Plan


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
) -> Report:
    """A report with every field in its place and nothing measured yet."""
    device = plan.device if plan else this_machine().device(config.device)
    return Report(
        run_id=run_id(config, device),
        config=config.to_dict(),
        environment=MeasuredOn.of(_without_torch(device)),
        started_at=started_at,
        overrides=overrides,
        origins=origins(config.choices),
        plan=[PlannedPass.of(step) for step in plan.to_dict()] if plan else None,
        notices=[f"{n.choice}: {n.text}" for n in plan.notices] if plan else [],
    )


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


def measured_on(device: str) -> MeasuredOn:
    """The machine as the run's own process sees it."""
    import torch

    files = hardware.Files()
    seen = _without_torch(device) | {"threads": torch.get_num_threads()}
    if device == "cuda":
        seen["device_name"] = torch.cuda.get_device_name()
        seen["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
    return MeasuredOn.of(
        {
            **seen,
            **software.git_state(),
            "system": hardware.system(files, os.environ),
            "processor": hardware.processor(files),
            "host_memory": hardware.host_memory(files),
            "gpu": _gpu() if device == "cuda" else None,
            "packages": software.packages(),
            "torch_build": software.torch_build(),
            "torch_settings": software.torch_settings(),
            "process_flags": software.process_flags(),
            "cpp_compiler": software.cpp_compiler(os.environ),
            "environment_variables": software.variables(os.environ),
        }
    )


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
