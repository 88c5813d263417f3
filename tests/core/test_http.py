"""What a client sees: V1's answers, and an error that says what is wrong for what is not (F17, F21, F22)."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.core.conftest import Server
from tests.core.packages import WIDTH

TEXT = {"text": "mlos makes ml deployment easy"}


def test_a_text_is_answered_in_v1s_shape(shared: Server) -> None:
    answer = shared.infer("embedder", TEXT)
    assert answer.status == 200
    body = answer.json
    assert set(body) == {
        *("model", "digest", "task", "result", "engine", "precision", "mode", "timings_ms", "request_id")
    }
    assert (body["model"], body["task"], body["engine"]) == ("embedder", "embeddings", "onnxruntime")
    assert (body["precision"], body["mode"]) == ("fp32", "userspace")
    assert body["digest"] == shared.row("embedder")["digest"]
    assert body["result"]["dimensions"] == WIDTH
    assert math.isclose(sum(x * x for x in body["result"]["embedding"]), 1.0, rel_tol=1e-5)
    assert set(body["timings_ms"]) == {"queue", "preprocess", "copy_in", "compute", "copy_out", "postprocess"}
    assert all(time >= 0 for time in body["timings_ms"].values())
    assert answer.headers["x-request-id"] == body["request_id"]
    assert "compute;dur=" in answer.headers["server-timing"]
    assert "total;dur=" in answer.headers["server-timing"]


def test_the_briefs_curl_works_with_and_without_a_content_type(shared: Server) -> None:
    address = f"{shared.url}/v1/models/embedder/inference"
    body = '{"text": "MLOS makes ML deployment easy"}'
    for header in ([], ["-H", "Content-Type: application/json"]):
        command = ["curl", "-sS", "-X", "POST", address, *header, "-d", body]
        said = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
        assert json.loads(said)["result"]["dimensions"] == WIDTH


@pytest.mark.parametrize("name", ["double", "hf/tests/double", "hf/tests/double@c1", "tests/double"])
def test_a_model_is_found_by_every_name_it_has(shared: Server, name: str) -> None:
    assert shared.infer(name, {"inputs": {"x": [[1, 2, 3]]}}).json["result"] == {"y": [[2.0, 4.0, 6.0]]}


def test_the_list_of_models_says_all_about_each(shared: Server) -> None:
    shared.infer("double", {"inputs": {"x": [[1, 2, 3]]}})
    row = shared.row("double")
    assert row["object"] == "model"
    assert row["owned_by"] == "tests"
    assert row["state"] == "READY"
    assert row["reason"] is None
    assert row["engine"].startswith("onnxruntime ")
    assert row["tasks"] == ["tensors"]
    assert (row["format"], row["precision"], row["weights"]) == ("onnx", "fp32", "local")
    assert row["load_seconds"] > 0
    assert row["memory_bytes"] > 1 << 20


@pytest.mark.parametrize(
    ("model", "request_", "field", "expected", "got"),
    [
        ("double", {"text": 5}, "text", "string", "int"),
        ("double", {"texts": ["a", 4]}, "texts[1]", "string", "int"),
        ("double", [1], "body", "object", "array"),
        ("double", {"txt": "a"}, "txt", "text, texts", "'txt'"),
        ("double", {}, "text", "one of", "none"),
        ("double", {"text": "a"}, "text", "inputs", "text"),
        ("embedder", {"text": "a", "parameters": {"colour": 1}}, "parameters.colour", None, "'colour'"),
        ("embedder", b'{"text": "\\ud800\\u0041"}', None, None, None),
    ],
)
def test_f17_a_wrong_request_is_a_400_that_names_field_expected_and_got(
    shared: Server, model: str, request_: Any, field: str | None, expected: str | None, got: str | None
) -> None:
    answer = shared.infer(model, request_)
    assert answer.status == 400, answer.body
    error = answer.error
    assert set(error) == {"code", "message", "field", "expected", "got", "hint", "request_id"}
    assert error["message"]
    if field is not None:
        assert error["field"] == field
    assert (expected or "") in (error["expected"] or "")
    assert (got or "") in (error["got"] or "")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"", "line 1, column 1"),
        (b"text=hello", "line 1, column"),
        (b'{"text": "a",\n "x" 1}', "line 2, column"),
        (b'{"text": "a"} trailing', "line 1, column"),
        (b'{"text": "\xff"}', "UTF-8"),
        (b'{"inputs": {"x": ' + b"[" * 100_000, "nested"),
    ],
)
def test_what_is_not_json_is_a_400_that_says_where(shared: Server, body: bytes, where: str) -> None:
    answer = shared.infer("double", body)
    assert answer.status == 400
    assert where in answer.error["message"]


def test_an_unknown_model_is_a_404_that_says_what_there_is(shared: Server) -> None:
    answer = shared.infer("nobody", TEXT)
    assert answer.status == 404
    assert "nobody" in answer.error["message"]
    assert "embedder" in json.dumps(answer.error)


@pytest.mark.parametrize("name", ["..%2F..%2Fetc%2Fpasswd", "%00", "a%0Ab", "é", "x" * 5000])
def test_a_hostile_name_is_a_404(shared: Server, name: str) -> None:
    head = f"POST /v1/models/{name}/inference HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2"
    answer = shared.raw(f"{head}\r\n\r\n{{}}".encode())
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), answer


def test_a_wrong_address_or_method_is_told_in_our_form(shared: Server) -> None:
    assert shared.get("/nothing").error["code"] == "not_found"
    answer = shared.get("/v1/models/double/inference")
    assert answer.status == 405
    assert answer.error["code"] == "method_not_allowed"
    assert "POST" in answer.headers["allow"]


def test_what_is_not_read_is_a_415(shared: Server) -> None:
    answer = shared.infer("double", b"x", **{"Content-Encoding": "gzip"})
    assert answer.status == 415
    assert answer.error["field"] == "Content-Encoding"


def test_files_are_bodies_too_and_a_model_of_tensors_says_that_it_takes_none(shared: Server) -> None:
    for kind in ("image/png", "application/octet-stream"):
        answer = shared.infer("double", b"\x89PNG", **{"Content-Type": kind})
        assert (answer.status, answer.error["field"], answer.error["expected"]) == (400, "image", "inputs")
    broken = shared.infer("double", b"x", **{"Content-Type": "multipart/form-data; boundary=x"})
    assert broken.status == 400
    assert shared.infer("double", {"image": "no base64!"}).error["field"] == "image"


def test_the_fields_of_an_address_are_utf_8(shared: Server) -> None:
    def field(query: bytes) -> str:
        head = b"POST /v1/models/double/inference?%b=1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" % query
        answer = shared.raw(head + b"content-type: image/png\r\ncontent-length: 1\r\n\r\nx")
        return str(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["field"])

    assert field(b"caf%C3%A9") == "caf\u00e9"  # the name of no field
    assert field(b"caf%E9") == "query"


def test_a_request_id_is_kept_if_it_is_sane(shared: Server) -> None:
    assert shared.infer("embedder", TEXT, **{"X-Request-Id": "abc-1.2"}).json["request_id"] == "abc-1.2"
    for mad in ("a b", "<x>", "x" * 500, ""):
        answer = shared.infer("nobody", TEXT, **{"X-Request-Id": mad})
        assert answer.error["request_id"] not in (mad, "")


def test_a_body_over_the_limit_is_a_413_whether_it_says_its_length_or_not(shared: Server) -> None:
    answer = shared.infer("double", b"x" * 1_000_001)
    assert answer.status == 413
    assert answer.error["expected"] == "at most 1000000 bytes"
    chunks = b"".join(b"10000\r\n" + b"x" * 65536 + b"\r\n" for _ in range(20)) + b"0\r\n\r\n"
    head = b"POST /v1/models/double/inference HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    answer_bytes = shared.raw(head + b"transfer-encoding: chunked\r\n\r\n" + chunks)
    assert answer_bytes.startswith(b"HTTP/1.1 413")


def test_a_client_that_never_ends_its_body_is_read_without_memory_growing_and_cut_off(shared: Server) -> None:
    head = b"POST /v1/models/double/inference HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", shared.port), timeout=30) as connection:
        connection.sendall(head)
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 1 << 30:
                sent += connection.send(b"x" * (1 << 20))
    assert sent < 1 << 30


def test_texts_over_the_limit_are_a_413(shared: Server) -> None:
    assert shared.infer("embedder", {"texts": ["ß" * 450] * 10}).status == 200
    answer = shared.infer("embedder", {"texts": ["ß" * 451] * 10})
    assert (answer.status, answer.error["field"]) == (413, "texts")
    assert answer.error["got"] == "9020 bytes"


def test_a_head_that_is_too_large_is_a_431(shared: Server) -> None:
    many = b"".join(b"x-%d: %s\r\n" % (n, b"y" * 1000) for n in range(100))
    for headers in (many, b"x: " + b"y" * 100_000 + b"\r\n", b"x: " + b"y" * 10_000_000):
        answer = self_closing(shared, b"GET /health HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 431"), answer[:200]
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_large"
    small = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx: " + b"y" * 60_000 + b"\r\n\r\n"
    assert shared.raw(small).startswith(b"HTTP/1.1 200")


def self_closing(server: Server, data: bytes) -> bytes:
    """What the server answers to a client that is cut off while it still sends."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        answer = b""
        with contextlib.suppress(OSError):
            connection.sendall(data)
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                answer += piece
        return answer


