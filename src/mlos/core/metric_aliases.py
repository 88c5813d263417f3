"""The server's metrics under the names of Triton and vLLM too, for the dashboards and autoscalers there are.

Here alone is said which family of theirs is which of ours. What they count that this server does not have, such
as a cache of answers or of keys and values, is left out. A request is one inference, however many rows it has.

Sources: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md (labels model
and version; counters without ``_total``; microseconds) and https://docs.vllm.ai/en/latest/usage/metrics.html
(labels model_name and engine, the number of an engine's process, of which each model has one here).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from mlos.core.statistics import PARTS

_Labels = Mapping[str, str]


@dataclass(frozen=True)
class _Alias:
    """A family under another name: those of our samples called ``sample`` whose labels ``where`` accepts.

    ``labels`` turns our labels into theirs, or takes the sample for none of theirs. Samples that are told apart
    by our labels alone are added up.
    """

    name: str
    kind: str
    sample: str
    labels: Callable[[_Labels], dict[str, str] | None]
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    factor: float = 1.0

    def of(self, families: Sequence[Metric]) -> Metric:
        """The family, made of ours."""
        theirs = Metric(self.name, f"The same as {self.sample}", self.kind)
        suffixes = ("_bucket", "_count", "_sum") if self.kind == "histogram" else ("",)
        found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for suffix in suffixes:
            for sample in _samples(families, self.sample + suffix):
                if any(sample.labels.get(label) not in values for label, values in self.where.items()):
                    continue
                labels = self.labels(sample.labels)
                if labels is None:
                    continue
                if "le" in sample.labels:
                    labels["le"] = sample.labels["le"]
                key = (self.name + suffix, tuple(labels.items()))
                found[key] = found.get(key, 0.0) + self.factor * sample.value
        for (name, pairs), value in found.items():
            theirs.add_sample(name, dict(pairs), value)
        return theirs


def _samples(families: Iterable[Metric], name: str) -> Iterator[Sample]:
    return (sample for family in families for sample in family.samples if sample.name == name)


def _triton(labels: _Labels) -> dict[str, str] | None:
    return {"model": labels["model"], "version": labels["version"]} if labels["model"] else None


def _failure(labels: _Labels) -> dict[str, str] | None:
    reasons = {"499": "CANCELED", "429": "REJECTED", "503": "REJECTED", "500": "BACKEND", "504": "BACKEND"}
    theirs = _triton(labels)
    if theirs is None or labels["code"] == "200":
        return None
    return theirs | {"reason": reasons.get(labels["code"], "OTHER")}


def _vllm(labels: _Labels) -> dict[str, str]:
    return {"model_name": labels["model"], "engine": "0"}


def _finished(labels: _Labels) -> dict[str, str]:
    return _vllm(labels) | {"finished_reason": labels["finish_reason"]}


_ALIASES = (
    _Alias("nv_inference_request_success", "counter", "mlos_requests_total", _triton, {"code": ("200",)}),
    _Alias("nv_inference_request_failure", "counter", "mlos_requests_total", _failure),
    _Alias("nv_inference_count", "counter", "mlos_request_seconds_count", _triton),
    _Alias("nv_inference_exec_count", "counter", "mlos_executions_total", _triton),
    _Alias("nv_inference_request_duration_us", "counter", "mlos_request_seconds_sum", _triton, factor=1e6),
    *(
        _Alias(
            *(f"nv_inference_{part}_duration_us", "counter", "mlos_stage_seconds_sum", _triton),
            where={"stage": stages},
            factor=1e6,
        )
        for part, stages in PARTS.items()
    ),
    _Alias("nv_inference_pending_request_count", "gauge", "mlos_queue_depth", _triton),
    _Alias("nv_cpu_utilization", "gauge", "mlos_host_cpu_utilization", dict),
    _Alias("nv_cpu_memory_total_bytes", "gauge", "mlos_host_memory_total_bytes", dict),
    _Alias("nv_cpu_memory_used_bytes", "gauge", "mlos_host_memory_used_bytes", dict),
    _Alias("nv_gpu_utilization", "gauge", "mlos_gpu_utilization", dict),
    _Alias("nv_gpu_memory_total_bytes", "gauge", "mlos_gpu_memory_total_bytes", dict),
    _Alias("nv_gpu_memory_used_bytes", "gauge", "mlos_gpu_memory_used_bytes", dict),
    _Alias("nv_gpu_power_usage", "gauge", "mlos_gpu_power_watts", dict),
    _Alias("nv_gpu_power_limit", "gauge", "mlos_gpu_power_limit_watts", dict),
    _Alias("nv_energy_consumption", "counter", "mlos_gpu_energy_joules_total", dict),
    _Alias("vllm:num_requests_running", "gauge", "mlos_claimed", _vllm),
    _Alias("vllm:num_requests_waiting", "gauge", "mlos_queue_depth", _vllm),
    _Alias("vllm:prompt_tokens_total", "counter", "mlos_tokens_total", _vllm, {"kind": ("prompt",)}),
    _Alias("vllm:generation_tokens_total", "counter", "mlos_tokens_total", _vllm, {"kind": ("completion",)}),
    _Alias("vllm:request_success_total", "counter", "mlos_generations_total", _finished),
    _Alias("vllm:e2e_request_latency_seconds", "histogram", "mlos_request_seconds", _vllm),
    _Alias("vllm:time_to_first_token_seconds", "histogram", "mlos_time_to_first_token_seconds", _vllm),
    _Alias("vllm:request_queue_time_seconds", "histogram", "mlos_stage_seconds", _vllm, {"stage": ("queue",)}),
)


class _Families(Collector):
    """Families that have been collected."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families


def exposition(families: Sequence[Metric]) -> bytes:
    """``families`` in Prometheus's text format, and what Triton and vLLM have of them."""
    written = generate_latest(_Families(families))
    for alias in _ALIASES:
        family = alias.of(families)
        if family.type != "counter":
            written += generate_latest(_Families([family]))
            continue
        # The library writes no counters but those whose names end in _total: it is told that it is a gauge.
        gauge = GaugeMetricFamily(family.name, family.documentation)
        gauge.samples = family.samples
        kind = f"# TYPE {family.name} ".encode()
        written += generate_latest(_Families([gauge])).replace(kind + b"gauge", kind + b"counter")
    return written
