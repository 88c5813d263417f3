"""The Open Inference Protocol V2 over REST, as a plain client and as Triton's own speak it (F17, F23, F24)."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton  # type: ignore[import-untyped]  # it ships no types
from tests.core import packages
from tests.core.conftest import Answer, Server, running
from tests.core.packages import WIDTH
from tests.core.plugins import count_as
from tritonclient.utils import InferenceServerException  # type: ignore[import-untyped]  # likewise

from mlos.store import Store

ROWS = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
HEADER = "inference-header-content-length"


def ask(server: Server, model: str, request: Any, raw: bytes = b"", **headers: str) -> Answer:
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    told = {**({HEADER: str(len(body))} if raw else {}), **headers}
    return server.request("POST", f"/v2/models/{model}/infer", body + raw, told)


def x(**changed: Any) -> dict[str, Any]:
    given = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": ROWS.ravel().tolist(), **changed}
    return {key: value for key, value in given.items() if value is not None}


@pytest.fixture(scope="module")
def client(shared: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(shared.url.removeprefix("http://")) as found:
        yield found


def test_the_server_says_what_it_is_and_what_it_can(shared: Server) -> None:
    told = shared.get("/v2").json
    assert told["name"] == "mlos"
    assert {"binary_tensor_data", "classification", "generate", "statistics"} <= set(told["extensions"])


def test_a_model_says_what_it_takes_and_gives(shared: Server) -> None:
    told = shared.get("/v2/models/double").json
    version = shared.row("double")["digest"][:12]
    assert told == {
        "name": "double",
        "versions": [version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }
    assert shared.get(f"/v2/models/double/versions/{version}").json == told
    assert shared.get("/v2/models/hf/tests/double@c1").json == told


def test_its_configuration_is_in_tritons_words(shared: Server) -> None:
    told = shared.get("/v2/models/double/config").json
    assert told["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 3]}]
    assert (told["name"], told["backend"], told["max_batch_size"]) == ("double", "onnxruntime", 0)
    assert told["parameters"]["tasks"] == {"string_value": "tensors"}


@pytest.mark.parametrize("nested", [False, True])
def test_json_in_json_out(shared: Server, nested: bool) -> None:
    data = ROWS.tolist() if nested else ROWS.ravel().tolist()
    answer = ask(shared, "double", {"id": "a-1", "inputs": [x(data=data)], "outputs": [{"name": "y"}]})
    assert answer.status == 200, answer.body
    assert answer.json == {
        "model_name": "double",
        "model_version": shared.row("double")["digest"][:12],
        "id": "a-1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 3], "data": (2 * ROWS).ravel().tolist()}],
    }


def test_raw_in_raw_out(shared: Server) -> None:
    asked = {
        "inputs": [x(data=None, parameters={"binary_data_size": ROWS.nbytes})],
        "parameters": {"binary_data_output": True},
    }
    answer = ask(shared, "double", asked, ROWS.tobytes())
    assert (answer.status, answer.headers["content-type"]) == (200, "application/octet-stream")
    length = int(answer.headers[HEADER])
    assert json.loads(answer.body[:length])["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": ROWS.nbytes}}
    ]
    assert np.array_equal(np.frombuffer(answer.body[length:], "<f4").reshape(2, 3), 2 * ROWS)


def test_raw_tensors_are_taken_at_any_offset(shared: Server) -> None:
    size = {"binary_data_size": ROWS.nbytes}
    for padding in range(5):
        asked = {"id": "i" * padding, "inputs": [x(data=None, parameters=size)]}
        answer = ask(shared, "double", asked, ROWS.tobytes())
        assert answer.json["outputs"][0]["data"] == (2 * ROWS).ravel().tolist()


@pytest.mark.parametrize("binary", [False, True])
def test_tritons_client_gets_its_tensors(client: triton.InferenceServerClient, binary: bool) -> None:
    given = triton.InferInput("x", [2, 3], "FP32")
    given.set_data_from_numpy(ROWS, binary_data=binary)
    wanted = triton.InferRequestedOutput("y", binary_data=binary)
    found = client.infer("double", [given], outputs=[wanted], request_id="7")
    assert np.array_equal(found.as_numpy("y"), 2 * ROWS)
    assert found.get_response()["id"] == "7"
    assert np.array_equal(client.infer("double", [given]).as_numpy("y"), 2 * ROWS)


def test_tritons_client_finds_its_way_around(client: triton.InferenceServerClient, shared: Server) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("double")
    version = client.get_model_metadata("double")["versions"][0]
    assert client.is_model_ready("double", version)
    assert not client.is_model_ready("double", "12")
    assert client.get_server_metadata()["name"] == "mlos"
    assert client.get_model_config("double")["name"] == "double"
    client.load_model("logarithm")
    index = {row["name"]: row for row in client.get_model_repository_index()}
    assert set(index) == {"double", "logarithm", "slow", "embedder"}
    assert (index["logarithm"]["state"], index["logarithm"]["reason"]) == ("READY", "")
    ready = shared.request("POST", "/v2/repository/index", b'{"ready": true}').json
    assert "logarithm" in [row["name"] for row in ready]
    assert all(row["state"] == "READY" for row in ready)
    with pytest.raises(InferenceServerException, match="administration"):
        client.unload_model("double")
    with pytest.raises(InferenceServerException, match="as it was packaged"):
        client.load_model("double", config="{}")
    with pytest.raises(InferenceServerException, match="nothing is at"):
        client.register_system_shared_memory("region", "/anything", 8)


def test_statistics_count_answers_and_failures(client: triton.InferenceServerClient) -> None:
    before = client.get_inference_statistics("logarithm")["model_stats"][0]
    given = triton.InferInput("x", [1], "FP32").set_data_from_numpy(np.ones(1, np.float32))
    client.infer("logarithm", [given])
    bad = triton.InferInput("x", [1, 1], "FP32").set_data_from_numpy(np.ones((1, 1), np.float32))
    with pytest.raises(InferenceServerException):
        client.infer("logarithm", [bad])
    (after,) = client.get_inference_statistics("logarithm")["model_stats"]
    assert after["inference_count"] == before["inference_count"] + 1
    assert after["last_inference"] > 1_600_000_000_000
    gained = {
        name: after["inference_stats"][name]["count"] - before["inference_stats"][name]["count"]
        for name in after["inference_stats"]
    }
    assert gained == {
        **dict.fromkeys(("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"), 1),
        **dict.fromkeys(("cache_hit", "cache_miss"), 0),
    }
    spent = after["inference_stats"]
    assert spent["success"]["ns"] >= spent["compute_infer"]["ns"] > 0
    assert {row["name"] for row in client.get_inference_statistics()["model_stats"]} >= {"double", "embedder"}


def test_the_largest_values_come_as_classes(client: triton.InferenceServerClient) -> None:
    given = triton.InferInput("x", [2, 3], "FP32").set_data_from_numpy(ROWS)
    for binary in (False, True):
        wanted = triton.InferRequestedOutput("y", binary_data=binary, class_count=2)
        classes = client.infer("double", [given], outputs=[wanted]).as_numpy("y")
        told = [[text.decode() if isinstance(text, bytes) else text for text in row] for row in classes]
        assert told == [["6.000000:2", "4.000000:1"], ["12.000000:2", "10.000000:1"]]


def test_nan_comes_as_raw_bytes_and_never_as_json(client: triton.InferenceServerClient, shared: Server) -> None:
    given = triton.InferInput("x", [2], "FP32").set_data_from_numpy(np.array([-1, 0], np.float32))
    found = client.infer("logarithm", [given]).as_numpy("y")
    assert np.isnan(found[0])
    assert np.isneginf(found[1])
    answer = ask(shared, "logarithm", {"inputs": [x(shape=[2], data=[-1, 0])]})
    assert answer.status == 500
    assert "NaN or infinity" in answer.json["error"]


def test_bf16_is_widened_to_what_the_model_takes(shared: Server) -> None:
    bits = (ROWS.view(np.uint32) >> 16).astype("<u2").tobytes()
    asked = {"inputs": [x(datatype="BF16", data=None, parameters={"binary_data_size": len(bits)})]}
    assert ask(shared, "double", asked, bits).json["outputs"][0]["data"] == (2 * ROWS).ravel().tolist()
    as_json = ask(shared, "double", {"inputs": [x(datatype="BF16")]})
    assert as_json.json["outputs"][0]["data"] == (2 * ROWS).ravel().tolist()


def test_no_rows_are_rows_too(client: triton.InferenceServerClient, shared: Server) -> None:
    given = triton.InferInput("x", [0, 3], "FP32").set_data_from_numpy(np.empty((0, 3), np.float32))
    assert client.infer("double", [given]).as_numpy("y").shape == (0, 3)
    answer = ask(shared, "double", {"inputs": [x(shape=[0, 3], data=[])]})
    assert answer.json["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [0, 3], "data": []}]


@pytest.mark.parametrize("binary", [False, True])
def test_a_text_is_answered_by_the_models_task(
    client: triton.InferenceServerClient, shared: Server, binary: bool
) -> None:
    texts = np.array(["mlos makes", "ml deployment easy"], object)
    given = triton.InferInput("text", [2], "BYTES").set_data_from_numpy(texts, binary_data=binary)
    wanted = triton.InferRequestedOutput("result", binary_data=binary)
    found = client.infer("embedder", [given], outputs=[wanted]).as_numpy("result")
    expected = shared.infer("embedder", {"texts": texts.tolist()}).json["result"]
    assert [json.loads(each) for each in found] == expected
    alone = triton.InferInput("text", [1, 1], "BYTES").set_data_from_numpy(texts[:1].reshape(1, 1))
    (result,) = client.infer("embedder", [alone], parameters={"normalize": False}).as_numpy("result")
    assert json.loads(result[0])["dimensions"] == WIDTH
    assert json.loads(result[0])["embedding"] != expected[0]["embedding"]


@pytest.mark.parametrize(
    ("change", "field", "expected", "got"),
    [
        ({"datatype": "FP64"}, "inputs.x", "the datatype FP32", "FP64"),
        ({"datatype": "FP8"}, "inputs.x", "BF16", "'FP8'"),
        ({"shape": [2, 2]}, "inputs.x", "4 elements for shape [2, 2]", "6"),
        ({"shape": [6]}, "inputs.x", "FP32 ['rows', 3]", "shape [6]"),
        ({"shape": [-2, -3]}, "inputs[0].shape[0]", None, None),
        ({"shape": [1] * 40}, "inputs.x", "at most 32 axes", None),
        ({"data": [[1, 2], [3]]}, "inputs.x", "a list of FP32", "ragged"),
        ({"data": ["a"] * 6}, "inputs.x", "FP32", "elements of type"),
        ({"data": None}, "inputs.x", "either data or binary_data_size", "neither"),
        ({"data": [1e39] * 6}, "inputs.x", "FP32", "too large"),
        ({"name": "z"}, "inputs.x", None, "z"),
        ({"parameters": {"shared_memory_region": "r"}}, "inputs.x.parameters.shared_memory_region", None, None),
        ({"parameters": {"binary_data_size": 24}}, "inputs.x", "24 bytes behind the JSON", "0 bytes"),
        ({"colour": 1}, "inputs[0].colour", None, None),
        ({"datatype": "BYTES", "data": ["a"] * 6}, "inputs.x", "BYTES named text", None),
    ],
)
def test_a_wrong_input_is_a_400_that_names_it(
    shared: Server, change: dict[str, Any], field: str, expected: str | None, got: str | None
) -> None:
    answer = ask(shared, "double", {"inputs": [x(**change)]})
    assert answer.status == 400, answer.body
    told = answer.json
    assert isinstance(told["error"], str)
    assert told["field"] == field
    assert (expected or "") in (told["expected"] or "")
    assert (got or "") in (told["got"] or "")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "inputs"),
        ({"inputs": []}, "inputs.x"),
        ({"inputs": [x(), x()]}, "inputs.x"),
        ({"inputs": [x()], "outputs": [{"name": "q"}]}, "outputs"),
        ({"inputs": [x()], "outputs": []}, "outputs"),
        ({"inputs": [x()], "outputs": [{"name": "y", "parameters": {"classification": -1}}]}, None),
        ({"inputs": [x()], "parameters": {"timeout": "soon"}}, "parameters.timeout"),
        ({"inputs": [x()], "parameters": {"priority": True}}, "parameters.priority"),
        ({"inputs": [x()], "parameters": {"sequence_id": 5}}, "parameters.sequence_id"),
        ({"inputs": [x()], "parameters": {"binary_data_output": "yes"}}, "parameters.binary_data_output"),
        (b'{"inputs": ' + b"[" * 100_000, None),
        (b'{"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": ' + b"[" * 90_000, "body"),
        (b'{"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [NaN, 1, 2]}]}', "body"),
        (b"", "body"),
    ],
)
def test_f17_a_wrong_request_is_a_400_that_names_the_field(
    shared: Server, request_: Any, field: str | None
) -> None:
    answer = ask(shared, "double", request_)
    assert answer.status == 400, answer.body
    if field is not None:
        assert answer.json["field"] == field


@pytest.mark.parametrize(
    ("length", "sizes", "raw"),
    [
        ("99999", [24], 24),
        ("-1", [24], 24),
        ("ten", [24], 24),
        (None, [24], 23),
        (None, [24], 25),
        (None, [20], 20),
        (None, [2**70], 24),
        (None, [-24], 24),
    ],
)
def test_raw_bytes_that_do_not_add_up_are_a_400(
    shared: Server, length: str | None, sizes: list[int], raw: int
) -> None:
    asked = json.dumps({"inputs": [x(data=None, parameters={"binary_data_size": size}) for size in sizes]})
    answer = ask(shared, "double", asked.encode(), bytes(raw), **({} if length is None else {HEADER: length}))
    assert answer.status == 400, answer.body


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<I", 5) + b"mlos",
        struct.pack("<I", 2**32 - 1) + b"mlos",
        struct.pack("<I", 4) + b"mlos" + b"\0\0",
        struct.pack("<I", 4) + b"mlo\xff",
        struct.pack("<I", 2) + b"ml" + struct.pack("<I", 2) + b"ml",
        b"",
    ],
)
def test_strings_that_are_none_are_a_400(shared: Server, raw: bytes) -> None:
    given = {
        "name": "text",
        "shape": [1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(raw)},
    }
    answer = ask(shared, "embedder", {"inputs": [given]}, raw)
    assert answer.status == 400, answer.body
    assert answer.json["field"] in ("inputs.text", "body")


def test_what_is_not_there_is_a_404_in_v2s_dress(shared: Server) -> None:
    for path in (
        "/v2/models/nobody",
        "/v2/models/double/versions/12",
        "/v2/models/nobody/stats",
        "/v2/nothing",
    ):
        answer = shared.get(path)
        assert answer.status == 404
        assert isinstance(answer.json["error"], str)
    assert ask(shared, "nobody", {"inputs": [x()]}).status == 404
    wrong = shared.get("/v2/models/double/infer")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")


def test_a_client_that_waits_less_than_the_server_says_so(shared: Server) -> None:
    given = [
        {"name": "n", "shape": [], "datatype": "INT64", "data": [2000]},
        {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]},
    ]
    ask(shared, "slow", {"inputs": [{**given[0], "data": [1]}, given[1]]})  # it is loaded
    answer = ask(shared, "slow", {"inputs": given, "parameters": {"timeout": 200_000, "priority": 1}})
    assert (answer.status, answer.json["code"]) == (504, "deadline")


def test_the_documents_curl_works(shared: Server) -> None:
    body = '{"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}'
    command = ["curl", "-sS", f"{shared.url}/v2/models/double/infer", "-d", body]
    said = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    assert json.loads(said)["outputs"][0]["data"] == [2, 4, 6]


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a model that writes, for the tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("counter")
    count_as(folder, "text-generation")
    packages.double(Store(folder / "store"), "counter", tasks=("text-generation",))
    with running(folder) as server:
        yield server


def generate(server: Server, path: str, request: Any) -> Answer:
    return server.request("POST", f"/v2/models/counter/{path}", json.dumps(request).encode())


def test_a_text_is_generated_whole_and_in_parts(counter: Server) -> None:
    whole = generate(counter, "generate", {"id": "9", "text_input": "3"})
    assert whole.status == 200, whole.body
    told = whole.json
    assert (told["id"], told["model_name"], told["text_output"]) == ("9", "counter", "0 1 2 ")
    assert (told["finish_reason"], told["prompt_tokens"], told["completion_tokens"]) == ("stop", 1, 3)
    streamed = generate(counter, "generate_stream", {"text_input": "3", "parameters": {"stream": True}})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(block.removeprefix("data: ")) for block in streamed.body.decode().split("\n\n")[:-1]]
    assert [event["text_output"] for event in events] == ["0 ", "1 ", "2 ", ""]
    assert events[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "text_input"),
        ({"text_input": 3}, "text_input"),
        ({"text_input": "3", "stream": True}, "parameters.stream"),
        ({"text_input": "3", "parameters": []}, "parameters"),
        ({"text_input": "3", "id": 4}, "id"),
        ({"text_input": "many"}, "prompt"),
    ],
)
def test_what_cannot_be_generated_is_a_400(counter: Server, request_: Any, field: str) -> None:
    answer = generate(counter, "generate", request_)
    assert (answer.status, answer.json["field"]) == (400, field)


def test_a_failure_in_the_middle_ends_the_parts(counter: Server) -> None:
    answer = generate(counter, "generate_stream", {"text_input": "9", "fail_at": 1})
    *_, last = answer.body.decode().split("\n\n")[:-1]
    assert json.loads(last.removeprefix("data: "))["error"] == "counted too far"


def test_a_model_that_writes_nothing_says_so(shared: Server) -> None:
    answer = shared.request("POST", "/v2/models/double/generate", b'{"text_input": "a"}')
    assert (answer.status, answer.json["field"]) == (400, "model")
