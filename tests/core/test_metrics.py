"""What the server counts, under its own names and under Triton's and vLLM's: all there, right, well formed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from tests.core import packages
from tests.core.conftest import Server, Servers, Start
from tests.core.plugins import install_counting
from tests.core.test_stream import LONG, ask_raw

from mlos.store import InstallRecord, Store

ROW = {"inputs": {"x": [[1, 2, 3]]}}
STAGES = ("queue", "preprocess", "copy_in", "compute", "copy_out", "postprocess")
TRITON = {
    "nv_inference_request_success": "counter",
    "nv_inference_request_failure": "counter",
    "nv_inference_count": "counter",
    "nv_inference_exec_count": "counter",
    "nv_inference_request_duration_us": "counter",
    "nv_inference_queue_duration_us": "counter",
    "nv_inference_compute_input_duration_us": "counter",
    "nv_inference_compute_infer_duration_us": "counter",
    "nv_inference_compute_output_duration_us": "counter",
    "nv_inference_pending_request_count": "gauge",
    "nv_cpu_utilization": "gauge",
    "nv_cpu_memory_total_bytes": "gauge",
    "nv_cpu_memory_used_bytes": "gauge",
    "nv_gpu_utilization": "gauge",
    "nv_gpu_memory_total_bytes": "gauge",
    "nv_gpu_memory_used_bytes": "gauge",
    "nv_gpu_power_usage": "gauge",
    "nv_gpu_power_limit": "gauge",
    "nv_energy_consumption": "counter",
}
VLLM = {
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:prompt_tokens_total": "counter",
    "vllm:generation_tokens_total": "counter",
    "vllm:request_success_total": "counter",
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:time_to_first_token_seconds": "histogram",
    "vllm:request_queue_time_seconds": "histogram",
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Three models, each in a process of its own, and one that was installed in known time."""
    folder = tmp_path_factory.mktemp("counted")
    install_counting(folder)
    store = Store(folder / "store")
    package = packages.double(store)
    with store.staging() as staging:
        for entry in package.manifest.files:
            shutil.copyfile(package.path(entry.path), staging.folder / entry.path)
        record = InstallRecord(
            installed_at=datetime.now(UTC), axon="0", seconds={"convert": 2.5, "verify": 0.5}
        )
        manifest = package.manifest.model_copy(update={"name": "timed", "reference": "hf/tests/timed@c1"})
        store.commit(staging, manifest, record)
    packages.embedder(store)
    packages.double(store, "counter", tasks=("counting",))
    servers = Servers()
    yield servers.start(folder, "--request-timeout", "3600")
    servers.close()


def samples(server: Server) -> list[Sample]:
    """Every sample of one scrape, under the name that it has there."""
    return read(server.get("/metrics").body.decode())


def read(text: str) -> list[Sample]:
    written = set(re.findall(r"^[a-z_:]+", text, re.MULTILINE))
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    # The parser calls every counter's samples _total, as they are in a later format.
    return [
        each if each.name in written else each._replace(name=each.name.removesuffix("_total")) for each in found
    ]


def total(found: list[Sample], name: str, **labels: str) -> float:
    return sum(
        sample.value for sample in found if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_counts_are_those_of_the_requests_that_were_made(served: Server) -> None:
    """By eight clients at once, of three models in three processes, whoever answered."""
    asked: list[tuple[str, Any, int]] = [
        *[("double", ROW, 200)] * 60,
        *[("double", {"inputs": {"x": [[1]]}}, 400)] * 7,
        *[("embedder", {"text": "mlos makes ml"}, 200)] * 40,
        *[("counter", {"prompt": "5"}, 200)] * 20,
        *[("counter", {"prompt": "5", "parameters": {"fail_at": 2}}, 500)] * 3,
        *[("nobody", ROW, 404)] * 5,
    ]
    before = samples(served)
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda each: served.infer(each[0], each[1]).status, asked))
    assert statuses == [status for *_, status in asked]
    after = samples(served)

    def grown(name: str, **labels: str) -> float:
        return round(total(after, name, **labels) - total(before, name, **labels), 6)

    for model, right, wrong in (("double", 60, 7), ("embedder", 40, 0), ("counter", 20, 3)):
        version = served.row(model)["digest"][:12]
        assert grown("mlos_requests_total", model=model, version=version, code="200") == right
        assert grown("mlos_request_seconds_count", model=model) == right
        assert grown("mlos_batch_size_sum", model=model) == right
        assert {grown("mlos_stage_seconds_count", model=model, stage=stage) for stage in STAGES} == {right}
        theirs = {"model": model, "version": version}
        assert grown("nv_inference_request_success", **theirs) == right
        assert grown("nv_inference_count", **theirs) == grown("nv_inference_exec_count", **theirs) == right
        assert grown("nv_inference_request_failure", **theirs) == wrong
        assert grown("vllm:e2e_request_latency_seconds_count", model_name=model, engine="0") == right
        assert grown("vllm:e2e_request_latency_seconds_bucket", model_name=model, le="+Inf") == right
    assert grown("mlos_requests_total", model="", version="", code="404") == 5
    assert grown("nv_inference_request_failure", model="double", reason="OTHER") == 7
    assert grown("nv_inference_request_failure", model="counter", reason="BACKEND") == 3
    assert grown("nv_inference_request_failure") == 10
    assert grown("mlos_tokens_total", model="counter", kind="completion") == 100
    assert grown("vllm:generation_tokens_total", model_name="counter") == 100
    assert grown("vllm:prompt_tokens_total", model_name="counter") == 20
    assert grown("vllm:request_success_total", model_name="counter", finished_reason="stop") == 20
    assert grown("vllm:request_success_total") == 20


