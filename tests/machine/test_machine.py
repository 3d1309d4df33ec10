"""What is recorded of a machine, from made-up files and a simulated driver."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastdiff.machine import hardware
from fastdiff.machine.hardware import Files

CPU = "sys/devices/system/cpu"


def files(root: Path, contents: dict[str, str]) -> Files:
    """Files below a folder, by their paths."""
    for path, text in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return Files(root)


def test_cores_threads_governor_and_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 3}, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    contents = {
        f"{CPU}/smt/active": "1\n",
        f"{CPU}/cpu0/cpufreq/scaling_governor": "performance\n",
        f"{CPU}/cpu0/cpufreq/cpuinfo_max_freq": "3500000\n",
        "sys/devices/system/node/node0/x": "",
        "sys/devices/system/node/node1/x": "",
    }
    for cpu in range(4):
        contents[f"{CPU}/cpu{cpu}/topology/physical_package_id"] = "0\n"
        contents[f"{CPU}/cpu{cpu}/topology/core_id"] = f"{cpu // 2}\n"
    assert hardware.processor(files(tmp_path, contents)) == {
        "logical": 4,
        "physical": 2,
        "smt": True,
        "affinity": "0-1,3",
        "governor": "performance",
        "max_mhz": 3500,
        "numa_nodes": 2,
        "cgroup_cpus": None,
    }


def test_a_system_without_such_files(tmp_path: Path) -> None:
    nothing = Files(tmp_path)
    found = hardware.processor(nothing)
    del found["logical"], found["affinity"]
    assert set(found.values()) == {None}
    assert set(hardware.host_memory(nothing).values()) == {None}
    said = hardware.system(nothing, {})
    assert (said["container"], said["virtual_machine"], said["hardware"]) == (None, None, None)


@pytest.mark.parametrize(
    ("contents", "cpus", "memory_bytes"),
    [
        ({}, None, None),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None, None),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/cpu.max": "150000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "200000 100000",
                "sys/fs/cgroup/a/memory.max": "max",
                "sys/fs/cgroup/memory.max": "4000000000",
            },
            1.5,
            4_000_000_000,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n1:cpu,cpuacct:/\n0::/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000000",
            },
            0.5,
            2_000_000_000,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
            None,
        ),
    ],
)
def test_limits_of_control_groups(
    contents: dict[str, str], cpus: float | None, memory_bytes: int | None, tmp_path: Path
) -> None:
    system = files(tmp_path, contents)
    assert hardware.processor(system)["cgroup_cpus"] == cpus
    assert hardware.host_memory(system)["cgroup_bytes"] == memory_bytes


def test_memory_swap_and_large_pages(tmp_path: Path) -> None:
    contents = {
        "proc/meminfo": "MemTotal:  1000 kB\nMemFree:  1 kB\nSwapTotal:   500 kB\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    }
    assert hardware.host_memory(files(tmp_path, contents)) == {
        "bytes": 1_024_000,
        "swap_bytes": 512_000,
        "cgroup_bytes": None,
        "transparent_hugepages": "madvise",
    }


@pytest.mark.parametrize(
    ("contents", "variables", "container"),
    [
        ({}, {}, None),
        ({".dockerenv": ""}, {}, "docker"),
        ({"run/.containerenv": ""}, {}, "podman"),
        ({".dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({}, {"container": "lxc"}, "lxc"),
    ],
)
def test_hints_at_a_container(
    contents: dict[str, str], variables: dict[str, str], container: str | None, tmp_path: Path
) -> None:
    assert hardware.system(files(tmp_path, contents), variables)["container"] == container


def test_a_virtual_machine_and_its_maker(tmp_path: Path) -> None:
    contents = {
        "proc/cpuinfo": "flags\t\t: fpu hypervisor avx2\n",
        "sys/class/dmi/id/sys_vendor": "QEMU\n",
        "sys/class/dmi/id/product_name": "Standard PC\n",
    }
    said = hardware.system(files(tmp_path, contents), {})
    assert (said["virtual_machine"], said["hardware"]) == (True, "QEMU Standard PC")
    (tmp_path / "proc/cpuinfo").write_text("flags : fpu avx2\n")
    assert hardware.system(Files(tmp_path), {})["virtual_machine"] is False


def test_ranges() -> None:
    assert hardware.ranges([]) == ""
    assert hardware.ranges([5]) == "5"
    assert hardware.ranges([0, 1, 2, 8, 10, 11]) == "0-2,8,10-11"


class Nvml:
    """Answers as NVML does, for one GPU of this UUID."""

    def __init__(self, code: int = 0) -> None:
        self.code, self.is_shut_down = code, False

    def nvmlInit_v2(self) -> int:
        return self.code

    def nvmlShutdown(self) -> int:
        self.is_shut_down = True
        return 0

    def nvmlDeviceGetHandleByUUID(self, name: bytes, handle: Any) -> int:
        handle._obj.value = 1
        return 0 if name == b"GPU-right" else 6

    def nvmlDeviceGetHandleByPciBusId_v2(self, name: bytes, handle: Any) -> int:
        handle._obj.value = 1
        return 0 if name == b"0000:3b:00.0" else 6

    def nvmlSystemGetDriverVersion(self, text: Any, size: int) -> int:
        text.value = b"580.65.06"
        return 0

    def nvmlSystemGetCudaDriverVersion_v2(self, number: Any) -> int:
        number._obj.value = 13010
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 8
        return 0

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: int, mhz: Any) -> int:
        mhz._obj.value = {1: 1980, 2: 3201}[kind]
        return 0

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any, milliwatts: Any) -> int:
        milliwatts._obj.value = 700_000
        return 0

    def nvmlDeviceGetMigMode(self, handle: Any, now: Any, later: Any) -> int:
        now._obj.value, later._obj.value = 0, 1
        return 0

    def nvmlDeviceGetPersistenceMode(self, handle: Any, mode: Any) -> int:
        mode._obj.value = 1
        return 0

    def nvmlDeviceGetEccMode(self, handle: Any, now: Any, later: Any) -> int:
        return 3  # not supported


@pytest.mark.parametrize("names", [["GPU-right"], ["GPU-wrong", "0000:3b:00.0"]])
def test_how_a_gpu_is_set_up(names: list[str]) -> None:
    nvml = Nvml()
    assert hardware.gpu(nvml, names) == {
        "count": 8,
        "driver": "580.65.06",
        "driver_cuda": "13.1",
        "max_sm_clock_mhz": 1980,
        "max_memory_clock_mhz": 3201,
        "sm_clock_setting_mhz": None,  # this NVML has no such function
        "power_limit_w": 700.0,
        "mig": False,
        "persistence": True,
        "ecc": None,
        "reason": None,
    }
    assert nvml.is_shut_down


@pytest.mark.parametrize(
    ("nvml", "names", "reason"),
    [
        (None, [], "NVML (libnvidia-ml, which comes with the driver) can't be loaded"),
        (Nvml(code=9), ["GPU-right"], "NVML can't be started: its error 9"),
        (Nvml(), ["GPU-wrong"], "NVML knows no GPU GPU-wrong"),
        (Nvml(), [], "NVML knows no GPU of this run"),
    ],
)
def test_a_gpu_that_cannot_be_asked(nvml: Any, names: list[str], reason: str) -> None:
    found = hardware.gpu(nvml, names)
    assert found["reason"] == reason
    assert found["power_limit_w"] is None


def test_no_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError("cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert hardware.load_nvml() is None


_UUID = "8932f937-d72c-4106-c12f-20bd9faed9f6"


def test_the_gpu_that_torch_uses_is_known_by_its_uuid_then_by_its_address() -> None:
    properties = SimpleNamespace(uuid=_UUID, pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0)
    assert hardware.gpu_names(properties) == [f"GPU-{_UUID}", f"MIG-{_UUID}", "0000:3b:00.0"]
    assert hardware.gpu_names(SimpleNamespace(uuid=f"GPU-{_UUID}")) == [
        f"GPU-{_UUID}",
        f"MIG-{_UUID}",
    ]
    assert hardware.gpu_names(SimpleNamespace()) == []


@pytest.mark.parametrize(
    ("contents", "kills"),
    [
        ({}, None),
        ({"proc/vmstat": "nr_free_pages 3\noom_kill 5\nthp_fault_alloc 0"}, 5),
        (
            {  # a container's own group counts, and not the machine
                "proc/self/cgroup": "0::/",
                "sys/fs/cgroup/memory.events": "low 0\noom 4\noom_kill 2\noom_group_kill 9",
                "proc/vmstat": "oom_kill 5",
            },
            2,
        ),
        (
            {  # the innermost group, as its kills are in those around it
                "proc/self/cgroup": "0::/user/run",
                "sys/fs/cgroup/user/memory.events": "oom_kill 7",
                "sys/fs/cgroup/user/run/memory.events": "oom_kill 1",
            },
            1,
        ),
        (
            {  # the first version, beside an empty tree of the second
                "proc/self/cgroup": "4:memory:/jobs\n0::/",
                "sys/fs/cgroup/memory/jobs/memory.oom_control": "under_oom 0\noom_kill 3",
                "proc/vmstat": "oom_kill 5",
            },
            3,
        ),
        (
            {  # kernels before 4.13 don't count for a group
                "proc/self/cgroup": "4:memory:/",
                "sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0",
            },
            None,
        ),
    ],
)
def test_what_the_kernel_ended_for_want_of_memory(
    contents: dict[str, str], kills: int | None, tmp_path: Path
) -> None:
    assert hardware.oom_kills(files(tmp_path, contents)) == kills
