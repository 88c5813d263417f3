"""The Open Inference Protocol V2 over gRPC, as Triton's client speaks it, and gRPC's own health protocol."""

from __future__ import annotations

import importlib.util
import json
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton  # type: ignore[import-untyped]  # it ships no types
from google.protobuf import descriptor_pb2
from tests.core import packages
from tests.core.conftest import Server, Servers, Start
from tests.core.plugins import count_as
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException  # type: ignore[import-untyped]  # likewise

import mlos.core.grpc
from mlos.core.grpc.messages import Messages
from mlos.store import Store

ROWS = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
LONG = "1000000"


def address(server: Server) -> str:
    """Where gRPC listens, which the log alone tells."""
    found: list[str] = []

    def told() -> bool:
        found[:] = [line["grpc"] for line in server.lines() if line["message"] == "listening"]
        return bool(found)

    server.wait_for(told)
    return found[0]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    store = Store(folder / "store")
    for install in (packages.double, packages.logarithm, packages.slow, packages.embedder):
        install(store)
    servers = Servers()
    yield servers.start(folder, "--grpc-port", "0", "--max-body-bytes", "1000000", "--request-timeout", "20")
    servers.close()


@pytest.fixture(scope="module")
def client(served: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address(served)) as found:
        yield found


@pytest.fixture
def counter(start: Start, store: Store, home: Path) -> Server:
    count_as(home, "text-generation")
    packages.double(store, "counter", tasks=("text-generation",))
    return start("--grpc-port", "0", "--request-timeout", "3600")


def given(array: np.ndarray[Any, Any], name: str = "x", datatype: str = "FP32") -> triton.InferInput:
    return triton.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array)


def prompt(text: str) -> list[triton.InferInput]:
    return [given(np.array([text], object), "prompt", "BYTES")]


def test_a_tensor_is_answered_bit_by_bit(client: triton.InferenceServerClient, served: Server) -> None:
    wanted = triton.InferRequestedOutput("y")
    found = client.infer("double", [given(ROWS)], outputs=[wanted], request_id="7")
    assert np.array_equal(found.as_numpy("y"), 2 * ROWS)
    told = found.get_response()
    assert (told.id, told.model_name) == ("7", "double")
    assert told.model_version == served.row("double")["digest"][:12]
    assert np.array_equal(client.infer("double", [given(ROWS)]).as_numpy("y"), 2 * ROWS)
    large = np.random.default_rng(3).normal(size=(60_000, 3)).astype(np.float32)
    assert np.array_equal(client.infer("double", [given(large)]).as_numpy("y"), 2 * large)


def test_the_client_finds_its_way_around(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("double")
    told = client.get_model_metadata("double", as_json=True)
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "3"]}]
    assert client.is_model_ready("double", told["versions"][0])
    assert client.get_server_metadata().name == "mlos"
    config = client.get_model_config("double").config
    assert (config.backend, config.input[0].dims) == ("onnxruntime", [-1, 3])
    assert config.parameters["tasks"].string_value == "tensors"
    client.load_model("logarithm")
    index = {row.name: row.state for row in client.get_model_repository_index().models}
    assert index["logarithm"] == "READY"
    client.infer("double", [given(ROWS)])
    (statistics,) = client.get_inference_statistics("double").model_stats
    assert statistics.inference_count == statistics.inference_stats.success.count > 0
    assert statistics.memory_usage[0].byte_size > 1 << 20
    assert len(client.get_inference_statistics().model_stats) == 4


@pytest.mark.parametrize(
    ("call", "code", "said"),
    [
        (lambda client: client.infer("nobody", [given(ROWS)]), "NOT_FOUND", "nobody"),
        (lambda client: client.infer("double", [given(ROWS)], "12"), "NOT_FOUND", "no version '12'"),
        (lambda client: client.infer("double", []), "INVALID_ARGUMENT", "'x' is missing"),
        (lambda client: client.infer("double", [given(ROWS[0])]), "INVALID_ARGUMENT", "shape \\[3\\]"),
        (
            lambda client: client.infer("double", [given(ROWS.astype(np.int32), datatype="INT32")]),
            "INVALID_ARGUMENT",
            "the datatype FP32, got INT32",
        ),
        (
            lambda client: client.infer("double", [given(ROWS)], sequence_id=4),
            "INVALID_ARGUMENT",
            "sequence_",
        ),
        (lambda client: client.unload_model("double"), "PERMISSION_DENIED", "administration"),
        (lambda client: client.load_model("double", config="{}"), "UNIMPLEMENTED", "as it was packaged"),
        (lambda client: client.get_system_shared_memory_status(), "UNIMPLEMENTED", "UNIMPLEMENTED"),
        (
            lambda client: client.infer("double", [given(np.zeros((100_000, 3), np.float32))]),
            "RESOURCE_EXHAUSTED",
            "larger than max",
        ),
    ],
)
def test_what_is_wrong_has_its_status_and_says_why(
    client: triton.InferenceServerClient, call: Callable[[Any], Any], code: str, said: str
) -> None:
    with pytest.raises(InferenceServerException, match=said) as caught:
        call(client)
    assert caught.value.status() == f"StatusCode.{code}"


