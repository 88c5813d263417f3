"""Repositories that publish one model in many precisions: which file is taken, and how another is asked for."""

from __future__ import annotations

import pytest
from tests.axon.conftest import answer, axon, gguf
from tests.axon.hub_server import HubServer, Repository

from mlos.axon.sources.gguf_choice import ORDER, canonical, label
from mlos.axon.sources.selection import select
from mlos.catalogue import catalogue
from mlos.errors import NotFoundError, RefusedError, UsageError
from mlos.model import Reference


@pytest.mark.parametrize(
    ("path", "precision"),
    [
        ("tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf", "Q4_K_M"),
        ("Llama-3.2-1B-Instruct-Q8_0.gguf", "Q8_0"),
        ("Llama-3.2-1B-Instruct-f16.gguf", "F16"),
        ("qwen2-0_5b-instruct-fp16.gguf", "F16"),
        ("qwen2-0_5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("gemma-IQ4_XS.gguf", "IQ4_XS"),
        ("m-Q4_0_4_4.gguf", "Q4_0_4_4"),
        ("m.Q4_K_L-00001-of-00002.gguf", "Q4_K_L"),
        ("Q8_0/Q4-distilled-BF16.gguf", "BF16"),
        ("Qwen2.gguf", None),
        ("model.gguf", None),
    ],
)
def test_a_name_says_its_precision(path: str, precision: str | None) -> None:
    assert label(path) == precision


def test_a_form_is_asked_for_in_any_case() -> None:
    assert [canonical(form) for form in ("q4_k_m", "Q8_0", "f16", "bf16", "Fp16", "Int8", "Q4")] == [
        *("Q4_K_M", "Q8_0", "F16", "BF16", "fp16", "int8", "q4")
    ]


def test_without_one_the_order_decides_and_says_what_else_there_is() -> None:
    names = [f"m-{precision}.gguf" for precision in ORDER]
    for at, name in enumerate(names):
        assert select(names[at:], "it").paths == (name,)
    (note,) = select(["m-Q2_K.gguf", "m-Q8_0.gguf", "mmproj-F16.gguf"], "it").notes
    assert (
        note == "took m-Q8_0.gguf; left aside 1 other GGUF files: Q2_K, Q8_0; REFERENCE+PRECISION takes another"
    )


def test_a_form_is_taken_with_all_its_parts_and_from_its_own_folder() -> None:
    parts = [f"Q8_0/m-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    names = ["m-Q4_K_M.gguf", *parts, "README.md", "mmproj-Q8_0.gguf"]
    assert select(names, "it", form="q8_0").paths == (*parts, "README.md")
    assert select(names, "it").paths == ("README.md", "m-Q4_K_M.gguf")
    with pytest.raises(RefusedError, match="without Q8_0/m-Q8_0-00002-of-00003"):
        select([name for name in names if name != parts[1]], "it", form="Q8_0")


def test_a_form_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(NotFoundError, match="publishes no form 'Q6_K'") as raised:
        select(["m-Q4_K_M.gguf", "m-Q8_0.gguf"], "it", form="Q6_K")
    assert raised.value.expected == "Q4_K_M, Q8_0"
    with pytest.raises(UsageError, match="forms are made here"):
        select(["model.safetensors", "m-Q8_0.gguf"], "it", form="Q8_0")


class TestOnnx:
    FILES = (
        "config.json",
        "onnx/model.onnx",
        "onnx/model_fp16.onnx",
        "onnx/model_quantized.onnx",
        "model.onnx",
    )

    def test_the_whole_graph_goes_first_and_forms_are_asked_for(self) -> None:
        assert select(self.FILES, "it").paths == ("config.json", "onnx/model.onnx")
        assert select(self.FILES, "it", form="FP16").paths == ("config.json", "onnx/model_fp16.onnx")
        with pytest.raises(NotFoundError) as raised:
            select(self.FILES, "it", form="q4")
        assert raised.value.expected == "fp16, quantized"

    def test_weights_that_convert_go_before_a_graph_and_that_is_said(self) -> None:
        selection = select(["model.safetensors", *self.FILES], "it")
        assert selection.paths == ("config.json", "model.safetensors")
        assert "converted and proved; left aside 4 ONNX models" in selection.notes[0]
        assert "--allow-pickle" in select(["pytorch_model.bin", *self.FILES], "it").notes[-1]
        assert (
            select(["pytorch_model.bin", *self.FILES], "it", allow_pickle=True).paths[-1] == "pytorch_model.bin"
        )

    @pytest.mark.parametrize(
        ("halves", "message"),
        [
            (("encoder_model", "decoder_model", "decoder_with_past_model"), "an encoder and a decoder in ONNX"),
            (("decoder_model_merged",), "the decoder of a model that writes text"),
            (("text_model", "vision_model"), "zero-shot classification"),
        ],
    )
    def test_graphs_that_are_a_model_together_only_are_refused(
        self, halves: tuple[str, ...], message: str
    ) -> None:
        with pytest.raises(RefusedError, match=message) as raised:
            select([f"onnx/{half}.onnx" for half in halves], "it")
        assert "SafeTensors" in (raised.value.hint or "")


def test_a_published_form_is_a_package_of_its_own(hub: HubServer) -> None:
    files = {f"m-{kind}.gguf": gguf(architecture=kind.lower()) for kind in ("Q2_K", "Q4_K_M", "Q8_0")}
    hub.repositories["org/m-GGUF"] = Repository(dict(files))
    commit = hub.repositories["org/m-GGUF"].commit
    done = axon("install", "hf/org/m-GGUF")
    assert done.returncode == 0, done.stderr
    assert "took m-Q4_K_M.gguf; left aside 2 other GGUF files: Q2_K, Q4_K_M, Q8_0" in done.stderr
    asked = answer("install", "hf/org/m-GGUF+q8_0")
    assert (asked["name"], asked["reference"]) == ("m-GGUF-Q8_0", f"hf/org/m-GGUF@{commit}+Q8_0")
    assert [request for request in hub.requests("Q8_0") if request.method == "GET"]
    assert not hub.requests("Q2_K", "cdn")
    for again in ("hf/org/m-GGUF+Q8_0", f"hf/org/m-GGUF@{commit}+q8_0"):
        assert answer("install", again)["cached"] is True
    assert answer("install", "hf/org/m-GGUF+Q8_0", "--offline")["cached"] is True
    assert {package["name"] for package in answer("list")} == {"m-GGUF", "m-GGUF-Q8_0"}
    assert answer("info", "hf/org/m-GGUF+Q8_0")["manifest"]["architecture"] == "q8_0"
    wrong = axon("install", "hf/org/m-GGUF+Q6_K")
    assert (wrong.returncode, "there is Q2_K, Q4_K_M, Q8_0" in wrong.stderr) == (3, True), wrong.stderr
    planned = answer("install", "hf/org/m-GGUF+Q2_K", "--dry-run")
    assert [file["path"] for file in planned["files"]] == ["m-Q2_K.gguf"]


def test_a_known_model_in_gguf_has_its_name(hub: HubServer) -> None:
    reference = catalogue().entries["tinyllama"].references.gguf
    assert reference is not None
    hub.repositories[Reference.parse(reference).path] = Repository(
        {"t.Q4_K_M.gguf": gguf(), "t.Q8_0.gguf": gguf()}
    )
    assert answer("install", f"{reference}+Q8_0")["name"] == "tinyllama-Q8_0"
    assert answer("install", reference)["name"] == "tinyllama"
