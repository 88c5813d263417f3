"""Causal language models: from a repository to GGUF files that answer as the framework does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.axon.conftest import answer, contents
from tests.installed import Installed
from tests.small import Small
from tests.tiny_llama import TinyLlama, tiny_llama

from mlos.axon import llama_cpp_source
from mlos.axon.convert import families
from mlos.axon.convert.causal_lm import CausalLM
from mlos.axon.convert.gguf_files import write_gguf
from mlos.axon.prove_child import answer as prove
from mlos.catalogue import catalogue
from mlos.errors import InvalidInputError, MissingExtraError, ParityError, RefusedError
from mlos.model import Artifact
from mlos.parity import tolerance_of
from mlos.store import Store

PRECISIONS = ("F32", "F16", "Q8_0", "Q5_K_M", "Q4_K_M")


@pytest.fixture(scope="module")
def llama() -> TinyLlama:
    return tiny_llama()


def proven(folder: Path, artifact: Artifact) -> float | None:
    (measure,) = prove(folder, TinyLlama.manifest(artifact), tolerance_of(artifact, "fp32"), 2, lambda _: None)
    assert measure.passed
    return measure.kl_divergence


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_precision_passes_its_own_row(llama: TinyLlama, precision: str) -> None:
    proven(llama.folder, llama.artifacts[precision])


def test_coarser_precisions_stand_further_away(llama: TinyLlama) -> None:
    divergences = [proven(llama.folder, llama.artifacts[precision]) for precision in PRECISIONS[1:]]
    assert divergences == sorted(divergences, key=lambda each: each or 0)
    assert divergences[0] != divergences[-1]


@pytest.mark.parametrize(
    ("precision", "name"),
    [
        ("F32", "blk.0.attn_q.weight"),
        ("F16", "blk.1.ffn_down.weight"),
        ("Q4_K_M", "token_embd.weight"),
        ("Q4_K_M", "blk.0.attn_v.weight"),
        ("Q4_K_M", "output.weight"),
    ],
)
def test_a_damaged_tensor_fails_the_gate(llama: TinyLlama, tmp_path: Path, precision: str, name: str) -> None:
    artifact = llama.artifacts[precision]
    damaged = artifact.model_copy(update={"path": "damaged.gguf"})
    shutil.copytree(llama.folder / "golden", tmp_path / "golden")
    path = tmp_path / "damaged.gguf"
    shutil.copyfile(llama.folder / (artifact.path or ""), path)
    reader = llama_cpp_source.gguf().GGUFReader(path, "r+")
    (tensor,) = (each for each in reader.tensors if each.name == name)
    tensor.data[:] = np.roll(tensor.data, 1, axis=0)  # every number sound, each row one place too far
    reader.data.flush()
    with pytest.raises(ParityError, match="parity failed: logits"):
        proven(tmp_path, damaged)


def test_the_same_repository_gives_the_same_bytes_wherever_it_lies(llama: TinyLlama, tmp_path: Path) -> None:
    elsewhere = tmp_path / "Some-Model-7B-v2"
    shutil.copytree(llama.repository, elsewhere)
    write_gguf(elsewhere, tmp_path / "again.gguf", "F16", "LlamaForCausalLM")
    assert (tmp_path / "again.gguf").read_bytes() == (llama.folder / "model.F16.gguf").read_bytes()


def test_weights_are_published_in_the_type_that_the_configuration_names(llama: TinyLlama) -> None:
    data = (llama.repository / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"BF16"}


def test_the_small_llama_is_installed_as_q4_k_m_proved_on_the_way(installed: Installed, store: Store) -> None:
    installed.copy("seeded/tiny/tinyllama", store)
    package = answer("info", "tinyllama")["manifest"]
    assert (package["artifact"]["format"], package["artifact"]["precision"]) == ("gguf", "Q4_K_M")
    assert package["tasks"] == ["chat", "text-generation"]
    assert [(each["tolerance"], each["passed"]) for each in package["parity"]] == [
        ("F16", True),
        ("Q4_K_M", True),
    ]
    assert all(each["kl_divergence"] is not None for each in package["parity"])
    assert {file["path"] for file in package["files"]} == {
        *("model.gguf", "config.json", "golden/record.json", "golden/tensors.npz"),
    }


@pytest.mark.parametrize("precision", ["F32", "Q8_0", "Q4_K_M"])
def test_a_gguf_file_is_served_as_it_came(llama: TinyLlama, tmp_path: Path, precision: str) -> None:
    shutil.copyfile(llama.folder / (llama.artifacts[precision].path or ""), tmp_path / "small.gguf")
    answer("install", f"file:{tmp_path}/small.gguf")
    package = answer("info", "small")["manifest"]
    assert package["tasks"] == ["chat", "text-generation"]
    assert (package["parity"], package["golden"]) == ([], None)
    expected = llama.artifacts[precision].model_copy(update={"path": "small.gguf"})
    assert Artifact.model_validate(package["artifact"]) == expected
    installed = contents(tmp_path / "home" / "store" / "blobs")
    assert (tmp_path / "small.gguf").read_bytes() in installed.values()


def test_a_gguf_file_without_a_template_does_not_chat(tmp_path: Path) -> None:
    written(tmp_path / "plain.gguf", "llama")
    answer("install", f"file:{tmp_path}/plain.gguf")
    package = answer("info", "plain")["manifest"]
    assert package["tasks"] == ["text-generation"]
    assert package["artifact"]["outputs"][0]["shape"] == ["batch", "sequence", 3]


def written(path: Path, architecture: str, *, causal: bool = True) -> None:
    """A GGUF file with three tokens, one tensor and no template."""
    writer = llama_cpp_source.gguf().GGUFWriter(path, architecture)
    writer.add_token_list(["<unk>", "<s>", "a"])
    writer.add_causal_attention(causal)
    writer.add_tensor("weight", np.arange(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class TestWhatIsRefused:
    def test_an_architecture_that_llama_cpp_does_not_know(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "ctrl", "architectures": ["CTRLLMHeadModel"]}')
        with pytest.raises(RefusedError, match=r"llama\.cpp does not know it") as caught:
            families.load(tmp_path)
        assert "LlamaForCausalLM" in (caught.value.expected or "")

    def test_what_the_converter_does_not_know(self, llama: TinyLlama, tmp_path: Path) -> None:
        repository = tmp_path / "repository"
        shutil.copytree(llama.repository, repository)
        for tokenizer in repository.glob("tokenizer*"):
            tokenizer.unlink()
        with pytest.raises(RefusedError, match=r"llama\.cpp's converter refuses the repository: \w*Error: \S"):
            write_gguf(repository, tmp_path / "x.gguf", "F16", "x")

    def test_a_repository_without_a_tokenizer(self, llama: TinyLlama, tmp_path: Path) -> None:
        repository = tmp_path / "repository"
        shutil.copytree(llama.repository, repository, ignore=shutil.ignore_patterns("tokenizer*"))
        with pytest.raises(RefusedError, match=r"no tokenizer\.json form"):
            families.load(repository)

    def test_chat_without_a_template(self, llama: TinyLlama, tmp_path: Path) -> None:
        repository = tmp_path / "repository"
        shutil.copytree(llama.repository, repository)
        settings = json.loads((repository / "tokenizer_config.json").read_text())
        del settings["chat_template"]
        (repository / "tokenizer_config.json").write_text(json.dumps(settings))
        with pytest.raises(RefusedError, match="cannot do chat") as caught:
            families.load(repository, ["chat"])
        assert caught.value.expected == "text-generation"

    @pytest.mark.parametrize("parameters", [{}, {"max_tokens": 4, "temperature": 1}], ids=["none", "more"])
    def test_a_golden_request_that_does_not_say_just_how_far(
        self, llama: TinyLlama, parameters: dict[str, int]
    ) -> None:
        request = {"name": "g", "request": {"prompt": "a", "parameters": parameters}}
        with pytest.raises(InvalidInputError, match="must have the parameter max_tokens"):
            CausalLM.load(llama.repository).record([request], lambda: None)

    def test_a_missing_converter_is_named_with_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(llama_cpp_source, "_PACKAGE", "no_such_package")
        with pytest.raises(MissingExtraError, match=r"llama\.cpp's own converter") as caught:
            llama_cpp_source.gguf()
        assert "native.py" in (caught.value.hint or "")


def test_the_default_requests_serve_a_model_outside_the_catalogue(llama: TinyLlama) -> None:
    family = CausalLM.load(llama.repository)
    defaults = {
        task: [{"name": case.name, "request": msgspec.to_builtins(case.request)} for case in known.golden]
        for task, known in catalogue().defaults.items()
    }
    golden = family.record(
        [given | {"name": str(number)} for number, given in enumerate(family.fit(defaults))], lambda: None
    )
    assert {case.task for case in golden.cases} == {"chat", "text-generation"}
    assert len({case.result["text"] for case in golden.cases}) == len(golden.cases)


def test_a_vocabulary_that_llama_cpp_would_abort_on_is_refused_by_name(small: Small, tmp_path: Path) -> None:
    """Two added tokens that stand for a byte each: the converter decodes them if they are not normalized."""
    repository = tmp_path / "repository"
    shutil.copytree(small.repository("deepseek-coder-1.3b"), repository)
    tokenizer = json.loads((repository / "tokenizer.json").read_bytes())
    assert {token["content"] for token in tokenizer["added_tokens"] if token["normalized"]} >= {"õ", "÷"}
    for token in tokenizer["added_tokens"]:
        token["normalized"] = False
    (repository / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(RefusedError, match="two tokens of its vocabulary have the same text") as caught:
        write_gguf(repository, tmp_path / "x.gguf", "F16", "x")
    assert "\ufffd" in (caught.value.got or "")
