"""Hydra's launchers, given the cells that can run: one after another here, or on a cluster.

This does what Hydra's own sweeper does, less its splitting of the overrides: a cell that can't be composed would end it.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdiff.choices.compose import register_schemas
from fastdiff.choices.hydras_keys import refused_by_name
from fastdiff.choices.overrides import quoted
from fastdiff.choices.refusals import explain
from fastdiff.config import CONF_DIR
from fastdiff.errors import UsageError, nearest
from fastdiff.machine.environment import this_machine
from fastdiff.runs.sweep.job import Job

HERE = ("basic", "joblib", "submitit_local")
"""Launchers whose jobs run on this machine."""

SHIPPED = {"ray": "ray", "slurm": "submitit_slurm", "joblib": "joblib"}
"""Launchers with a configuration of ours, `conf/hydra/launcher/fastdiff_<name>.yaml`, and the plug-in's that it builds on."""

EXTRAS = {name: name for name in SHIPPED}
EXTRAS |= {"submitit_local": "slurm", "submitit_slurm": "slurm"}
"""Which of fastdiff's extras brings a launcher."""

_OBJECT_STORE_BYTES = 100_000_000
"""Of a cluster that lives as long as the sweep: what jobs return is small. Ray takes no less than 75 MB."""

_QUIET = (
    *("hydra.sweep.subdir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled"),
    *("hydra/hydra_logging=disabled", "hydra.job.name=fastdiff"),
)
"""Hydra writes nothing of its own: a cell's folder is whole or not there."""


def check_launcher(own: Sequence[str]) -> str:
    """The launcher that Hydra's own overrides choose. Raises UsageError if Hydra doesn't find it here."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    chosen = [word.partition("=")[2] for word in own if word.startswith("hydra/launcher=")]
    name = chosen[-1] if chosen else "basic"
    Plugins.instance()  # which registers the plug-ins' configurations
    stored = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    installed = {file.removesuffix(".yaml") for file in stored} | {"basic"}
    known = sorted(installed | {ours for ours, needed in SHIPPED.items() if needed in installed})
    if name in known:
        return name
    if name in EXTRAS:
        raise _not_here(name, "")
    near = nearest(name, known)
    hint = f"did you mean: hydra/launcher={near}" if near else f"there are: {', '.join(known)}"
    raise UsageError(f"there is no launcher '{name}'\n  {hint}")


def runs_elsewhere(own: Sequence[str]) -> bool:
    """Whether the jobs of the launcher that Hydra's own overrides choose may run on other machines. Raises UsageError.

    Ray without an address begins a cluster of this machine alone.
    """
    name = check_launcher(own)
    key = "hydra.launcher.ray.init.address="
    named = [word.partition(key)[2] for word in own if key in word]
    address = named[-1].strip("'\"") if named else ""
    if name != "ray":
        return name not in HERE
    if address in ("", "null"):
        address = os.environ.get("RAY_ADDRESS", "")
    return address not in ("", "local")


@dataclass
class Launch:
    """Hydra's launcher of a sweep, ready; its callbacks know nothing of it yet.

    gpus_typed: whether the user said how many GPUs Ray gives a job.
    """

    name: str
    config: Any
    context: Any
    gpus_typed: bool = False

    def run(self, job: Job) -> Iterator[Any]:
        """Run every task of the job; yields what each returned, an exception where it raised.

        Here one task is handed over at a time, because Hydra keeps whole configurations of what it has run; and to
        submitit_local, which begins all that it is given, as many as there are devices for.
        """
        numbers = range(len(job.tasks))
        devices = max(1, len(this_machine().gpus))
        most = {"basic": 1, "submitit_local": devices}.get(self.name, len(numbers))
        launcher = self._launcher(job)
        if self.name == "ray":
            self._begin_ray()
        for batch in (numbers[at : at + most] for at in range(0, len(numbers), most)):
            overrides = [_for_hydra(job.tasks[number].overrides) for number in batch]
            for returned in launcher.launch(overrides, initial_job_idx=batch[0]):
                yield returned._return_value

    def _begin_ray(self) -> None:
        """Begin or join the cluster as the plug-in would, but leave SIGTERM ours: Ray's way with it is to abort.

        The plug-in also sizes the object store of a cluster that it joins, which Ray refuses.
        """
        import ray
        from omegaconf import OmegaConf

        if ray.is_initialized():
            return
        init: Any = OmegaConf.to_container(self.config.hydra.launcher.ray.init, resolve=True)
        if not (init.get("address") or os.environ.get("RAY_ADDRESS")):
            init.setdefault("object_store_memory", _OBJECT_STORE_BYTES)
        ours = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**init)
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, ours)
        resources: Any = ray.cluster_resources  # which Ray gives no types
        if self._waits_for_ever(resources()):
            raise UsageError(
                "Ray's cluster has no GPU, and every job asks for one\n"
                "  instead: device=cpu, or hydra.launcher.ray.remote.num_gpus=1, which waits for one to join"
            )

    def _waits_for_ever(self, resources: Mapping[str, float]) -> bool:
        """Whether Ray would wait for a GPU that its cluster doesn't have, though nobody said so in as many words."""
        asked = self.config.hydra.launcher.ray.remote.get("num_gpus") or 0
        return asked > resources.get("GPU", 0) and not self.gpus_typed

    def end(self) -> None:
        """End what of the launcher still goes on in this process: Ray's cluster, or the line to it."""
        ray = sys.modules.get("ray")
        if self.name in ("ray", "ray_aws") and ray is not None:
            ray.shutdown()

    def told(self, event: str) -> None:
        """Tell Hydra's callbacks that the sweep starts (`on_multirun_start`) or has ended (`on_multirun_end`)."""
        getattr(self.context.callbacks, event)(config=self.config, config_name="config")

    def check(self) -> None:
        """Raise UsageError for a launcher that isn't installed, before anything is written."""
        self._launcher(lambda _: None)

    def _launcher(self, job: Callable[[Any], Any]) -> Any:
        """Hydra's object. Raises UsageError if it can't be made here."""
        from hydra.core.plugins import Plugins

        try:
            return Plugins.instance().instantiate_launcher(
                hydra_context=self.context, task_function=job, config=self.config
            )
        except Exception as error:
            raise _not_here(self.name, str(error)) from error


