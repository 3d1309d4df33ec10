"""What is recorded of a machine, from made-up files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
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
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4 if logical else 2)
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
    processor, memory = hardware.processor(nothing), hardware.host_memory(nothing)
    assert {k for k, v in processor.items() if v is not None} <= {"logical", "physical", "affinity"}
    assert {k for k, v in memory.items() if v is not None} == {"bytes", "swap_bytes"}
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


def test_memory_swap_and_large_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=1_024_000))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=512_000))
    contents = {"sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n"}
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
