"""NVIDIA GPUs, as NVIDIA's management library (NVML) tells of them where a driver brought it.

Source: https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html, which counts in per cent,
milliwatts and millijoules.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu:
    """One of them now. What it does not tell, as a part of a divided GPU its use, is None."""

    uuid: str
    utilization: float | None
    """Share of the last sample period, a second at most, in which it computed: 0 to 1."""
    memory_total_bytes: float | None
    memory_used_bytes: float | None
    power_watts: float | None
    power_limit_watts: float | None
    energy_joules: float | None
    """Since the driver was loaded."""


def gpus() -> list[Gpu]:
    """Those that the driver shows to this process, in its order; none where there is no driver."""
    nvml = _nvml()
    if nvml is None:
        return []
    count = _told(nvml, nvml.nvmlDeviceGetCount) or 0
    handles = (_told(nvml, nvml.nvmlDeviceGetHandleByIndex, index) for index in range(count))
    return [found for handle in handles if handle is not None and (found := _gpu(nvml, handle)) is not None]


def _gpu(nvml: ModuleType, handle: Any) -> Gpu | None:
    def told(name: str) -> Any:
        return _told(nvml, getattr(nvml, f"nvmlDeviceGet{name}"), handle)

    uuid, rates, memory = told("UUID"), told("UtilizationRates"), told("MemoryInfo")
    if uuid is None:
        return None
    return Gpu(
        uuid=uuid,
        utilization=None if rates is None else rates.gpu / 100,
        memory_total_bytes=None if memory is None else memory.total,
        memory_used_bytes=None if memory is None else memory.used,
        power_watts=_thousandth(told("PowerUsage")),
        power_limit_watts=_thousandth(told("EnforcedPowerLimit")),
        energy_joules=_thousandth(told("TotalEnergyConsumption")),
    )


def _thousandth(value: int | None) -> float | None:
    return None if value is None else value / 1000


def _told(nvml: ModuleType, ask: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return ask(*arguments)
    except nvml.NVMLError:  # not every GPU has everything, and one may be lost at any time
        return None


@cache
def _nvml() -> ModuleType | None:
    """The library, ready; looked for before its bindings, whose import takes a tenth of a second."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    nvml = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:  # a driver of another version, or a library without one
        _log.warning("the metrics tell of no GPU: NVML does not start: %s", error)
        return None
    return nvml
