"""Lets MLCommons' load generator drive a server, and writes what it measured as JSON.

It asks with the validation's own ``ask``, so that whatever differs from the validation's numbers is the load
generator's: when it asks, and where it starts and stops the clock. Its environment is added to our own path.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.append(sys.argv[1])

import httpx2  # after the path
import mlperf_loadgen as loadgen  # type: ignore[import-not-found] # it lives elsewhere

from mlos.validation.asking import ask

_CLIENTS = 16


def settings(order: dict[str, Any]) -> Any:
    chosen = loadgen.TestSettings()
    chosen.scenario = getattr(loadgen.TestScenario, order["scenario"])
    chosen.mode = loadgen.TestMode.PerformanceOnly
    chosen.min_query_count = order["queries"]
    chosen.max_query_count = order["queries"]
    chosen.min_duration_ms = 0
    chosen.server_target_qps = order.get("rate", 1.0)
    chosen.server_target_latency_ns = 10**10
    for seed in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"):
        setattr(chosen, seed, order["seed"])
    return chosen


def summary(folder: Path) -> dict[str, Any]:
    text = (folder / "mlperf_log_summary.txt").read_text()
    latencies = dict(re.findall(r"([\d.]+) percentile latency \(ns\)\s+: (\d+)", text))
    verdict = re.search(r"Result is : (\w+)", text)
    return {
        "scenario": re.findall(r"Scenario : (\w+)", text),
        "valid": verdict is not None and verdict[1] == "VALID",
        "percentiles_ms": {percentile: int(ns) / 1e6 for percentile, ns in latencies.items()},
        "text": text,
    }


def main(order: dict[str, Any]) -> dict[str, Any]:
    bodies, results = order["requests"], []
    limits = httpx2.Limits(max_connections=_CLIENTS, max_keepalive_connections=_CLIENTS)
    with (
        httpx2.Client(timeout=60, limits=limits, trust_env=False) as client,
        ThreadPoolExecutor(_CLIENTS) as pool,
        tempfile.TemporaryDirectory() as folder,
    ):

        def answer(sample: Any) -> None:
            try:
                found = {"result": ask(client, order["url"], bodies[sample.index]).answer.result}
            except Exception as error:  # told, and the load generator gets its answer whatever it was
                found = {"error": f"{type(error).__name__}: {error}"}
            results.append({"index": sample.index, **found})
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0)])

        def issue(samples: list[Any]) -> None:
            for sample in samples:
                if order["scenario"] == "SingleStream":
                    answer(sample)
                else:
                    pool.submit(answer, sample)

        for body in bodies:  # a warm connection and a loaded model
            ask(client, order["url"], body)
        system = loadgen.ConstructSUT(issue, lambda: None)
        library = loadgen.ConstructQSL(len(bodies), len(bodies), lambda _: None, lambda _: None)
        output = loadgen.LogOutputSettings()
        output.outdir, output.copy_summary_to_stdout = folder, False
        log = loadgen.LogSettings()
        log.log_output = output
        loadgen.StartTestWithLogSettings(system, library, settings(order), log)
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)
        return summary(Path(folder)) | {"results": results}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.load(sys.stdin))) + "\n")
