"""What the server counts, for Prometheus, in a registry of its own. Times are in seconds, sizes in bytes.

Label values come from installed packages and from a fixed set of stages and statuses, never from a request:
a name that no package has is counted with an empty model label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mlos import __version__
from mlos.core.replica import Replica, State
from mlos.core.supervisor import Supervisor
from mlos.core.worker_protocol import Answer

MODE = "userspace"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MODEL = ("model", "version")
_VARIANT = (*_MODEL, "engine", "precision", "mode")
_BUCKETS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


class Metrics:
    """The server's registry. Gauges are read from the supervisor when they are scraped."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.registry = CollectorRegistry()
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
            ("model", "code"),
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
        self.in_flight = Gauge("mlos_in_flight", "Requests in the data plane", registry=self.registry)
        self.dropped_log_lines = Gauge(
            "mlos_log_lines_dropped", "Log lines lost because nobody took them", registry=self.registry
        )
        Gauge("mlos_build_info", "The running version", ("version",), registry=self.registry).labels(
            __version__
        ).set(1)
        self.registry.register(_Replicas(supervisor))

    def answered(self, replica: Replica, seconds: float, timings_ms: dict[str, float], answer: Answer) -> None:
        """Count an answered request, its stages, its tokens and how many were computed with it."""
        package, report = replica.package, replica.report
        engine, precision = (report.engine, report.precision) if report is not None else ("", "")
        labels = (package.name, package.digest[:12], engine, precision, MODE)
        self._batches.labels(*labels).observe(answer.batch)
        self._requests.labels(*labels).observe(seconds)
        for stage, milliseconds in timings_ms.items():
            self._stages.labels(*labels, stage).observe(milliseconds / 1e3)
        for kind, count in answer.tokens.items():
            self._tokens.labels(*labels, kind).inc(count)

    def counted(self, model: str, code: int) -> None:
        """Count a request by the status it was answered with."""
        self._codes.labels(model, str(code)).inc()

    def exposition(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)


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
            labels=("model", "digest", "reference", "weights", "engine", "precision", "threads"),
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
                ),
                1,
            )
        yield restarts
        yield loads
        yield evictions
        yield info
        for name, help_text, value in _GAUGES:
            family = GaugeMetricFamily(name, help_text, labels=_MODEL)
            for replica in replicas:
                if (known := value(replica)) is not None:
                    family.add_metric(_labels(replica), known)
            yield family


_GAUGES: tuple[tuple[str, str, Callable[[Replica], float | None]], ...] = (
    ("mlos_queue_depth", "Requests waiting", lambda replica: replica.channel.waiting),
    ("mlos_claimed", "Requests at the worker", lambda replica: replica.channel.claimed),
    ("mlos_load_seconds", "Last load, from start to ready", lambda replica: replica.load_seconds),
    ("mlos_worker_memory_bytes", "Resident memory of the worker", lambda replica: replica.memory_bytes()),
    (
        "mlos_worker_memory_peak_bytes",
        "Most resident memory that the worker has had",
        lambda replica: replica.peak_memory_bytes(),
    ),
    ("mlos_model_ready", "Whether the worker is ready", lambda replica: replica.state is State.READY),
)


def _labels(replica: Replica) -> tuple[str, str]:
    return replica.package.name, replica.package.digest[:12]
