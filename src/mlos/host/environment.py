"""The environment record: what a number measured here depended on, so that it can be compared or not.

Facts come from ``/proc``, ``/sys``, CPUID (py-cpuinfo) and the installed distributions. A fact that cannot be
found is None, never a guess. ``docs/`` calls its ``id`` the environment id; every result carries it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cpuinfo  # type: ignore[import-untyped] # it ships no annotations
import psutil  # type: ignore[import-untyped] # its stubs are another distribution, for two calls
from pydantic import BaseModel, ConfigDict

from mlos.host.cgroup import cpu_quota, memory_limit, whole_cpus

_CPU = Path("/sys/devices/system/cpu")
_FLAGS = re.compile(
    r"avx|avx2|avx512.*|avx_vnni.*|avx_ne_convert|amx_.*|fma|f16c|sse4_[12]|bmi[12]|hypervisor"
    r"|asimd.*|fp|fphp|sve.*|sme|sme[2_].*|i8mm|bf16|svei8mm|svebf16"
)
"""The instruction sets that arithmetic in engines chooses between, and whether this is a virtual machine."""
_DISTRIBUTIONS = (
    *("mlos", "numpy", "onnxruntime", "openvino", "torch", "transformers", "tokenizers", "safetensors", "onnx"),
    *(
        "onnxscript",
        "huggingface-hub",
        "llama-cpp-python",
        "gguf",
        "starlette",
        "uvicorn",
        "uvloop",
        "httptools",
    ),
    *("msgspec", "pydantic", "ray"),
)


class Environment(BaseModel):
    """What the machine, its limits and the installed versions were when something was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str | None
    microcode: str | None
    flags: tuple[str, ...]
    physical_cores: int | None
    logical_cores: int | None
    governor: str | None
    smt: bool | None
    """Whether two or more threads share a core."""
    numa_nodes: int | None
    thp: str | None
    """Transparent huge pages: always, madvise or never."""
    kernel: str
    os: str | None
    machine: str
    """Architecture, for example ``x86_64``."""
    cgroup_cpus: float | None
    """Processors' worth of time the control groups allow; None where they set no limit."""
    cgroup_memory_bytes: int | None
    boot_id: str | None
    memory_bytes: int
    gpus: tuple[str, ...]
    """NVIDIA GPUs as their kernel driver names them, with its version; other makers' are not looked for."""
    python: str
    versions: dict[str, str]
    """Installed version of each distribution that can change a result."""

    @property
    def id(self) -> str:
        """12 hexadecimal digits over what stays when the machine boots again or a package is upgraded."""
        stable = [
            *(self.cpu, self.microcode, self.physical_cores, self.logical_cores, self.numa_nodes),
            round(self.memory_bytes / 2**30),  # firmware takes a little more or less from boot to boot
            *(self.kernel, self.os, self.machine, self.cgroup_cpus, self.cgroup_memory_bytes, self.gpus),
        ]
        return hashlib.sha256(json.dumps(stable).encode()).hexdigest()[:12]


def record() -> Environment:
    """Look at the machine now. The first call takes up to a second or two."""
    cpu, flags = _cpu_identity()
    return Environment(
        cpu=cpu,
        microcode=_cpuinfo_line("microcode"),
        flags=flags,
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count(),
        governor=_line(_CPU / "cpu0/cpufreq/scaling_governor"),
        smt={"1": True, "0": False}.get(_line(_CPU / "smt/active") or ""),
        numa_nodes=len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or None,
        thp=_chosen(_line(Path("/sys/kernel/mm/transparent_hugepage/enabled"))),
        kernel=platform.release(),
        os=_os_name(),
        machine=platform.machine(),
        cgroup_cpus=cpu_quota(),
        cgroup_memory_bytes=memory_limit(),
        boot_id=_line(Path("/proc/sys/kernel/random/boot_id")),
        memory_bytes=psutil.virtual_memory().total,
        gpus=_gpus(),
        python=platform.python_version(),
        versions=_versions(_DISTRIBUTIONS),
    )


def usable_cores() -> int:
    """Physical cores this process may run on, by its affinity and its control groups' quota; at least 1."""
    return whole_cpus(cpu_quota(), _physical(os.sched_getaffinity(0)))


def steal_seconds() -> float:
    """Seconds of processor time, since boot and over all processors, that the hypervisor gave to others."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    steal = int(fields[8])  # user nice system idle iowait irq softirq STEAL, see proc(5)
    return steal / os.sysconf("SC_CLK_TCK")


def _physical(cpus: Iterable[int]) -> int:
    """How many cores the processors belong to; one that does not say counts as a core of its own."""
    return len({_line(_CPU / f"cpu{n}/topology/thread_siblings_list") or str(n) for n in cpus})


@functools.cache
def _cpu_identity() -> tuple[str | None, tuple[str, ...]]:
    found = cpuinfo.get_cpu_info()  # about a second: it runs programs, hence the cache
    flags = sorted(flag for flag in found.get("flags", ()) if _FLAGS.fullmatch(flag))
    return found.get("brand_raw"), tuple(flags)


def _cpuinfo_line(key: str) -> str | None:
    found = re.search(rf"^{key}\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    return found[1].strip() if found else None


def _os_name() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _gpus() -> tuple[str, ...]:
    driver = re.search(r"Module\s+(?:for \S+\s+)?(\d[\d.]+)", _text(Path("/proc/driver/nvidia/version")) or "")
    suffix = f", driver {driver[1]}" if driver else ""
    models = []
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        model = re.search(r"^Model:\s*(.+)$", _text(information) or "", re.MULTILINE)
        models.append((model[1].strip() if model else "unnamed") + suffix)
    return tuple(models)


def _versions(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _chosen(text: str | None) -> str | None:
    """The choice in brackets, as in ``always [madvise] never``."""
    found = re.search(r"\[(\w+)\]", text or "")
    return found[1] if found else None


def _line(path: Path) -> str | None:
    text = _text(path)
    return text.strip() or None if text else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # this kernel does not say, or not to us
        return None