def test_typed_contents_are_taken_too(served: Server) -> None:
    with grpc.insecure_channel(address(served)) as channel:
        stub = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            service_pb2.ModelInferRequest.SerializeToString,
            service_pb2.ModelInferResponse.FromString,
        )

        def infer(datatype: str, **contents: Any) -> Any:
            request = service_pb2.ModelInferRequest(model_name="double")
            tensor = request.inputs.add(name="x", datatype=datatype, shape=[2, 3])
            for field, values in contents.items():
                getattr(tensor.contents, field).extend(values)
            return stub(request, timeout=30)

        answer = infer("FP32", fp32_contents=ROWS.ravel())
        assert np.array_equal(np.frombuffer(answer.raw_output_contents[0], "<f4"), 2 * ROWS.ravel())
        for datatype, contents in (
            ("FP32", {"fp32_contents": [1]}),
            ("FP32", {"fp64_contents": ROWS.ravel()}),
            ("FP16", {"fp32_contents": ROWS.ravel()}),
            ("INT8", {"int_contents": [1000] * 6}),
            ("FP8", {}),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                infer(datatype, **contents)
            failed: Any = caught.value  # it is a call too, which its type does not say
            assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "'x'" in failed.details()
            told = dict(failed.trailing_metadata())
            assert told["mlos-code"] == "invalid_input"
            assert told["x-request-id"]


def test_a_text_is_answered_by_the_models_task(client: triton.InferenceServerClient, served: Server) -> None:
    texts = ["mlos makes", "ml deployment easy"]
    found = client.infer("embedder", [given(np.array(texts, object), "text", "BYTES")]).as_numpy("result")
    assert [json.loads(each) for each in found] == served.infer("embedder", {"texts": texts}).json["result"]


def test_classes_and_bf16(client: triton.InferenceServerClient) -> None:
    wanted = triton.InferRequestedOutput("y", class_count=1)
    found = client.infer(
        "double", [given(ROWS.astype(ml_dtypes.bfloat16), datatype="BF16")], outputs=[wanted]
    ).as_numpy("y")
    assert found.tolist() == [[b"6.000000:2"], [b"12.000000:2"]]


def test_a_deadline_ends_a_call_and_frees_the_worker(
    client: triton.InferenceServerClient, served: Server
) -> None:
    inputs = [given(np.array(20_000, np.int64), "n", "INT64"), given(np.ones(1, np.float32))]
    client.infer("slow", [given(np.array(1, np.int64), "n", "INT64"), inputs[1]])  # it is loaded
    with pytest.raises(InferenceServerException) as caught:
        client.infer("slow", inputs, client_timeout=0.3)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    with pytest.raises(InferenceServerException, match=r"deadline of 0\.") as caught:
        client.infer("slow", inputs, timeout=300_000)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    served.wait_for(lambda: served.metric("mlos_in_flight") == 0)


def streamed(client: triton.InferenceServerClient, ask: Callable[[], None], count: int) -> list[Any]:
    """What comes on a stream, as many as ``count``."""
    came: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: came.put(error or result))
    try:
        ask()
        return [came.get(timeout=60) for _ in range(count)]
    finally:
        client.stop_stream()


def test_a_stream_answers_in_order_and_goes_on_after_an_error(client: triton.InferenceServerClient) -> None:
    def ask() -> None:
        for number in range(100):
            rows = np.full((1, 2 if number == 50 else 3), number, np.float32)
            client.async_stream_infer("double", [given(rows)], request_id=str(number))

    answers = streamed(client, ask, 100)
    assert isinstance(answers[50], InferenceServerException)
    del answers[50]
    told = [(int(each.get_response().id), each.as_numpy("y")[0, 0] / 2) for each in answers]
    assert told == [(number, number) for number in range(100) if number != 50]


def test_a_text_comes_in_parts(counter: Server) -> None:
    with triton.InferenceServerClient(address(counter)) as client:

        def ask() -> None:
            client.async_stream_infer("counter", prompt("3"), parameters={"stream": True}, request_id="a")
            client.async_stream_infer("counter", prompt("2"), request_id="b")

        *parts, whole, other = streamed(client, ask, 5)
        assert [each.as_numpy("text")[0] for each in parts] == [b"0 ", b"1 ", b"2 "]
        assert json.loads(whole.as_numpy("result")[0])["text"] == "0 1 2 "
        assert json.loads(other.as_numpy("result")[0])["text"] == "0 1 "
        final = [each.get_response().parameters["triton_final_response"].bool_param for each in (*parts, whole)]
        assert final == [False, False, False, True]