def test_what_is_not_http_is_a_400_in_our_form(shared: Server) -> None:
    for data in (b"\x16\x03\x01\x02\x00\x01\x00", b"HELLO\r\n\r\n", b"GET / HTTP/1.1\r\n bad: x\r\n\r\n"):
        answer = shared.raw(data)
        assert answer.startswith(b"HTTP/1.1 400"), answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "usage"


def test_a_body_that_stops_coming_is_a_408(shared: Server) -> None:
    head = b"POST /v1/models/double/inference HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
    answer = shared.raw(head + b'{"text"')
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"7 bytes" in answer


def test_slow_clients_do_not_slow_others(shared: Server) -> None:
    head = b"POST /v1/models/double/inference HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
    slow = [socket.create_connection(("127.0.0.1", shared.port), timeout=30) for _ in range(200)]
    try:
        for connection in slow:
            connection.sendall(head)
        assert shared.infer("double", {"inputs": {"x": [[1, 2, 3]]}}).status == 200
        for connection in slow:
            assert connection.recv(12) == b"HTTP/1.1 408"
    finally:
        for connection in slow:
            connection.close()


def test_several_requests_share_a_connection(shared: Server) -> None:
    head = b"POST /v1/models/double/inference HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n%s\r\n"
    body = b'{"inputs": {"x": [[1, 2, 3]]}}'
    data = (head % (len(body), b"") + body) * 3 + head % (len(body), b"connection: close\r\n") + body
    assert shared.raw(data).count(b"HTTP/1.1 200") == 4


