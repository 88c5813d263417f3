"""The golden record comes back as it was written, as the same bytes, and never as code."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mlos.errors import CorruptError, ParityError
from mlos.model import InferenceRequest
from mlos.parity import Case, GoldenRecord


def test_what_is_saved_comes_back(golden: GoldenRecord, tmp_path: Path) -> None:
    golden.save(tmp_path / "golden")
    back = GoldenRecord.load(tmp_path / "golden")
    assert back.framework == {"torch": "2"}
    for ours, theirs in zip(golden.cases, back.cases, strict=True):
        assert (ours.name, ours.request, ours.task, ours.result) == (
            theirs.name,
            theirs.request,
            theirs.task,
            theirs.result,
        )
        for side in ("inputs", "outputs"):
            expected, got = getattr(ours, side), getattr(theirs, side)
            assert list(expected) == list(got)
            for name in expected:
                assert expected[name].dtype == got[name].dtype
                np.testing.assert_array_equal(expected[name], got[name])


def test_the_same_content_is_the_same_bytes(
    golden: GoldenRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden.save(tmp_path / "now")
    later = time.localtime(time.time() + 10**8)
    monkeypatch.setattr(time, "localtime", lambda *_: later)
    monkeypatch.setattr(time, "time", lambda: time.mktime(later))
    golden.save(tmp_path / "later")
    for name in ("record.json", "tensors.npz"):
        assert (tmp_path / "now" / name).read_bytes() == (tmp_path / "later" / name).read_bytes()


def test_a_request_with_arrays_is_recorded_as_lists(tmp_path: Path) -> None:
    request = InferenceRequest(inputs={"x": np.array([[1.5, 2.0]], dtype=np.float32), "n": np.int64(3)})
    GoldenRecord((Case("t", request, "tensors", {}, {}, None),)).save(tmp_path)
    assert GoldenRecord.load(tmp_path).cases[0].request.inputs == {"x": [[1.5, 2.0]], "n": 3}


def test_a_name_with_a_slash_is_kept(tmp_path: Path) -> None:
    tensors = {"encoder/output:0": np.ones(2)}
    GoldenRecord((Case("t", InferenceRequest(text=""), "x", tensors, tensors, None),)).save(tmp_path)
    assert list(GoldenRecord.load(tmp_path).cases[0].inputs) == ["encoder/output:0"]


@pytest.mark.parametrize("result", [float("nan"), [float("inf")], {"x": object()}])
def test_a_result_json_has_no_word_for_is_refused(result: object, tmp_path: Path) -> None:
    record = GoldenRecord((Case("t", InferenceRequest(text="a"), "x", {}, {}, result),))
    with pytest.raises(ParityError, match="cannot be recorded"):
        record.save(tmp_path)


def test_names_tell_cases_apart() -> None:
    case = Case("twice", InferenceRequest(text="a"), "x", {}, {}, None)
    with pytest.raises(ParityError, match="two cases named 'twice'"):
        GoldenRecord((case, case))


class Trap:
    """Unpickling it would raise something else than the reader's own error."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


def test_pickled_objects_are_never_loaded(golden: GoldenRecord, tmp_path: Path) -> None:
    golden.save(tmp_path)
    np.savez(tmp_path / "tensors.npz", allow_pickle=True, **{"0/inputs/x": np.array([Trap()], dtype=object)})
    with pytest.raises(CorruptError, match=r"tensors\.npz"):
        GoldenRecord.load(tmp_path)
    (tmp_path / "tensors.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CorruptError, match=r"tensors\.npz"):
        GoldenRecord.load(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.clear(),
        lambda record: record.update(schema_version=2),
        lambda record: record.update(cases=3),
        lambda record: record["cases"][0].pop("task"),
        lambda record: record["cases"][0].update(request={"promptly": "x"}),
        lambda record: record.update(framework=[]),
    ],
)
def test_a_damaged_record_is_named(
    golden: GoldenRecord, tmp_path: Path, damage: Callable[[dict[str, Any]], object]
) -> None:
    golden.save(tmp_path)
    path = tmp_path / "record.json"
    record = json.loads(path.read_text())
    damage(record)
    path.write_text(json.dumps(record))
    with pytest.raises(CorruptError):
        GoldenRecord.load(tmp_path)


@pytest.mark.parametrize("name", ["record.json", "tensors.npz"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"PK\x03\x04junk"])
def test_a_missing_or_broken_file_is_named(
    golden: GoldenRecord, tmp_path: Path, name: str, content: bytes | None
) -> None:
    golden.save(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptError, match=name.replace(".", r"\.")):
        GoldenRecord.load(tmp_path)


def test_the_request_reads_as_the_v1_request(golden: GoldenRecord, tmp_path: Path) -> None:
    golden.save(tmp_path)
    stored = json.loads((tmp_path / "record.json").read_text())["cases"][1]["request"]
    assert stored == {"texts": ["a b c", "d"], "parameters": {"normalize": True}}
    assert msgspec.convert(stored, InferenceRequest) == golden.cases[1].request
