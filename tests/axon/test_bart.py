"""BART: an encoder-decoder whose repository says how to generate, and names the model without its head."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.small import Candidate, Small

from mlos.axon.convert.families import load
from mlos.axon.convert.seq2seq import TASK, Seq2Seq, covers
from mlos.axon.seeding import child
from mlos.catalogue import catalogue
from mlos.errors import InvalidInputError, ParityError, RefusedError
from mlos.parity import GoldenRecord

ENTRY = catalogue().entries["bart"]


@pytest.fixture
def candidate(small: Small, tmp_path: Path) -> Candidate:
    return small.candidate("bart", tmp_path / "candidate")


@pytest.fixture
def repository(small: Small, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(small.repository("bart"), tmp_path / "repository")
    return tmp_path / "repository"


def rewrite(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changed))


def test_the_published_configuration_has_the_published_size() -> None:
    with torch.device("meta"):
        model = child.build(ENTRY.architecture, catalogue().config(ENTRY))
    assert sum(parameter.numel() for parameter in model.parameters()) == ENTRY.parameters == 139_420_416


def test_the_package_says_how_the_repository_generates(candidate: Candidate) -> None:
    facts = candidate.converted.preprocessing[TASK]
    assert (facts["decoder_start"], facts["ends"], facts["positions"]) == (2, [2], 1024)
    assert facts["generation"] == {
        "num_beams": 4,
        "early_stopping": True,
        "no_repeat_ngram_size": 3,
        "forced_bos_token_id": 0,
        "forced_eos_token_id": [2],
    }


def test_the_record_holds_beams_rules_and_padding(candidate: Candidate) -> None:
    cases = {case.name: case for case in GoldenRecord.load(candidate.folder / "golden").cases}
    assert "num_beams" not in cases["beams"].request.parameters
    assert cases["padded"].inputs["input_ids"].shape[0] == 3
    assert not cases["padded"].inputs["attention_mask"].all()
    for case in cases.values():
        forced = case.inputs["decoder_input_ids"]
        assert (forced[:, :2] == [2, 0]).all()  # the token that answers begin with, and the forced one
        for row in case.outputs["logits"].argmax(-1):
            assert len(set(row.tolist())) > 1


@pytest.mark.parametrize(
    "mutate",
    [
        lambda facts: facts["generation"].pop("no_repeat_ngram_size"),
        lambda facts: facts["generation"].pop("forced_bos_token_id"),
        lambda facts: facts["generation"].pop("forced_eos_token_id"),
        lambda facts: facts["generation"].pop("num_beams"),
        lambda facts: facts["generation"].update(repetition_penalty=3.0),
        lambda facts: facts.update(decoder_start=0),
    ],
    ids=["repeating", "another beginning", "no end", "greedy", "a penalty", "another start"],
)
def test_a_wrong_rule_fails(candidate: Candidate, mutate: Callable[[dict[str, Any]], object]) -> None:
    facts = copy.deepcopy(candidate.converted.preprocessing)
    mutate(facts[TASK])
    with pytest.raises(ParityError, match="wrong result"):
        candidate.prove(preprocessing=facts)


def test_a_request_may_ask_for_other_rules_and_for_no_more_than_there_are_positions(
    candidate: Candidate,
) -> None:
    text = "The ship left the harbour."
    plain = candidate.ask(text=text, parameters={"max_tokens": 8})
    assert plain["usage"]["completion_tokens"] == 8  # the forced beginning and end among them
    assert plain["finish_reason"] == "stop"
    other = candidate.ask(text=text, parameters={"max_tokens": 8, "num_beams": 1, "repetition_penalty": 4})
    assert other["text"] != plain["text"]
    with pytest.raises(InvalidInputError, match="from 1 to 1024"):
        candidate.ask(text=text, parameters={"max_tokens": 1025})
    with pytest.raises(InvalidInputError, match="forced_bos_token_id"):
        candidate.ask(text=text, parameters={"forced_bos_token_id": 5})


@pytest.mark.parametrize("generation", [{"num_beams": 9}, {"sequence_bias": []}, {"early_stopping": "soon"}])
def test_a_package_that_generates_otherwise_is_refused(
    candidate: Candidate, generation: dict[str, Any]
) -> None:
    facts = candidate.converted.preprocessing[TASK]
    with pytest.raises(RefusedError, match="the package generates with"):
        candidate.prove(preprocessing={TASK: facts | {"generation": generation}})


def test_weights_without_head_and_bias_are_the_same_model(small: Small, repository: Path) -> None:
    """As the published repository has them: those of BartModel alone."""
    path = repository / "model.safetensors"
    weights = load_file(path)
    assert "final_logits_bias" in weights
    bare = {name.removeprefix("model."): each for name, each in weights.items() if name.startswith("model.")}
    assert len(bare) == len(weights) - 1
    save_file(bare, path, {"format": "pt"})
    family = load(repository)
    assert isinstance(family, Seq2Seq)
    assert type(family.model).__name__ == "BartForConditionalGeneration"
    folder, _ = small.converted("bart")
    case = GoldenRecord.load(folder / "golden").cases[0]
    with torch.no_grad():
        logits = family.model(**{name: torch.from_numpy(each) for name, each in case.inputs.items()}).logits
    np.testing.assert_allclose(logits.numpy(), case.outputs["logits"], atol=1e-5)


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("encoder_no_repeat_ngram_size", 2),
        ("encoder_repetition_penalty", 1.2),
        ("bad_words_ids", [[5]]),
        ("suppress_tokens", [5]),
        ("renormalize_logits", True),
    ],
)
def test_a_rule_that_is_not_done_here_is_refused_by_name(repository: Path, rule: str, value: Any) -> None:
    rewrite(repository / "generation_config.json", **{rule: value})
    with pytest.raises(RefusedError, match=rule):
        load(repository)


def test_the_length_that_a_repository_says_is_taken_over(repository: Path) -> None:
    rewrite(repository / "generation_config.json", max_length=142, min_length=56, length_penalty=2.0)
    generation = load(repository).preprocessing()[TASK]["generation"]
    assert (generation["max_tokens"], generation["min_length"], generation["length_penalty"]) == (141, 56, 2.0)


@pytest.mark.parametrize(
    ("architecture", "config", "covered"),
    [
        ("BartModel", {"model_type": "bart"}, True),
        ("BartForConditionalGeneration", {"model_type": "bart", "is_encoder_decoder": True}, True),
        ("MarianMTModel", {"model_type": "marian"}, True),
        ("T5Model", {"model_type": "t5"}, True),
        ("T5EncoderModel", {"model_type": "t5", "is_encoder_decoder": True}, False),
        ("BartForSequenceClassification", {"model_type": "bart"}, False),
        ("BartForCausalLM", {"model_type": "bart", "is_encoder_decoder": False}, False),
        ("WhisperForConditionalGeneration", {"model_type": "whisper"}, False),
        ("SeamlessM4TModel", {"model_type": "seamless_m4t"}, False),
        ("Qwen2AudioForConditionalGeneration", {"model_type": "qwen2_audio"}, False),
        ("BertForMaskedLM", {"model_type": "bert"}, False),
        (None, {}, False),
    ],
)
def test_what_is_an_encoder_decoder_of_text(
    tmp_path: Path, architecture: str | None, config: dict[str, Any], covered: bool
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert covers(architecture, tmp_path) is covered


def test_an_encoder_of_sentence_transformers_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    assert covers("T5Model", tmp_path)
    (tmp_path / "modules.json").write_text("[]")
    assert not covers("T5Model", tmp_path)
