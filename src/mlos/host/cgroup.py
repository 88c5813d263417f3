"""What the control groups of this process leave it of the machine, of both versions, ancestors included."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_NO_MEMORY_LIMIT = 1 << 60
"""Version 1 writes "no limit" as the largest multiple of the page size."""


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processors' worth of time this process may use; None where nothing limits it."""
    quotas = [_share(text.split()) for text in _settings(root, "cpu", "cpu.max")]
    for folder in _folders(root, "cpu", version=1):
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota and period:
            quotas.append(_share([quota, period]))
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes of memory this process's groups may use; None where nothing limits them."""
    texts = [
        *_settings(root, "memory", "memory.max"),
        *filter(None, (_read(f / "memory.limit_in_bytes") for f in _folders(root, "memory", version=1))),
    ]
    limits = [int(text) for text in texts if text.isdigit()]
    return min((limit for limit in limits if limit < _NO_MEMORY_LIMIT), default=None)


def usable_memory() -> int:
    """Bytes of memory this process may use: the host's, or less where its groups are limited."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(host, memory_limit() or host)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that could be filled now: free ones and caches, within the groups' limit."""
    found = re.search(r"(?m)^MemAvailable:\s+(\d+) kB$", _read(root / "proc/meminfo") or "")
    return min(int(found[1]) << 10, usable_memory()) if found else usable_memory()


def _share(quota_and_period: list[str]) -> float | None:
    quota, period = quota_and_period
    return int(quota) / int(period) if quota.isdigit() and int(period) else None  # "max", or -1 in version 1


def _settings(root: Path, controller: str, name: str) -> Iterator[str]:
    return filter(None, (_read(folder / name) for folder in _folders(root, controller, version=2)))


def _folders(root: Path, controller: str, version: int) -> Iterator[Path]:
    """The folder of this process's group, then its ancestors up to where the hierarchy is mounted."""
    path = _group(root, controller, version)
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        # "id parent major:minor ROOT MOUNT_POINT options … - TYPE source SUPER_OPTIONS", see proc(5)
        before, _, after = line.partition(" - ")
        mounted, point = before.split()[3:5]
        kind, _, options = after.split(" ", 2)
        if kind != ("cgroup2" if version == 2 else "cgroup") or path is None:
            continue
        if version == 1 and controller not in options.split(","):
            continue
        top = root / point.lstrip("/")
        # Inside a container the mount shows only the group's own part of the tree.
        own = PurePosixPath(path)
        folder = (
            top / own.relative_to(mounted) if own.is_relative_to(mounted) and ".." not in own.parts else top
        )
        while True:
            yield folder
            if folder == top:
                return
            folder = folder.parent


def _group(root: Path, controller: str, version: int) -> str | None:
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" if version == 2 else controller in controllers.split(","):
            return path
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:  # absent, or not for us: then it limits nothing that we know of
        return None


def whole_cpus(quota: float | None, available: int) -> int:
    """Cores worth using of ``available`` ones under a quota: rounded up, at least 1."""
    return available if quota is None else max(1, min(available, math.ceil(quota)))