def test_a_request_larger_than_a_packet_comes_back_whole(shared: Server) -> None:
    rows = [[float(n), 1.0, 2.0] for n in range(20_000)]
    answer = shared.infer("double", {"inputs": {"x": rows}})
    assert answer.json["result"]["y"] == [[2 * n for n in row] for row in rows]


def test_many_clients_each_get_their_own_answer(shared: Server) -> None:
    def ask(n: int) -> bool:
        answer = shared.infer("double", {"inputs": {"x": [[n, n, n]]}})
        return bool(answer.json["result"]["y"] == [[2.0 * n] * 3])

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(300)))


def test_f16_a_client_that_leaves_frees_its_place(shared: Server) -> None:
    shared.infer("slow", {"inputs": {"n": 1, "x": [1]}})
    body = json.dumps({"inputs": {"n": 150, "x": [1]}}).encode()
    head = b"POST /v1/models/slow/inference HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    before = shared.metric("mlos_requests_total", model="slow", code="499")
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", shared.port), timeout=30) as connection:
            connection.sendall(head + body)
            shared.wait_for(lambda: shared.metric("mlos_in_flight") == 1)
        shared.wait_for(lambda: shared.metric("mlos_in_flight") == 0)
    assert shared.metric("mlos_requests_total", model="slow", code="499") == before + 3
    assert shared.metric("mlos_queue_depth", model="slow") == 0


def test_labels_come_from_packages_alone(shared: Server) -> None:
    for name in ("stranger-1", "stranger-2"):
        shared.infer(name, TEXT)
    text = shared.get("/metrics").body.decode()
    assert "stranger" not in text
    assert shared.metric("mlos_requests_total", model="", code="404") >= 2


def test_metrics_tell_stages_build_and_model(shared: Server) -> None:
    row = shared.infer("embedder", TEXT).json
    version = row["digest"][:12]
    for stage in ("queue", "preprocess", "copy_in", "compute", "copy_out", "postprocess"):
        labels = {"model": "embedder", "version": version, "engine": "onnxruntime", "precision": "fp32"}
        assert shared.metric("mlos_stage_seconds_count", stage=stage, mode="userspace", **labels) >= 1
    assert shared.metric("mlos_model_info", digest=row["digest"]) == 1
    assert shared.metric("mlos_build_info") == 1
    assert shared.metric("mlos_worker_memory_bytes", model="embedder") > 1 << 20
    assert shared.metric("mlos_load_seconds", model="embedder") > 0


def test_the_log_has_ids_and_no_prompts(shared: Server) -> None:
    secret = "my secret diary"
    request_id = shared.infer("embedder", {"text": secret}).json["request_id"]
    shared.infer("embedder", {"text": secret, "parameters": {"x": secret}})
    shared.wait_for(lambda: any(line.get("request_id") == request_id for line in shared.lines()))
    time.sleep(0.2)
    assert secret not in shared.log.read_text()
    entry = next(line for line in shared.lines() if line.get("request_id") == request_id)
    assert (entry["status"], entry["method"]) == (200, "POST")


def test_control_characters_in_the_log_are_escaped(shared: Server) -> None:
    shared.get("/%1b%5b31mred%0afake%7f")
    shared.wait_for(lambda: "red" in shared.log.read_text())
    text = shared.log.read_text()
    assert not any(ord(character) < 32 and character != "\n" for character in text)
    assert "\x7f" not in text
    assert any(line.get("path") == "/\x1b[31mred\nfake\x7f" for line in shared.lines())


def test_health_live_ready_and_version(shared: Server) -> None:
    assert shared.get("/v2/health/live").json == {"live": True}
    assert shared.get("/v2/health/ready").json == {"ready": True, "reason": None}
    assert shared.get("/health").json["ready"] is True
    assert shared.get("/version").json["name"] == "mlos"


def test_an_error_is_short_however_long_what_it_quotes(shared: Server) -> None:
    for request in ({"x" * 500_000: 1}, {"inputs": {"\u0001" * 100_000: [1]}}):
        answer = shared.infer("double", request)
        assert answer.status == 400
        assert len(answer.body) < 40_000
