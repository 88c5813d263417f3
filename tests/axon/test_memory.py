"""What a model needs is asked before the work, and what is not needed any more is let go of during it."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
from tests.axon.conftest import BERT, answer, axon, contents, gguf, work_left
from tests.axon.hub_server import HubServer, Repository
from tests.small import Small

from mlos import formats
from mlos.axon import install, memory
from mlos.axon.convert import causal_lm
from mlos.axon.convert.causal_lm import CausalLM
from mlos.axon.convert.gguf_files import write_gguf
from mlos.axon.convert.onnx_export import to_onnx
from mlos.axon.memory import framework_memory
from mlos.catalogue import catalogue
from mlos.console import Console
from mlos.errors import NoRoomError
from mlos.settings import Settings
from mlos.store import Store

GIB = 1 << 30


def leave(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: available)


def test_a_model_that_the_hub_counts_as_too_large_is_refused_before_it_is_fetched(hub: HubServer) -> None:
    files = [
        {"rfilename": name, "size": 64, "blobId": "b" * 40} for name in ("config.json", "model.safetensors")
    ]
    counted = {"parameters": {"BF16": 10**13}, "total": 10**13}
    body = json.dumps({"id": "org/large", "sha": "a" * 40, "siblings": files, "safetensors": counted}).encode()
    hub.fail("status", "hub:/api/models/org/large", status=200, body=body)
    hub.fail("status", "hub:/api/models/org/large", status=200, body=body)
    assert answer("install", "hf/org/large", "--dry-run")["memory_needed"] == 45 * 10**12 + GIB
    done = axon("install", "hf/org/large")
    assert done.returncode == 6, done.stderr
    assert "large needs 45001073741824 bytes of memory, for 10000000000000 parameters" in done.stderr
    assert " are available" in done.stderr
    assert hub.requests("/resolve/") == []


def test_what_nobody_declared_is_counted_in_the_files_before_the_framework_is_started(
    hub: HubServer, tiny_bert: Path, console: Console, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["org/other"] = Repository(contents(tiny_bert))
    parameters = formats.verify(tiny_bert / "model.safetensors").parameters
    leave(monkeypatch, GIB)
    with pytest.raises(
        NoRoomError, match=rf"other needs \d+ bytes of memory, for {parameters} param"
    ) as caught:
        install.install("hf/org/other", Settings(), console)
    assert caught.value.expected == f"{framework_memory(parameters)} bytes"
    assert caught.value.got == f"{GIB} bytes"
    assert work_left(store.root) == []


@pytest.mark.parametrize("reference", [f"hf/{BERT}", "seeded/tiny/bert"])
def test_a_model_of_the_catalogue_is_refused_before_anything_is_fetched_or_made(
    published: HubServer, console: Console, store: Store, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    leave(monkeypatch, GIB)
    with pytest.raises(NoRoomError, match="bert needs"):
        install.install(reference, Settings(), console)
    assert published.requests("/resolve/") == []
    assert store.packages() == []


def test_a_file_that_no_framework_answers_for_needs_no_memory_of_it(tmp_path: Path, console: Console) -> None:
    (tmp_path / "some.gguf").write_bytes(gguf())
    assert install.plan(f"file:{tmp_path}/some.gguf", Settings(), console).framework == 0


@pytest.mark.parametrize(("name", "per_parameter"), [("phi-2", 5), ("bert", 16)])
def test_room_is_counted_by_what_a_model_becomes(console: Console, name: str, per_parameter: int) -> None:
    """Language models by their published element type and as GGUF; others as ONNX in fp32."""
    entry = catalogue().entries[name]
    planned = install.plan(str(entry.references.seeded), Settings(), console)
    assert (planned.bytes_needed, planned.framework) == (per_parameter * entry.parameters, entry.parameters)


def test_the_frameworks_model_is_gone_when_llama_cpp_writes_its_own(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = CausalLM.load(small.repository("tinyllama"))
    weight = weakref.ref(next(family.model.parameters()))
    held: list[bool] = []

    def write(*arguments: Any) -> None:
        held.append(weight() is not None)
        write_gguf(*arguments)

    monkeypatch.setattr(causal_lm, "write_gguf", write)
    family.write(tmp_path, to_onnx, lambda _: None)
    assert held == [False]