def test_times_under_their_names_are_ours_in_their_unit(served: Server) -> None:
    served.infer("double", ROW)
    found = samples(served)
    stages = {stage: total(found, "mlos_stage_seconds_sum", model="double", stage=stage) for stage in STAGES}
    for name, ours in (
        ("request", total(found, "mlos_request_seconds_sum", model="double")),
        ("queue", stages["queue"]),
        ("compute_input", stages["copy_in"] + stages["preprocess"]),
        ("compute_infer", stages["compute"]),
        ("compute_output", stages["postprocess"] + stages["copy_out"]),
    ):
        assert total(found, f"nv_inference_{name}_duration_us", model="double") == pytest.approx(1e6 * ours)
        assert ours > 0
    for theirs, labels in (("e2e_request_latency", {}), ("request_queue_time", {"stage": "queue"})):
        name = "mlos_stage_seconds" if labels else "mlos_request_seconds"
        for suffix in ("sum", "count"):
            assert total(found, f"vllm:{theirs}_seconds_{suffix}", model_name="double") == pytest.approx(
                total(found, f"{name}_{suffix}", model="double", **labels)
            )


def test_the_first_part_of_a_stream_is_timed_and_of_nothing_else(served: Server) -> None:
    before = samples(served)
    assert served.infer("counter", {"prompt": "3", "stream": True}).status == 200
    assert served.infer("counter", {"prompt": "3"}).status == 200
    after = samples(served)
    for name, label in (("mlos", "model"), ("vllm", "model_name")):
        separator = ":" if name == "vllm" else "_"
        count = f"{name}{separator}time_to_first_token_seconds_count"
        assert total(after, count, **{label: "counter"}) - total(before, count, **{label: "counter"}) == 1


def test_a_reason_that_nobody_knows_makes_no_series_of_its_own(served: Server) -> None:
    for reason in ("divine", "x" * 1000):
        assert served.infer("counter", {"prompt": "1", "parameters": {"finish": reason}}).status == 200
    found = samples(served)
    assert {each.labels["finish_reason"] for each in found if each.name == "mlos_generations_total"} <= {
        *("stop", "length", "other")
    }
    assert total(found, "vllm:request_success_total", model_name="counter", finished_reason="other") == 2


def test_what_runs_and_what_waits_is_told_under_every_name(served: Server) -> None:
    names = {
        "mlos_in_flight": 2,
        "mlos_claimed": 1,
        "mlos_queue_depth": 1,
        "nv_inference_pending_request_count": 1,
        "vllm:num_requests_running": 1,
        "vllm:num_requests_waiting": 1,
    }

    def now() -> dict[str, float]:
        return {name: served.metric(name) for name in names}

    endless = {"prompt": str(LONG), "stream": True, "parameters": {"pause": 0.01}}
    with ThreadPoolExecutor(1) as pool, ask_raw(served, endless):
        waiting = pool.submit(served.infer, "counter", {"prompt": "1"})
        served.wait_for(lambda: now() == names)
    assert waiting.result().status == 200
    served.wait_for(lambda: set(now().values()) == {0})


def test_installs_loads_memory_and_the_host_are_told(served: Server) -> None:
    assert served.infer("timed", ROW).status == 200
    found = samples(served)
    row = served.row("timed")
    version = row["digest"][:12]
    for stage, seconds in (("convert", 2.5), ("verify", 0.5)):
        assert total(found, "mlos_install_seconds", model="timed", version=version, stage=stage) == seconds
    assert total(found, "mlos_load_seconds", model="timed") == pytest.approx(row["load_seconds"], abs=1e-3)
    resident = total(found, "mlos_worker_memory_bytes", model="timed")
    assert 1 << 20 < resident <= total(found, "mlos_worker_memory_peak_bytes", model="timed")
    assert total(found, "mlos_model_ready", model="timed") == 1
    assert total(found, "mlos_model_info", digest=row["digest"], engine="onnxruntime", precision="fp32") == 1
    assert total(found, "mlos_build_info", version=served.get("/version").json["version"]) == 1
    used, whole = (total(found, f"mlos_host_memory_{name}_bytes") for name in ("used", "total"))
    assert 0 < used < whole
    assert total(found, "nv_cpu_memory_total_bytes") == whole
    assert 0 <= total(found, "nv_cpu_utilization") <= 1


