from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from mlos.host import environment
from mlos.host.cgroup import available_memory, cpu_quota, memory_limit, usable_memory, whole_cpus
from mlos.host.environment import Environment, record, steal_seconds, usable_cores


def test_record_is_about_this_machine_and_round_trips() -> None:
    found = record()
    assert found.kernel == platform.release()
    assert found.logical_cores == os.cpu_count()
    assert found.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert found.memory_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found.versions["numpy"] == np.__version__
    assert found.versions["mlos"] == version("mlos")
    assert Environment.model_validate_json(found.model_dump_json()) == found


def test_id_stays_over_a_boot_and_an_upgrade_but_not_over_another_cpu() -> None:
    found = record()
    later = found.model_copy(
        update={
            "boot_id": "another",
            "versions": {},
            "memory_bytes": found.memory_bytes + 4096,
            "python": "3.99",
        }
    )
    assert later.id == found.id
    assert len(found.id) == 12
    for change in ({"cpu": "another"}, {"kernel": "9.9"}, {"cgroup_cpus": 0.5}, {"memory_bytes": 1 << 30}):
        assert found.model_copy(update=change).id != found.id


def test_a_fact_that_is_not_there_is_none() -> None:
    absent = Path("/proc/no/such/file")
    assert environment._line(absent) is None
    assert environment._chosen(None) is None
    assert environment._chosen("always [madvise] never\n") == "madvise"


def test_usable_cores_follow_the_affinity() -> None:
    before = os.sched_getaffinity(0)
    assert 1 <= usable_cores() <= len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_available_memory_is_what_the_kernel_says_could_be_filled(tmp_path: Path) -> None:
    assert 0 < available_memory() <= usable_memory()
    (tmp_path / "proc").mkdir()
    assert available_memory(tmp_path) == usable_memory()  # a kernel that does not say
    (tmp_path / "proc/meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    1000 kB\nCached:  10 kB\n")
    assert available_memory(tmp_path) == 1_024_000


def test_steal_is_what_proc_stat_counts() -> None:
    assert steal_seconds() >= 0


@pytest.mark.parametrize(
    ("quota", "available", "cores"), [(None, 8, 8), (0.1, 8, 1), (1.5, 8, 2), (4.0, 8, 4), (16.0, 8, 8)]
)
def test_quota_is_rounded_up_and_bounded(quota: float | None, available: int, cores: int) -> None:
    assert whole_cpus(quota, available) == cores


def machine(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    """A root folder with this process's groups, the mounts, and files under sys/fs/cgroup."""
    texts = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts}
    texts |= {"sys/fs/cgroup/" + name: text for name, text in files.items()}
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


V2 = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"


def test_version_2_takes_the_tightest_ancestor(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "0::/slice/pod/container",
        V2,
        {
            "slice/cpu.max": "150000 100000",
            "slice/pod/cpu.max": "max 100000",
            "slice/pod/container/cpu.max": "400000 100000",
            "slice/pod/memory.max": "1073741824",
            "slice/pod/container/memory.max": "max",
        },
    )
    assert cpu_quota(root) == 1.5
    assert memory_limit(root) == 1 << 30


def test_version_1_inside_a_container_sees_only_its_own_part(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/",
        "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory",
        {
            "cpu/cpu.cfs_quota_us": "50000",
            "cpu/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    assert cpu_quota(root) == 0.5
    assert memory_limit(root) is None


def test_no_limit_and_no_control_groups(tmp_path: Path) -> None:
    assert cpu_quota(machine(tmp_path, "0::/", V2, {"cpu.max": "max 100000"})) is None
    assert cpu_quota(tmp_path / "nothing") is None
    assert memory_limit(tmp_path / "nothing") is None


def test_a_group_outside_of_what_is_mounted(tmp_path: Path) -> None:
    assert cpu_quota(machine(tmp_path, "0::/../other", V2, {"cpu.max": "200000 100000"})) == 2.0
