"""The OpenAPI document says what is so: good and made-up requests are answered as it describes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from starlette.routing import Route
from tests.core import packages
from tests.core.conftest import Json, Server, Servers
from tests.core.plugins import count_as

from mlos.core.access import Gate
from mlos.core.http import application
from mlos.store import Store

CHECKS = (
    *("status_code_conformance", "content_type_conformance", "response_schema_conformance"),
    *("negative_data_rejection", "unsupported_method"),
)
X = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    store = Store(folder / "store")
    packages.double(store)
    packages.embedder(store)
    count_as(folder, "text-generation")
    packages.double(store, "counter", tasks=("text-generation",))
    servers = Servers()
    yield servers.start(folder)
    servers.close()


@pytest.fixture(scope="module")
def document(served: Server) -> Json:
    told: Json = served.get("/openapi.json").json
    return told


def test_every_address_is_documented_once(document: Json) -> None:
    plane: Any = None  # addresses need none
    routes = application(plane, Gate(), max_body_bytes=1, read_timeout=1).routes
    assert all(isinstance(route, Route) for route in routes)
    told = {
        (route.path.replace(":path", ""), method.lower())
        for route in routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    paths = document["paths"]
    found = {(path, method): each for path, item in paths.items() for method, each in item.items()}
    operations = {where: each for where, each in found.items() if "responses" in each}
    assert operations.keys() == told
    assert len({each["operationId"] for each in operations.values()}) == len(told)


@pytest.mark.parametrize(
    ("path", "name", "body"),
    [
        ("/health", "", None),
        ("/v2/health/live", "", None),
        ("/v2/health/ready", "", None),
        ("/version", "", None),
        ("/openapi.json", "", None),
        ("/v1/models", "", None),
        ("/v1/models/{name}", "double", None),
        ("/v1/models/{name}/inference", "embedder", {"texts": ["mlos", "ml"]}),
        ("/v1/models/{name}/inference", "nobody", {"text": "mlos"}),
        ("/v1/completions", "", {"model": "counter", "prompt": "2"}),
        ("/v1/completions", "", {"model": "counter", "prompt": "many"}),
        ("/v1/embeddings", "", {"model": "embedder", "input": "mlos"}),
        ("/v1/embeddings", "", {"model": "embedder", "input": ["ml"], "encoding_format": "base64"}),
        ("/v2", "", None),
        ("/v2/models/stats", "", None),
        ("/v2/models/{name}", "double", None),
        ("/v2/models/{name}", "nobody", None),
        ("/v2/models/{name}/config", "embedder", None),
        ("/v2/models/{name}/stats", "double", None),
        ("/v2/models/{name}/ready", "double", None),
        ("/v2/models/{name}/infer", "double", {"inputs": [X]}),
        ("/v2/models/{name}/infer", "double", {"inputs": [{**X, "shape": [3]}]}),
        ("/v2/models/{name}/generate", "counter", {"text_input": "2"}),
        ("/v2/repository/index", "", {}),
        ("/v2/repository/models/{name}/load", "double", {}),
        ("/v2/repository/models/{name}/unload", "double", {}),
        ("/admin/models/{name}/unload", "double", {}),
    ],
)
def test_an_answer_has_the_schema_of_its_status(
    served: Server, document: Json, path: str, name: str, body: Any
) -> None:
    method = "GET" if body is None else "POST"
    operation = document["paths"][path][method.lower()]
    content = None if body is None else json.dumps(body).encode()
    answer = served.request(method, path.replace("{name}", name), content)
    responses = operation["responses"]
    described = responses.get(str(answer.status)) or responses[f"{answer.status // 100}XX"]
    schema = described["content"]["application/json"]["schema"]
    jsonschema_rs.validate({**schema, "components": document["components"]}, answer.json)
    if body is not None and "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        jsonschema_rs.validate({**schema, "components": document["components"]}, body)


def test_made_up_requests_are_answered_as_documented(served: Server, tmp_path: Path) -> None:
    version = served.row("embedder")["digest"][:12]
    (tmp_path / "schemathesis.toml").write_text(
        f'[parameters]\n"path.name" = "embedder"\n"path.version" = "{version}"\n'
    )
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{served.url}/openapi.json"),
        *("--checks", ",".join(CHECKS), "--max-examples", "8", "--seed", "1", "--no-color"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    statuses = Counter(line["status"] for line in served.lines() if line["message"] == "request")
    assert statuses[400] > 100
    assert statuses[405] > 100
    bugs = [line for line in served.lines() if "traceback" in line]
    assert not bugs, bugs[0]
