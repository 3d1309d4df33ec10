"""`doctor`: for every option of every slot, whether it can work on this machine and why not."""

from __future__ import annotations

from fastdiff.choices.compose import compose, with_option
from fastdiff.choices.options import available, option_files, schemas
from fastdiff.config import SLOTS, RunConfig
from fastdiff.display import words
from fastdiff.display.help import added_rows, problem_rows
from fastdiff.display.layout import labelled
from fastdiff.errors import MachineProblem, PlanError, UsageError
from fastdiff.machine.environment import DISTRIBUTIONS, Environment, this_machine, version_of
from fastdiff.machine.nvml import Gpu
from fastdiff.models.sources import model_of
from fastdiff.passes import OPTIONS
from fastdiff.passes.base import Option
from fastdiff.planning.plan import make_plan


def screen() -> str:
    """One screen: the machine, the packages, and the options that can't work here with the reason."""
    machine = this_machine()
    device = machine.device("auto")
    lines = [f"fastdiff  doctor: runs go to {machine.describe(device)}"]
    lines.append(
        labelled(
            "processor",
            f"{machine.cpu}, {words.counted(machine.threads, 'thread')}, {_arithmetic(machine)}",
        )
    )
    if machine.memory_bytes and machine.available_memory_bytes:
        free, total = machine.available_memory_bytes / 1e9, machine.memory_bytes / 1e9
        lines.append(labelled("memory", f"{free:.1f} of {total:.1f} GB free"))
    gpus = [f"{gpu.name}, capability {_capability(gpu)}" for gpu in machine.gpus]
    lines.append(labelled("gpu", "; ".join(gpus) or "none"))
    if machine.gpu_unusable:
        reason, instead = machine.gpu_unusable
        lines.append(labelled("", f"not used: {reason}; instead: {instead}"))
    versions = [f"{name} {machine.versions.get(name, 'MISSING')}" for name in DISTRIBUTIONS]
    versions += [f"{name} {version_of(name) or 'not installed'}" for name in _optional()]
    lines.append(labelled("packages", ", ".join(versions)))
    if available().problems:  # no option can be chosen until they are mended
        return "\n".join([*lines, *problem_rows()])
    plain = compose([])
    for slot in SLOTS:
        if slot in OPTIONS:
            lines += _options(slot, plain, machine)
    lines += [*added_rows(), *problem_rows()]
    return "\n".join(lines)


def _capability(gpu: Gpu) -> str:
    return ".".join(map(str, gpu.capability)) if gpu.capability else "unknown"


def _arithmetic(machine: Environment) -> str:
    can = [name for name in ("avx512f", "avx512_vnni", "amx_int8") if name in machine.cpu_flags]
    bf16 = "bf16 arithmetic" if machine.processor_computes_in("bf16") else "no bf16 arithmetic"
    return ", ".join([*can, bf16])


def _optional() -> list[str]:
    """Packages that only some options need, as pip calls them."""
    kinds = [kind for options in schemas().values() for kind in options.values()]
    needed = [need for kind in kinds if issubclass(kind, Option) for need in kind.requires]
    names = [need.pip or need.module for need in needed]
    return sorted({name for name in names if name} - set(DISTRIBUTIONS), key=str.lower)


def _options(slot: str, plain: RunConfig, machine: Environment) -> list[str]:
    """What works of a slot, and each option that this machine can't carry out with the first reason.

    That an option wants another model, or a file that nobody named, is no matter of the machine.
    """
    works, fails = [], []
    for option in dict.fromkeys([*OPTIONS[slot], *option_files()[slot]]):
        run = with_option(plain, slot, option)
        lacks: list[MachineProblem] = []
        try:
            make_plan(run, machine, model_of(run).facts())
        except PlanError as error:
            lacks = [p for p in error.problems if isinstance(p, MachineProblem)]
        if lacks:
            fails.append(f"not {option}: {lacks[0].reason}")
        else:
            works.append(option)
    return [labelled(slot, ", ".join(works)), *(labelled("", reason) for reason in fails)]


def run(words: list[str]) -> int:
    """`doctor`: what this machine can and can't do."""
    if words:
        raise UsageError(
            f"doctor takes no arguments, not '{words[0]}'\n  instead: python -m fastdiff doctor"
        )
    print(screen())
    return 0
