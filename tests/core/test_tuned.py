"""A server serves by this host's tuning records, says so everywhere, and computes together what pays."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tests.core import packages, records
from tests.core.conftest import Start, environment
from tests.small import Small

from mlos.store import Store
from mlos.tune import Batching

DOCS = Path(__file__).parents[2] / "docs" / "engines.md"
WORDS = ("river", "stone", "cloud", "letter", "engine", "garden", "winter", "music", "signal", "harbour")
PAYS = Batching(most=4, longest=64)


def embedding(answer: Any) -> Any:
    return np.array(answer.json["result"]["embedding"])


def test_an_engine_that_was_found_faster_serves_and_is_named_everywhere(
    start: Start, store: Store, home: Path, small: Small
) -> None:
    package = small.install("bert", store)
    plain = start()
    before = plain.infer("bert", {"text": "a river of stones"})
    assert (before.json["engine"], before.json["precision"]) == ("onnxruntime", "fp32")
    (row,) = plain.get("/version").json["models"]
    assert row["chosen"] == "the default engine: not tuned on this host (axon tune bert)"
    plain.stop()
    records.write(home, package, "openvino")
    server = start()
    answer = server.infer("bert", {"text": "a river of stones"})
    assert (answer.json["engine"], answer.json["precision"]) == ("openvino", "fp32")
    np.testing.assert_allclose(embedding(answer), embedding(before), atol=1e-4, rtol=1e-3)
    version = server.get("/version").json
    assert version["precision"] == "fp32"
    (row,) = version["models"]
    assert (row["engine"], row["precision"], row["threads"], row["batch"]) == ("openvino", "fp32", 1, 1)
    assert "takes 0.500 [0.490, 0.510] of the time of onnxruntime fp32, 1 thread" in row["chosen"]
    assert server.row("bert")["chosen"] == row["chosen"]
    assert server.row("bert")["engine"].startswith("openvino 2")
    assert server.metric("mlos_model_info", engine="openvino", precision="fp32", threads="1") == 1
    assert server.metric("mlos_request_seconds_count", engine="openvino", precision="fp32") == 1
    # Its worker is confined as any other, and what it warmed up is what its tasks ask for.
    server.wait_for(lambda: any(line["message"] == "model ready" for line in server.lines()))
    ready = next(line for line in server.lines() if line["message"] == "model ready")
    assert {"no_new_privs", "rlimits", "seccomp"} <= set(ready["sandbox"])
    assert ready["heavy"] == []
    assert not any("not warmed up" in line["message"] for line in server.lines())
    # A token beyond the vocabulary is the request's fault with this engine too.
    tensors = {name: [[1 if name == "attention_mask" else 10**6]] for name in ("input_ids", "attention_mask")}
    tensors["token_type_ids"] = [[0]]
    refused = server.infer("bert", {"inputs": tensors, "outputs": ["last_hidden_state"]})
    assert (refused.status, refused.error["code"]) == (400, "invalid_input")


def test_a_precision_that_was_never_proved_is_refused_with_what_to_do(start: Start, store: Store) -> None:
    packages.double(store)
    server = start("--precision", "bf16")
    answer = server.infer("double", {"inputs": {"x": [[1, 2, 3]]}})
    assert answer.status == 422
    assert "double was never proved in bf16 on this host" in answer.error["message"]
    assert answer.error["hint"].startswith("axon tune double --precision bf16")
    assert server.row("double")["state"] == "FAILED"


def test_a_precision_that_nobody_knows_is_refused_at_start(home: Path) -> None:
    command = [sys.executable, "-m", "mlos.core.cli", "--port", "0", "--precision", "fp8"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(home), timeout=60)
    assert done.returncode == 2
    assert "setting precision" in done.stderr


def test_requests_that_wait_are_computed_together_and_answered_as_alone(
    start: Start, store: Store, home: Path, small: Small
) -> None:
    package = small.install("bert", store)
    records.write(home, package, "onnxruntime", batching=PAYS)
    chance = np.random.default_rng(3)
    texts = [" ".join(chance.choice(WORDS, size=int(chance.integers(1, 30)))) for _ in range(23)]
    bad: dict[str, Any] = {
        "inputs": {"input_ids": [[10**6]], "attention_mask": [[1]], "token_type_ids": [[0]]},
        "outputs": ["last_hidden_state"],
    }
    server = start()
    asked = [*({"text": text} for text in texts), bad]
    # They come while the model is being loaded, so that they wait for its worker together.
    with ThreadPoolExecutor(len(asked)) as pool:
        *answers, refused = pool.map(lambda request: server.infer("bert", request), asked)
    assert {answer.status for answer in answers} == {200}
    assert (refused.status, refused.error["code"]) == (400, "invalid_input")
    alone = [server.infer("bert", {"text": text}) for text in texts]
    for one, other in zip(answers, alone, strict=True):
        np.testing.assert_allclose(embedding(one), embedding(other), atol=1e-4, rtol=1e-3)
    (row,) = server.get("/version").json["models"]
    assert row["batch"] == 4
    count = server.metric("mlos_batch_size_count", model="bert")
    single = server.metric("mlos_batch_size_bucket", model="bert", le="1.0")
    assert count == 46
    assert single < count
    assert server.metric("mlos_batch_size_bucket", model="bert", le="4.0") == count
    # So many runs of the engine, told in three ways.
    executions = server.metric("mlos_executions_total", model="bert")
    assert 46 / 4 <= executions < 46
    assert server.metric("nv_inference_exec_count", model="bert") == executions
    (told,) = server.get("/v2/models/bert/stats").json["model_stats"]
    assert (told["inference_count"], told["execution_count"]) == (46, round(executions))
    timings = answers[0].json["timings_ms"]
    assert set(timings) == {"queue", "preprocess", "copy_in", "compute", "copy_out", "postprocess"}
    assert min(timings.values()) >= 0


def test_the_third_partys_engine_of_the_docs_serves_once_a_record_names_it(
    start: Start, store: Store, home: Path
) -> None:
    code, entry = re.findall(r"```(?:python|toml)\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 40
    modules = home / "modules"
    described = modules / "onnx_reference-1.dist-info"
    described.mkdir(parents=True)
    (modules / "onnx_reference.py").write_text(code)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: onnx-reference\nVersion: 1\n")
    name, _, value = entry.splitlines()[1].partition(" = ")
    (described / "entry_points.txt").write_text(f"[mlos.engines.v1]\n{name} = {value.strip(chr(34))}\n")
    package = packages.double(store)
    request = {"inputs": {"x": [[1, 2, 3]]}}
    installed = start()
    # That it is installed changes nothing by itself.
    assert installed.infer("double", request).json["engine"] == "onnxruntime"
    installed.stop()
    records.write(home, package, "onnx-reference")
    server = start()
    answer = server.infer("double", request)
    assert answer.status == 200, answer.body
    assert (answer.json["engine"], answer.json["result"]) == ("onnx-reference", {"y": [[2, 4, 6]]})
    assert server.infer("double", {"inputs": {"x": [[1, 2]]}}).status == 400


def test_requests_wait_for_company_where_that_was_allowed(start: Start, store: Store, home: Path) -> None:
    package = packages.embedder(store)
    records.write(home, package, "onnxruntime", batching=PAYS)
    server = start("--model", "embedder", "--batch-wait", "20000")
    server.wait_for(lambda: bool(server.row("embedder")["state"] == "READY"))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: server.infer("embedder", {"text": "mlos"}), range(4)))
    assert {answer.status for answer in answers} == {200}
    assert server.metric("mlos_batch_size_count", model="embedder") == 4
    assert server.metric("mlos_batch_size_bucket", model="embedder", le="2.0") == 0