def test_f16_a_client_that_leaves_a_stream_frees_the_worker(counter: Server) -> None:
    with triton.InferenceServerClient(address(counter)) as client:
        came: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: came.put(error or result))
        asked = {"stream": True, "pause": 0.01}
        client.async_stream_infer("counter", prompt(LONG), parameters=asked)
        assert came.get(timeout=60).as_numpy("text")[0] == b"0 "
        client.stop_stream(cancel_requests=True)
        found = client.infer("counter", prompt("1")).as_numpy("result")
        assert json.loads(found[0])["text"] == "0 "
    assert counter.metric("mlos_restarts_total", model="counter") == 0


def test_a_drain_lets_a_call_finish_and_ends_idle_streams(counter: Server) -> None:
    where = address(counter)
    with triton.InferenceServerClient(where) as client, triton.InferenceServerClient(where) as idle:
        idle.start_stream(lambda result, error: None)
        client.infer("counter", prompt("1"))
        answers: list[Any] = []
        asked = {"pause": 0.02}
        waiting = threading.Thread(
            target=lambda: answers.append(client.infer("counter", prompt("50"), parameters=asked))
        )
        waiting.start()
        counter.wait_for(lambda: counter.metric("mlos_claimed", model="counter") == 1)
        assert counter.stop() == 0
        waiting.join(60)
        assert json.loads(answers[0].as_numpy("result")[0])["text"].endswith("49 ")


def test_health_follows_the_servers_own(start: Start, store: Store) -> None:
    server = start("--grpc-port", "0")
    messages = Messages()
    asks, answers = messages.methods("grpc.health.v1.Health")["Check"]
    with grpc.insecure_channel(address(server)) as channel:
        path = "/grpc.health.v1.Health"
        check = channel.unary_unary(f"{path}/Check", asks.SerializeToString, answers.FromString)
        watch = channel.unary_stream(f"{path}/Watch", asks.SerializeToString, answers.FromString)
        told = watch(asks(service="inference.GRPCInferenceService"), timeout=60)
        assert next(told).status == 2  # not serving: no model is installed
        assert check(asks(), timeout=30).status == 2
        packages.double(store)
        assert next(told).status == 1
        assert check(asks(service=""), timeout=30).status == 1
        with pytest.raises(grpc.RpcError) as caught:
            check(asks(service="nobody"), timeout=30)
        failed: Any = caught.value
        assert failed.code() is grpc.StatusCode.NOT_FOUND
        server.process.terminate()
        assert [answer.status for answer in told] == [2]
    assert server.process.wait(60) == 0


def test_a_port_in_use_is_said_before_anything_is_served(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "mlos.core.cli", "--port", "0", "--grpc-port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert port in done.stderr


def test_without_a_port_nothing_listens_for_calls(start: Start) -> None:
    server = start()
    server.wait_for(lambda: any(line["message"] == "listening" for line in server.lines()))
    assert [line["grpc"] for line in server.lines() if line["message"] == "listening"] == [None]


def test_names_and_numbers_are_the_published_ones() -> None:
    theirs = {
        message.full_name: message
        for module in (service_pb2, model_config_pb2)
        for top in module.DESCRIPTOR.message_types_by_name.values()
        for message in (top, *top.nested_types)
    }
    ours = Messages().pool
    checked = 0
    for name, message in theirs.items():
        try:
            found = ours.FindMessageTypeByName(name)
        except KeyError:
            continue  # of a part that is not served
        for field in found.fields:
            published = message.fields_by_name[field.name]
            assert (field.number, field.type, field.is_repeated) == (
                published.number,
                published.type,
                published.is_repeated,
            ), field.full_name
            checked += 1
    assert checked > 100
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    for method in ours.FindServiceByName("inference.GRPCInferenceService").methods:
        published = service.methods_by_name[method.name]
        assert method.input_type.full_name == published.input_type.full_name
        assert method.output_type.full_name == published.output_type.full_name
    enum = ours.FindEnumTypeByName("inference.DataType")
    assert enum.values_by_name.keys() == model_config_pb2.DataType.DESCRIPTOR.values_by_name.keys()
    assert all(
        value.number == model_config_pb2.DataType.DESCRIPTOR.values_by_name[value.name].number
        for value in enum.values
    )


def test_the_descriptors_are_those_of_the_proto_files(tmp_path: Path) -> None:
    folder = Path(mlos.core.grpc.__file__).parent
    script = Path(__file__).parents[2] / "scripts" / "protocol.py"
    spec = importlib.util.spec_from_file_location("protocol", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.compile_to(tmp_path / "compiled", folder.parents[2])
    compiled = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "compiled").read_bytes())
    kept = descriptor_pb2.FileDescriptorSet.FromString((folder / "protocol.binpb").read_bytes())
    assert compiled == kept
