"""Encoders in GGUF: llama.cpp's converter writes them, and they embed as the framework does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.axon.conftest import answer, axon
from tests.axon.hub_server import HubServer, Repository
from tests.small import Small

from mlos.axon import llama_cpp_source
from mlos.axon.convert.family import load_tokenizer
from mlos.axon.convert.gguf_files import write_gguf
from mlos.axon.sources.gguf_choice import UNSERVED_GGUF
from mlos.engines import open_model
from mlos.errors import InvalidInputError, PayloadTooLargeError
from mlos.model import InferenceRequest, Manifest
from mlos.parity import GoldenRecord
from mlos.tasks import Limits, Silence, tasks_of

TEXTS = [
    *("", "Yes.", "Zoë's naïve café in Łódź", "\u6f22\u5b57 and [MASK] x", "word " * 900),
    "Two engineers\ttimed the same answer twice; it wasn't the same.",
]


@pytest.mark.parametrize(("name", "pooling"), [("minilm", "mean"), ("bge-small", "cls")])
def test_an_encoder_embeds_as_the_framework(small: Small, tmp_path: Path, name: str, pooling: str) -> None:
    write_gguf(small.repository(name), tmp_path / "encoder.gguf", "F32", "BertModel")
    installed = answer("install", f"file:{tmp_path}/encoder.gguf")
    assert installed["parity"] == []
    manifest = Manifest.model_validate(answer("info", "encoder")["manifest"])
    assert (manifest.tasks, manifest.architecture) == (("embeddings", "token-embeddings"), "bert")
    assert manifest.preprocessing["embeddings"]["pooling"] == pooling
    folder = Path(installed["folder"])
    engine = open_model(folder, manifest.artifact, 2)
    tasks = tasks_of(folder, manifest, Limits())
    golden = GoldenRecord.load(small.converted(name)[0] / "golden")
    assert any(case.inputs["input_ids"].shape[0] > 1 for case in golden.cases)
    for case in (case for case in golden.cases if case.task == "embeddings"):
        mask = case.inputs["attention_mask"].astype(bool)
        asked = InferenceRequest(
            text=case.request.text, texts=case.request.texts, parameters={"normalize": True}
        )
        task = tasks.choose(asked)
        prepared = task.preprocess(asked)
        np.testing.assert_array_equal(prepared.inputs["attention_mask"], mask)
        np.testing.assert_array_equal(prepared.inputs["input_ids"][mask], case.inputs["input_ids"][mask])
        states = engine.run(prepared.inputs)["last_hidden_state"]
        assert_alike(states[mask], case.outputs["last_hidden_state"][mask])
        result = task.postprocess(prepared, task.compute(engine, prepared, Silence()))
        got, expected = ([each] if isinstance(each, dict) else each for each in (result, case.result))
        for one, other in zip(got, expected, strict=True):
            assert_alike(np.array([one["embedding"]]), np.array([other["embedding"]]))
    tokenizer = load_tokenizer(small.repository(name))
    most = manifest.preprocessing["embeddings"]["max_length"]
    for text in TEXTS:
        mine = tasks.choose(InferenceRequest(text=text)).preprocess(InferenceRequest(text=text)).inputs
        assert mine["input_ids"].tolist() == [tokenizer(text, truncation=True, max_length=most)["input_ids"]], (
            text
        )
    with pytest.raises(InvalidInputError, match="there is no token"):
        engine.run({"input_ids": np.array([[1 << 20]]), "attention_mask": np.array([[1]])})
    with pytest.raises(PayloadTooLargeError, match="more than the model reads"):
        engine.run({key: np.ones((1, most + 1), np.int64) for key in ("input_ids", "attention_mask")})


def assert_alike(got: NDArray[Any], expected: NDArray[Any]) -> None:
    """Rows of the framework's directions and, nearly, numbers.

    Up to 8e-4 were seen, at numbers up to 4, as much with the framework's GELU as with its approximation by
    tanh: the library's own, on the processor, is a table of half precision.
    """
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((got * expected).sum(axis=1) / lengths).min() > 0.99999
    np.testing.assert_allclose(got, expected, atol=2e-3)


def written(path: Path, architecture: str, pooling: int = 1, *, causal: bool = False) -> Path:
    """A GGUF file with three tokens and one tensor, whose metadata say what it is."""
    writer = llama_cpp_source.gguf().GGUFWriter(path, architecture)
    writer.add_token_list(["<unk>", "<s>", "a"])
    writer.add_causal_attention(causal)
    writer.add_embedding_length(8)
    writer.add_context_length(16)
    writer.add_uint32(f"{architecture}.pooling_type", pooling)
    writer.add_tensor("weight", np.arange(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("architecture", "pooling", "causal", "kind"),
    [
        ("t5", 0, True, "an encoder and a decoder"),
        ("bert", 4, False, "a model that ranks texts"),
        ("bert", 3, False, "pools in the way 3"),
        ("dream", 0, False, "see what comes after them"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    tmp_path: Path, architecture: str, pooling: int, causal: bool, kind: str
) -> None:
    done = axon("install", f"file:{written(tmp_path / 'm.gguf', architecture, pooling, causal=causal)}")
    assert (done.returncode, kind in done.stderr, architecture in done.stderr) == (4, True, True), done.stderr


def test_an_encoder_that_does_not_say_how_it_pools_takes_the_mean_and_says_so(tmp_path: Path) -> None:
    done = axon("install", f"file:{written(tmp_path / 'm.gguf', 'bert', 0)}")
    assert (done.returncode, "does not say how it pools" in done.stderr) == (0, True), done.stderr


def test_a_hub_that_knows_the_architecture_saves_the_download(hub: HubServer, tmp_path: Path) -> None:
    files = {"m-Q4_K_M.gguf": written(tmp_path / "m.gguf", "t5").read_bytes()}
    hub.repositories["org/t5-GGUF"] = Repository(files, gguf={"architecture": "t5", "total": 8})
    done = axon("install", "hf/org/t5-GGUF")
    assert (done.returncode, UNSERVED_GGUF["t5"] in done.stderr) == (4, True), done.stderr
    assert hub.requests("/resolve/") == []
