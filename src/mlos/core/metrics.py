"""What the server counts, for Prometheus, in a registry of its own. Times are in seconds, sizes in bytes.

Label values come from installed packages and from a fixed set of stages and statuses, never from a request:
a name that no package has is counted with an empty model label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar, cast

import psutil  # type: ignore[import-untyped]  # it ships no types
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mlos import __version__
from mlos.core import metric_aliases
from mlos.core.replica import Replica, State
from mlos.core.supervisor import Supervisor
from mlos.core.worker_protocol import Answer
from mlos.host.gpu import Gpu, gpus

_Family = TypeVar("_Family", Counter, Histogram)

MODE = "userspace"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MODEL = ("model", "version")
_VARIANT = (*_MODEL, "engine", "precision", "mode")
_GPU = ("gpu_uuid",)
_FINISH_REASONS = ("stop", "length")
_BUCKETS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


class Metrics:
    """The server's registry. Gauges are read from the supervisor when they are scraped."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.registry = CollectorRegistry()
        self._children: dict[tuple[Counter | Histogram, tuple[str, ...]], Counter | Histogram] = {}
        self._stages = Histogram(
            "mlos_stage_seconds",
            "Time of each stage of an answered request",
            (*_VARIANT, "stage"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._requests = Histogram(
            "mlos_request_seconds",
            "Time of an answered request in the data plane",
            _VARIANT,
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._codes = Counter(
            "mlos_requests",
            "Requests by HTTP status; 499 is a client that left",
            (*_MODEL, "code"),
            registry=self.registry,
        )
        self._tokens = Counter(
            "mlos_tokens",
            "Tokens of language models: read (prompt) and written (completion)",
            (*_VARIANT, "kind"),
            registry=self.registry,
        )
        self._batches = Histogram(
            "mlos_batch_size",
            "Requests computed together, by request",
            _VARIANT,
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self._executions = Counter(
            "mlos_executions",
            "Runs of the engine; a request that was computed together with others counts as its part of one",
            _VARIANT,
            registry=self.registry,
        )
        self._generations = Counter(
            "mlos_generations",
            "Answers of language models, by why they ended",
            (*_VARIANT, "finish_reason"),
            registry=self.registry,
        )
        self._first_parts = Histogram(
            "mlos_time_to_first_token_seconds",
            "Time from a streamed request's arrival to the first part of its answer",
            _VARIANT,
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._steps = Histogram(
            "mlos_step_sequences",
            "Generations that a step computed together, by token written",
            _VARIANT,
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self.in_flight = Gauge("mlos_in_flight", "Requests in the data plane", registry=self.registry)
        self.dropped_log_lines = Gauge(
            "mlos_log_lines_dropped", "Log lines lost because nobody took them", registry=self.registry
        )
        Gauge("mlos_build_info", "The running version", ("version",), registry=self.registry).labels(
            __version__
        ).set(1)
        self.registry.register(_Replicas(supervisor))
        self.registry.register(_Gpus())
        for name, help_text, read in _HOST:
            Gauge(name, help_text, registry=self.registry).set_function(read)

    def answered(self, replica: Replica, seconds: float, timings_ms: dict[str, float], answer: Answer) -> None:
        """Count an answered request, its stages, its tokens and how many were computed with it."""
        labels = _variant(replica)
        self._of(self._batches, *labels).observe(answer.batch)
        self._of(self._executions, *labels).inc(1 / answer.batch)
        self._of(self._requests, *labels).observe(seconds)
        for stage, milliseconds in timings_ms.items():
            self._of(self._stages, *labels, stage).observe(milliseconds / 1e3)
        for many, tokens in answer.steps.items():
            steps = self._of(self._steps, *labels)
            for _ in range(tokens):
                steps.observe(many)
        for kind, count in answer.tokens.items():
            self._of(self._tokens, *labels, kind).inc(count)
        if answer.finish_reason is not None:
            known = answer.finish_reason in _FINISH_REASONS
            self._of(self._generations, *labels, answer.finish_reason if known else "other").inc()

    def began(self, replica: Replica, seconds: float) -> None:
        """Note how long a streamed answer's first part took."""
        self._of(self._first_parts, *_variant(replica)).observe(seconds)

    def counted(self, replica: Replica | None, code: int) -> None:
        """Count a request by the status it was answered with; without a replica it was for no model of ours."""
        self._of(self._codes, *(_labels(replica) if replica is not None else ("", "")), str(code)).inc()

    def _of(self, family: _Family, *labels: str) -> _Family:
        """The child of a family, kept by us: the library's own ``labels`` takes a tenth of a millisecond."""
        child = self._children.get((family, labels))
        if child is None:
            child = self._children[family, labels] = family.labels(*labels)
        return cast("_Family", child)

    def exposition(self) -> bytes:
        """All of it in Prometheus's text format, and again under the names that other servers use."""
        return metric_aliases.exposition(list(self.registry.collect()))


class _Replicas(Collector):
    """The state of every replica, as it is when it is asked for."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def collect(self) -> Iterable[Metric]:
        """The families, one sample a replica; a value that is not known is left out."""
        replicas = self._supervisor.loaded()
        restarts = CounterMetricFamily("mlos_restarts", "Workers replaced", labels=_MODEL)
        loads = CounterMetricFamily(
            "mlos_loads", "Workers that became ready, by why they were started", labels=(*_MODEL, "reason")
        )
        evictions = CounterMetricFamily(
            "mlos_evictions", "Idle workers ended to make room for another model", labels=_MODEL
        )
        info = GaugeMetricFamily(
            "mlos_model_info",
            "A served model, and what it is served with once it has been loaded",
            labels=("model", "digest", "reference", "weights", "engine", "precision", "threads", "streams"),
        )
        for replica in replicas:
            package = replica.package
            restarts.add_metric(_labels(replica), replica.restarts)
            evictions.add_metric(_labels(replica), replica.evictions)
            for reason, count in replica.loads.items():
                loads.add_metric((*_labels(replica), reason), count)
            served, report = replica.served_as, replica.report
            info.add_metric(
                (
                    *(package.name, package.digest, package.reference, package.manifest.weights),
                    *((report.engine, report.precision) if report is not None else ("", "")),
                    str(served.choice.candidate.threads) if served is not None else "",
                    str(served.choice.candidate.streams) if served is not None else "",
                ),
                1,
            )
        yield restarts
        yield loads
        yield evictions
        yield info
        installs = GaugeMetricFamily(
            "mlos_install_seconds", "What each stage of the model's install took", labels=(*_MODEL, "stage")
        )
        for replica in replicas:
            for stage, seconds in replica.package.record.seconds.items():
                installs.add_metric((*_labels(replica), stage), seconds)
        yield installs
        for name, help_text, value in _GAUGES:
            family = GaugeMetricFamily(name, help_text, labels=_MODEL)
            for replica in replicas:
                if (known := value(replica)) is not None:
                    family.add_metric(_labels(replica), known)
            yield family


class _Gpus(Collector):
    """The host's GPUs, whoever uses them."""

    def collect(self) -> Iterable[Metric]:
        """The families, one sample a GPU; a value that it does not tell is left out."""
        found = gpus()
        for name, help_text, value in _GPU_GAUGES:
            family = GaugeMetricFamily(name, help_text, labels=_GPU)
            for gpu in found:
                if (known := value(gpu)) is not None:
                    family.add_metric((gpu.uuid,), known)
            yield family
        energy = CounterMetricFamily(
            "mlos_gpu_energy_joules", "Energy that the GPU took since its driver was loaded", labels=_GPU
        )
        for gpu in found:
            if gpu.energy_joules is not None:
                energy.add_metric((gpu.uuid,), gpu.energy_joules)
        yield energy


def _cpu_share() -> float:
    return float(psutil.cpu_percent()) / 100


_GAUGES: tuple[tuple[str, str, Callable[[Replica], float | None]], ...] = (
    ("mlos_queue_depth", "Requests waiting", lambda replica: replica.channel.waiting),
    ("mlos_claimed", "Requests at the workers", lambda replica: replica.channel.claimed),
    ("mlos_load_seconds", "Last load, from start to ready", lambda replica: replica.load_seconds),
    ("mlos_worker_memory_bytes", "Resident memory of the workers", lambda replica: replica.memory_bytes()),
    (
        "mlos_worker_memory_peak_bytes",
        "Most resident memory that each of the workers has had, together",
        lambda replica: replica.peak_memory_bytes(),
    ),
    ("mlos_model_ready", "Whether a worker is ready", lambda replica: replica.state is State.READY),
    ("mlos_workers_ready", "Workers that are ready", lambda replica: replica.workers_ready),
)

_HOST: tuple[tuple[str, str, Callable[[], float]], ...] = (
    ("mlos_host_cpu_utilization", "Share of the host's processors in use since the last scrape", _cpu_share),
    ("mlos_host_memory_total_bytes", "Memory of the host", lambda: psutil.virtual_memory().total),
    ("mlos_host_memory_used_bytes", "Memory of the host in use", lambda: psutil.virtual_memory().used),
)

_GPU_GAUGES: tuple[tuple[str, str, Callable[[Gpu], float | None]], ...] = (
    ("mlos_gpu_utilization", "Share of the last sample period it computed in", lambda gpu: gpu.utilization),
    ("mlos_gpu_memory_total_bytes", "Memory of the GPU", lambda gpu: gpu.memory_total_bytes),
    ("mlos_gpu_memory_used_bytes", "Memory of the GPU in use", lambda gpu: gpu.memory_used_bytes),
    ("mlos_gpu_power_watts", "Power that the GPU draws", lambda gpu: gpu.power_watts),
    ("mlos_gpu_power_limit_watts", "Power that the GPU may draw", lambda gpu: gpu.power_limit_watts),
)


def _variant(replica: Replica) -> tuple[str, str, str, str, str]:
    report = replica.report
    engine, precision = (report.engine, report.precision) if report is not None else ("", "")
    return (*_labels(replica), engine, precision, MODE)


def _labels(replica: Replica) -> tuple[str, str]:
    return replica.package.name, replica.package.digest[:12]
