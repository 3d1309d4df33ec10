"""What NVML says of GPUs, asked of a pynvml made for the test, and why none can be computed on."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from fastdiff.machine import nvml
from fastdiff.machine.nvml import Gpu, gpu_names, gpu_settings, gpu_state, visible_gpus

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 85_520_809_984)
A100 = Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 42_298_834_944)
T4 = Gpu("Tesla T4", (7, 5), 15_843_721_216)
SMALL = Gpu("NVIDIA H100 MIG 1g.10gb", (9, 0), 10_200_547_328)
LARGE = Gpu("NVIDIA H100 MIG 3g.40gb", (9, 0), 42_144_366_592)

NOT_SUPPORTED, LIBRARY_NOT_FOUND = 3, 12
NOT_LOADED = "NVML (libnvidia-ml, which comes with the driver) can't be loaded"


class Fake:
    """pynvml with a driver that knows these answers alone: `{"nvmlDeviceGetCount": 1, ("nvmlDeviceGetName", "GPU-0"): "T4"}`.

    A handle is the UUID of what it is of. fails: the code with which NVML doesn't start.
    """

    NVMLError = pynvml.NVMLError
    NVML_ERROR_LIBRARY_NOT_FOUND = LIBRARY_NOT_FOUND

    def __init__(self, answers: dict[Any, Any] | None = None, fails: int = 0) -> None:
        self.answers, self.fails, self.open = answers or {}, fails, 0

    def nvmlInit(self) -> None:
        if self.fails:
            raise pynvml.NVMLError(self.fails)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def __getattr__(self, function: str) -> Any:
        def answer(*of: Any) -> Any:
            found = self.answers.get((function, *of), self.answers.get(function))
            if found is None or isinstance(found, pynvml.NVMLError):
                raise found or pynvml.NVMLError(NOT_SUPPORTED)
            return found

        return answer


def known(handle: str, gpu: Gpu) -> dict[Any, Any]:
    """What NVML answers of one GPU or instance."""
    told = {
        "nvmlDeviceGetName": gpu.name,
        "nvmlDeviceGetUUID": handle,
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=gpu.memory_bytes),
        "nvmlDeviceGetCudaComputeCapability": gpu.capability,
    }
    return {(f, handle): answer for f, answer in told.items()} | {
        ("nvmlDeviceGetHandleByUUID", handle): handle
    }


def of_gpus(*gpus: Gpu) -> dict[Any, Any]:
    answers: dict[Any, Any] = {"nvmlDeviceGetCount": len(gpus)}
    for at, gpu in enumerate(gpus):
        uuid = f"GPU-{at}a-uuid"
        answers |= {("nvmlDeviceGetHandleByIndex", at): uuid, **known(uuid, gpu)}
    return answers


def divided(*instances: Gpu) -> dict[Any, Any]:
    """One GPU, divided into instances with the numbers 7 and 9, and as many that another container has."""
    whole = "GPU-0a-uuid"
    answers = of_gpus(H100) | {
        "nvmlDeviceGetMigMode": [1, 0],
        "nvmlDeviceGetMaxMigDeviceCount": 7,
        "nvmlDeviceGetComputeInstanceId": 0,
    }
    for at, (number, gpu) in enumerate(zip((7, 9), instances, strict=False), start=1):
        handle = f"MIG-{number}"
        answers |= {
            **known(handle, gpu),
            ("nvmlDeviceGetMigDeviceHandleByIndex", whole, at): handle,
            ("nvmlDeviceGetGpuInstanceId", handle): number,
            ("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle): whole,
        }
        del answers["nvmlDeviceGetCudaComputeCapability", handle]  # its GPU tells it
    return answers


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`driver(answers, fails=9)`: what NVML answers from here on; nothing is left open when the test ends."""
    fakes = []

    def here(answers: dict[Any, Any] | None = None, fails: int = 0) -> Fake:
        fakes.append(Fake(answers, fails))
        monkeypatch.setitem(sys.modules, "pynvml", fakes[-1])
        return fakes[-1]

    see(monkeypatch, None)
    yield here
    assert [fake.open for fake in fakes] == [0] * len(fakes)


def see(monkeypatch: pytest.MonkeyPatch, visible: str | None) -> None:
    """What CUDA_VISIBLE_DEVICES says."""
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


