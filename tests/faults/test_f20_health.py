"""F20: live means that the loop turns, ready says why not."""

from __future__ import annotations

from tests.core import packages
from tests.core.conftest import Start
from tests.core.handling import ROW, alive, slowly

from mlos.store import Store


def test_an_empty_server_is_live_and_not_ready_until_something_is_installed(start: Start, store: Store) -> None:
    server = start()
    assert server.get("/v2/health/live").status == 200
    answer = server.get("/v2/health/ready")
    assert (answer.status, answer.json["reason"]) == (503, "no model is installed")
    assert server.infer("double", ROW).status == 404
    packages.double(store)
    assert server.get("/v2/health/ready").status == 200
    assert server.infer("double", ROW).status == 200
    store.remove("double")
    assert server.infer("double", ROW).status == 404
    assert server.get("/v2/health/ready").status == 503
    worker = server.worker("double")
    server.wait_for(lambda: not alive(worker))


def test_a_model_named_at_start_loads_then_and_the_others_are_not_served(start: Start, store: Store) -> None:
    packages.double(store)
    packages.slow(store)
    server = start("--model", "hf/tests/double")
    reasons = set()

    def ready() -> bool:
        answer = server.get("/v2/health/ready")
        reasons.add(answer.json["reason"])
        return answer.status == 200

    server.wait_for(ready)
    assert "model double is loading: loading" in reasons
    assert [row["id"] for row in server.get("/v1/models").json["data"]] == ["double"]
    answer = server.infer("slow", slowly(1))
    assert answer.status == 404
    assert "started for: double" in answer.error["message"]


def test_a_corrupt_package_is_refused_with_the_reason_until_it_is_installed_again(
    start: Start, store: Store
) -> None:
    packages.flip_byte(packages.double(store))
    packages.embedder(store)
    server = start("--model", "double", "--model", "embedder")
    server.wait_for(lambda: server.row("double")["state"] == "FAILED")
    assert "model.onnx" in server.row("double")["reason"]
    answer = server.infer("double", ROW)
    assert (answer.status, answer.error["code"], answer.error["field"]) == (422, "corrupt", "model.onnx")
    assert answer.error["hint"].startswith("axon install")
    ready = server.get("/v2/health/ready")
    assert ready.status == 503
    assert "double" in ready.json["reason"]
    assert server.infer("embedder", {"text": "mlos"}).status == 200
    packages.double(store)
    server.wait_for(lambda: server.get("/v2/health/ready").status == 200)
    assert server.infer("double", ROW).status == 200