def test_gpus_tell_what_they_know(
    tmp_path: Path, start: Start, served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By NVIDIA's own bindings, over a library that stands in for the driver's."""
    _stand_in(tmp_path, monkeypatch, starts=0)
    told = _of_gpus(start())
    first, second = ({"gpu_uuid": name} for name in ("GPU-one", "GPU-two"))
    assert {one.name: one.value for one in told if one.labels == first} == {
        "mlos_gpu_utilization": 0.25,
        "mlos_gpu_memory_total_bytes": 4000,
        "mlos_gpu_memory_used_bytes": 1000,
        "mlos_gpu_power_watts": 70.5,
        "mlos_gpu_power_limit_watts": 300,
        "mlos_gpu_energy_joules_total": 1234.5,
        "nv_gpu_utilization": 0.25,
        "nv_gpu_memory_total_bytes": 4000,
        "nv_gpu_memory_used_bytes": 1000,
        "nv_gpu_power_usage": 70.5,
        "nv_gpu_power_limit": 300,
        "nv_energy_consumption": 1234.5,
    }
    assert {one.name: one.value for one in told if one.labels == second} == {
        f"{whose}_gpu_memory_{name}_bytes": value
        for whose in ("mlos", "nv")
        for name, value in (("total", 4000), ("used", 1000))
    }
    assert len(told) == 16
    assert not _of_gpus(served) or Path("/dev/nvidiactl").exists()


def test_a_driver_that_does_not_start_is_told_of_once_and_costs_no_metrics(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stand_in(tmp_path, monkeypatch, starts=9)
    server = start()
    assert not _of_gpus(server)
    assert not _of_gpus(server)
    told = "the metrics tell of no GPU: NVML does not start: Driver Not Loaded"
    assert server.log.read_text().count(told) == 1


def _stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, *, starts: int) -> None:
    """Have servers find a library in place of the driver's, which says ``starts`` when it is to start."""
    source, library = Path(__file__).with_name("nvml.c"), folder / "libnvidia-ml.so.1"
    subprocess.run(["cc", f"-DSTARTS={starts}", "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))


def _of_gpus(server: Server) -> list[Sample]:
    return [one for one in samples(server) if re.match("mlos_gpu_|nv_gpu_|nv_energy_", one.name)]


def test_names_types_and_labels_are_theirs(served: Server) -> None:
    served.infer("counter", {"prompt": "3", "stream": True})
    served.infer("double", {"inputs": {}})
    text = served.get("/metrics").body.decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert {name: types.get(name) for name in TRITON | VLLM} == TRITON | VLLM
    for sample in samples(served):
        name = (
            re.sub(r"_(bucket|count|sum)$", "", sample.name) if sample.name.startswith("vllm:") else sample.name
        )
        extra = {
            "nv_inference_request_failure": {"reason"},
            "vllm:request_success_total": {"finished_reason"},
        }.get(name, {"le"} if sample.name.endswith("_bucket") else set())
        if name in TRITON:
            assert set(sample.labels) == (extra | {"model", "version"} if "inference" in name else set())
        elif name in VLLM:
            assert set(sample.labels) == {"model_name", "engine"} | extra


def test_the_text_is_what_prometheus_reads(served: Server) -> None:
    """By Prometheus's own check where it is installed: it dislikes the others' names, and must like ours."""
    served.infer("double", ROW)
    served.infer("double", {"inputs": {}})
    answer = served.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.body.decode()
    names = [family.name for family in text_string_to_metric_families(text)]
    assert len(names) == len(set(names)) > 30
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("read by prometheus_client alone: promtool (Debian's package prometheus) is not installed")
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr  # 3: it dislikes some names
    disliked = [line for line in done.stderr.splitlines() if not line.startswith(("nv_", "vllm:"))]
    assert disliked == []
    broken = subprocess.run(
        [promtool, "check", "metrics"], input=text + "mlos_x{ 1\n", capture_output=True, text=True
    )
    assert broken.returncode not in (0, 3)


def test_a_name_with_quotes_does_not_break_the_text() -> None:
    from prometheus_client.core import GaugeMetricFamily

    from mlos.core.metric_aliases import exposition

    strange = 'a "model"\\\nof two lines'
    family = GaugeMetricFamily("mlos_queue_depth", "Requests waiting", labels=("model", "version"))
    family.add_metric((strange, "v"), 4)
    found = read(exposition([family]).decode())
    assert {(sample.name, sample.labels.get("model", sample.labels.get("model_name"))) for sample in found} == {
        (name, strange)
        for name in ("mlos_queue_depth", "nv_inference_pending_request_count", "vllm:num_requests_waiting")
    }
    assert {sample.value for sample in found} == {4}