def prepare(own: Sequence[str], folder: Path, gpu: bool = False) -> Launch:
    """Hydra's side of a sweep. own: Hydra's own overrides, as typed; gpu: whether a cell asks for one. Raises UsageError."""
    from hydra._internal.callbacks import Callbacks
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import HydraContext, RunMode

    for word in own:
        if said := refused_by_name(word, of_a_grid=True):
            raise UsageError(said)
    name = check_launcher(own)
    if name in ("slurm", "submitit_slurm") and shutil.which("srun") is None:
        raise UsageError(
            f"the launcher '{name}' submits through srun, and there is none here\n"
            "  instead: type the line on a machine of the cluster, or hydra/launcher=basic"
        )
    own = [word for word in own if not word.startswith("hydra/launcher=")]
    own.append(f"hydra/launcher={f'fastdiff_{name}' if name in SHIPPED else name}")
    register_schemas()
    _register_resolvers(gpu)
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2("fastdiff", create_config_search_path(str(CONF_DIR)))
    overrides = [*_QUIET, *own, f"hydra.sweep.dir={quoted(str(folder))}"]
    try:
        config = hydra.compose_config(
            "config", overrides, run_mode=RunMode.MULTIRUN, with_log_configuration=False
        )
        callbacks = Callbacks(config)
        _check_ahead(own, config)
    except Exception as error:  # Hydra's, OmegaConf's, logging's, or of a callback's class
        raise UsageError(explain(own, error)) from error
    context = HydraContext(config_loader=hydra.config_loader, callbacks=callbacks)
    typed = any("ray.remote.num_gpus=" in word for word in own)
    launch = Launch(name, config, context, typed)
    launch.check()
    return launch


def _for_hydra(overrides: Sequence[str]) -> list[str]:
    """A job's overrides as its launcher composes them: names below a mapping, such as generation.call, are new to Hydra."""
    return [f"++{word}" if _BELOW_A_MAPPING.match(word) else word for word in overrides]


_BELOW_A_MAPPING = re.compile(r"(model\.)?generation\.call[.=]")


def _check_ahead(own: Sequence[str], config: Any) -> None:
    """Read what launchers read of Hydra's configuration only when the first cell is to begin; raises what they would."""
    from hydra.core.utils import configure_log
    from omegaconf import OmegaConf, open_dict, read_write

    OmegaConf.to_container(config.hydra.job.env_set, resolve=True, throw_on_missing=True)
    if not any(re.match(r"[+~]*hydra[./](\w+_logging|verbose)", word) for word in own):
        return
    with tempfile.TemporaryDirectory() as folder:  # where a log file would be begun
        tried = copy.deepcopy(config)
        with read_write(tried.hydra.runtime), open_dict(tried.hydra.runtime):
            tried.hydra.runtime.output_dir = folder
        for logs in (tried.hydra.hydra_logging, tried.hydra.job_logging):
            configure_log(logs, tried.hydra.verbose)


def _register_resolvers(gpu: bool) -> None:
    """What the shipped configurations of launchers ask of this machine, and of a cluster whose head may have no GPU."""
    from omegaconf import OmegaConf

    gpus = len(this_machine().gpus)
    per_job = 1 if gpu or gpus else 0
    OmegaConf.register_new_resolver("fastdiff_gpus_per_job", lambda: per_job, replace=True)
    OmegaConf.register_new_resolver("fastdiff_devices", lambda: max(1, gpus), replace=True)


def _not_here(name: str, said: str) -> UsageError:
    extra = EXTRAS.get(name)
    why = f": {said.strip().splitlines()[0]}" if said.strip() else ""
    way_out = f'pip install "fastdiff-inference[{extra}]"' if extra else "hydra/launcher=basic"
    return UsageError(f"the launcher '{name}' can't be had here{why}\n  instead: {way_out}")
