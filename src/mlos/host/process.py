"""What the kernel tells of a process: the memory it has and the most it has had."""

from __future__ import annotations

import re
import resource
from pathlib import Path

_PAGE_BYTES = resource.getpagesize()
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


def resident_bytes(pid: int) -> int | None:
    """Resident memory of a process; nothing if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return None


def peak_bytes(pid: int) -> int | None:
    """The most resident memory a process has had; nothing if it has ended."""
    try:
        found = _PEAK.search(Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def children_of(pid: int) -> tuple[int, ...]:
    """The processes that the main thread of a process has started and that have not been reaped."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return ()
    return tuple(map(int, text.split()))