# Which there are -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, (H100, A100, T4)),
        ("0", (H100,)),
        ("2,0", (T4, H100)),
        (" 1 , 2 ", (A100, T4)),
        ("", ()),
        ("-1", ()),
        ("0,9,1", (H100,)),
        ("1,-1,0", (A100,)),
        ("GPU-1a-uuid", (A100,)),
        ("GPU-2, GPU-0a", (T4, H100)),
        ("GPU-0a,GPU-9", (H100,)),
        ("GPU-", ()),  # which one is it?
    ],
)
def test_gpus_are_those_that_cuda_would_show(
    visible: str | None, expected: tuple[Gpu, ...], driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(of_gpus(H100, A100, T4))
    see(monkeypatch, visible)
    found = visible_gpus()
    assert found == expected
    uuids = {H100: "GPU-0a-uuid", A100: "GPU-1a-uuid", T4: "GPU-2a-uuid"}
    assert [gpu.uuid for gpu in found] == [uuids[gpu] for gpu in expected]


@pytest.mark.parametrize(
    ("visible", "expected", "uuids"),
    [
        ("MIG-7", (SMALL,), ["MIG-7"]),
        ("MIG-9,MIG-7", (LARGE, SMALL), ["MIG-9", "MIG-7"]),
        ("MIG-GPU-0a-uuid/9/0", (LARGE,), ["MIG-9"]),  # as drivers before R470 name it
        (None, (SMALL,), ["MIG-7"]),  # CUDA takes the first instance that it may see
        ("0", (SMALL,), ["MIG-7"]),
        ("GPU-0a-uuid", (SMALL,), ["MIG-7"]),
        ("1", (), []),
        ("MIG-GPU-0a-uuid/3/0", (SMALL,), [None]),  # which NVML doesn't know: it may well be there
        ("MIG-8932f937", (SMALL,), [None]),
    ],
)
def test_an_instance_of_a_gpu_has_its_own_memory(
    visible: str | None,
    expected: tuple[Gpu, ...],
    uuids: list[str | None],
    driver: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver(divided(SMALL, LARGE))
    see(monkeypatch, visible)
    found = visible_gpus()
    assert found == expected
    assert [gpu.uuid for gpu in found] == uuids


@pytest.mark.parametrize(
    ("answers", "fails", "expected"),
    [
        ({}, LIBRARY_NOT_FOUND, ()),
        (of_gpus(H100), 9, ()),  # a driver that doesn't start
        (divided(), 0, ()),  # divided without an instance for us
        (of_gpus(gb10 := Gpu("NVIDIA GB10", (12, 1), None)), 0, (gb10,)),  # in the host's memory
        (  # one that tells neither name nor capability
            {"nvmlDeviceGetCount": 1, "nvmlDeviceGetHandleByIndex": "GPU-0"},
            0,
            (Gpu("NVIDIA GPU", None, None),),
        ),
    ],
)
def test_drivers_that_say_little(
    answers: dict[Any, Any], fails: int, expected: tuple[Gpu, ...], driver: Any
) -> None:
    driver(answers, fails)
    assert visible_gpus() == expected


# Why none can be computed on -----------------------------------------------------------------------

DRIVER = "/proc/driver/nvidia/version"
TORCH = f"the installed torch {metadata.version('torch')}"
HERE = "there is an NVIDIA driver here, but"
OLD = {"nvmlSystemGetCudaDriverVersion_v2": 12040}
WITHOUT_CUDA = {"nvmlSystemGetCudaDriverVersion_v2": pynvml.NVMLError(LIBRARY_NOT_FOUND)}
LEARN = "in a container --gpus all and NVIDIA_DRIVER_CAPABILITIES=compute,utility, after a driver's update a restart"
OTHER = "which fastdiff can't use yet"
NVIDIAS = "an NVIDIA GPU with a CUDA build of torch"
HIDDEN = f"{HERE} no GPU is visible to this process"


@pytest.mark.parametrize(
    ("sign", "answers", "fails", "gpus", "builds", "expected"),
    [
        (None, {}, 12, (), {}, None),
        (None, {}, 12, (), {"cuda": "13.0"}, None),
        (
            DRIVER,
            {},
            12,
            (),
            {},
            (f"{HERE} {TORCH} is built without CUDA", "a CUDA build of torch"),
        ),
        (
            None,
            {},
            12,
            (),
            {"hip": "6.4"},
            (f"{TORCH} is built for AMD's ROCm 6.4, {OTHER}", NVIDIAS),
        ),
        (
            *(None, {}, 12, (), {"xpu": "20250301"}),
            (f"{TORCH} is built for Intel's GPUs, version 20250301, {OTHER}", NVIDIAS),
        ),
        (
            *("/dev/nvhost-gpu", {}, 12, (), {"cuda": "13.0"}),  # a Jetson
            (f"{HERE} nothing can be learned of its GPUs: {NOT_LOADED}", LEARN),
        ),
        (
            *(DRIVER, {}, 9, (), {"cuda": "13.0"}),
            (
                f"{HERE} nothing can be learned of its GPUs: NVML can't be started: its error 9",
                LEARN,
            ),
        ),
        (
            *(None, OLD, 0, (H100,), {"cuda": "13.0"}),  # as under WSL
            (
                f"{TORCH} is built for CUDA 13.0, and this machine's NVIDIA driver runs CUDA 12.4 at most",
                "a driver of CUDA 13, or a torch that is built for CUDA 12.4",
            ),
        ),
        (DRIVER, OLD, 0, (H100,), {"cuda": "12.8"}, None),  # one major version is enough
        (DRIVER, OLD, 0, (H100,), {"cuda": "11.8"}, None),
        (DRIVER, {}, 0, (H100,), {"cuda": "13.0"}, None),  # which doesn't say
        (
            *(DRIVER, WITHOUT_CUDA, 0, (H100,), {"cuda": "13.0"}),
            (
                f"{HERE} not its CUDA library (libcuda)",
                "the driver's whole installation, in a container NVIDIA_DRIVER_CAPABILITIES=compute,utility",
            ),
        ),
        (
            *(DRIVER, {}, 0, (), {"cuda": "13.0"}),
            (HIDDEN, "a job with a GPU, or a MIG instance"),
        ),
    ],
)
def test_why_a_gpu_that_is_here_cannot_be_used(
    sign: str | None,
    answers: dict[Any, Any],
    fails: int,
    gpus: tuple[Gpu, ...],
    builds: dict[str, str],
    expected: tuple[str, str] | None,
    driver: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver(answers, fails)
    monkeypatch.setattr(os.path, "exists", lambda path: path == sign)
    assert nvml.why_unusable(gpus, metadata.version("torch"), builds) == expected


def test_a_gpu_that_is_hidden_is_said_to_be(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(of_gpus(H100))
    see(monkeypatch, "-1")
    monkeypatch.setattr(os.path, "exists", lambda path: path == DRIVER)
    assert nvml.why_unusable((), metadata.version("torch"), {"cuda": "13.0"}) == (
        f"{HIDDEN} (CUDA_VISIBLE_DEVICES=-1)",
        "unset that variable",
    )


# One of them ---------------------------------------------------------------------------------------

UUID = "8932f937-d72c-4106-c12f-20bd9faed9f6"
GPU, ADDRESS = f"GPU-{UUID}", "0000:3b:00.0"
BY_UUID, BY_ADDRESS = (
    {("nvmlDeviceGetHandleByUUID", GPU): 77},
    {("nvmlDeviceGetHandleByPciBusId", ADDRESS): 77},
)
SET_UP = {
    "nvmlDeviceGetCount": 8,
    "nvmlSystemGetDriverVersion": "580.65.06",
    "nvmlSystemGetCudaDriverVersion_v2": 13010,
    ("nvmlDeviceGetMaxClockInfo", 77, 1): 1980,
    ("nvmlDeviceGetMaxClockInfo", 77, 2): 3201,
    ("nvmlDeviceGetEnforcedPowerLimit", 77): 700_000,
    ("nvmlDeviceGetMigMode", 77): [0, 1],
    ("nvmlDeviceGetPersistenceMode", 77): 1,
}
NOW = {
    ("nvmlDeviceGetClockInfo", 77, 1): 1980,
    ("nvmlDeviceGetClockInfo", 77, 2): 3201,
    ("nvmlDeviceGetTemperature", 77, 0): 57,
    ("nvmlDeviceGetPowerUsage", 77): 412_345,
    ("nvmlDeviceGetCurrentClocksThrottleReasons", 77): 0x4 | 0x40,
    ("nvmlDeviceGetComputeRunningProcesses_v3", 77): ["this one"],
}


@pytest.mark.parametrize(
    ("by", "names"), [(BY_UUID, [GPU]), (BY_ADDRESS, [GPU, f"MIG-{UUID}", ADDRESS])]
)
def test_how_a_gpu_is_set_up_and_is_now_by_the_first_name_that_nvml_knows(
    by: dict[Any, Any], names: list[str], driver: Any
) -> None:
    driver(by | SET_UP | NOW)
    assert gpu_settings(names) == {
        "count": 8,
        "driver": "580.65.06",
        "driver_cuda": "13.1",
        "max_sm_clock_mhz": 1980,
        "max_memory_clock_mhz": 3201,
        "sm_clock_setting_mhz": None,  # this GPU doesn't say
        "power_limit_w": 700.0,
        "mig": False,
        "persistence": True,
        "ecc": None,
        "reason": None,
    }
    assert gpu_state(names) == {
        "reason": None,
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 3201,
        "temperature_c": 57,
        "power_w": 412.345,
        "slowed_by": ["sw_power_cap", "hw_thermal_slowdown"],
        "compute_processes": 1,
    }


def test_what_a_gpu_or_an_older_driver_does_not_say_is_null_and_no_process_is_a_number(
    driver: Any,
) -> None:
    driver(BY_UUID | {("nvmlDeviceGetClockInfo", 77, 1): 1980})
    found = gpu_state([GPU])
    assert (found.pop("reason"), found.pop("sm_clock_mhz")) == (None, 1980)
    assert set(found.values()) == {None}
    driver(BY_UUID | {("nvmlDeviceGetComputeRunningProcesses_v3", 77): []})
    assert gpu_state([GPU])["compute_processes"] == 0


@pytest.mark.parametrize(
    ("fails", "names", "reason"),
    [
        (LIBRARY_NOT_FOUND, [GPU], NOT_LOADED),
        (18, [GPU], "NVML can't be started: its error 18"),
        (0, ["GPU-1", ADDRESS], f"NVML knows no GPU GPU-1 or {ADDRESS}"),
        (0, [], "NVML knows no GPU of this run"),
    ],
)
def test_a_gpu_that_cannot_be_asked_is_a_reason_and_no_error(
    fails: int, names: list[str], reason: str, driver: Any
) -> None:
    driver(BY_UUID | SET_UP | NOW)
    fields = set(gpu_state([GPU])), set(gpu_settings([GPU]))
    driver(BY_UUID | NOW, fails)
    state, settings = gpu_state(names), gpu_settings(names)
    assert (set(state), set(settings)) == fields
    assert state.pop("reason") == settings.pop("reason") == reason
    assert {*state.values(), *settings.values()} == {None}


def test_the_gpu_that_torch_uses_is_known_by_its_uuid_then_by_its_address() -> None:
    properties = SimpleNamespace(uuid=UUID, pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0)
    assert gpu_names(properties) == [GPU, f"MIG-{UUID}", ADDRESS]
    assert gpu_names(SimpleNamespace(uuid=GPU)) == [GPU, f"MIG-{UUID}"]
    assert gpu_names(SimpleNamespace()) == []


def test_a_gpu_that_torch_cannot_ask_costs_whoever_asks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    def gone() -> Any:
        raise RuntimeError("driver gone")

    monkeypatch.setattr(torch.cuda, "get_device_properties", gone)
    state = nvml.this_gpu_state()
    assert state.pop("reason") == "it can't be asked (RuntimeError: driver gone)"
    assert set(state.values()) == {None}


@pytest.mark.gpu
def test_on_a_gpu_its_clock_and_temperature_are_known() -> None:
    import torch

    torch.randn(1024, 1024, device="cuda").square()
    found = nvml.this_gpu_state()
    assert found["reason"] is None
    assert found["sm_clock_mhz"] > 100
    assert 0 < found["temperature_c"] < 120


def test_functions_that_are_asked_are_pynvmls() -> None:
    """A misspelled one would be taken for one that the driver lacks."""
    import re
    from pathlib import Path

    named = set(re.findall(r'"(nvml\w+)"', Path(nvml.__file__).read_text()))
    named |= {"nvmlDeviceGetHandleByUUID", "nvmlDeviceGetHandleByPciBusId"}
    assert len(named) > 20
    assert [name for name in sorted(named) if not hasattr(pynvml, name)] == []
