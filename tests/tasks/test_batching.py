"""Requests computed together are answered as they are alone (F25): by the graph of a real, small encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.small import Candidate, Small

from mlos.engines import open_model
from mlos.model import Artifact, InferenceRequest, TensorSpec
from mlos.tasks import Prepared, Task, tasks_of
from mlos.tasks.batching import MOST_PADDING, MOST_TOKENS, Member, apart, batch_axis, grouped, together
from mlos.tasks.prepared import Padding

WORDS = ("river", "stone", "cloud", "letter", "engine", "garden", "winter", "music", "signal", "harbour")
RIGHT = Padding({"input_ids": 9, "attention_mask": 0}, left=False)
LEFT = Padding(RIGHT.values, left=True)
ARTIFACT = Artifact(
    format="onnx",
    precision="fp32",
    path="model.onnx",
    inputs=tuple(TensorSpec(name=name, dtype="INT64", shape=("batch", "sequence")) for name in RIGHT.values),
    outputs=(
        TensorSpec(name="hidden", dtype="FP32", shape=("batch", "sequence", 2)),
        TensorSpec(name="logits", dtype="FP32", shape=("batch", 3)),
    ),
)


def text(number: int, length: int, rows: int = 1, padding: Padding | None = RIGHT, **changed: Any) -> Member:
    ids = np.full((rows, length), number)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)} | changed
    return Member(number, Prepared(inputs, ("hidden",), None, padding))


def numbers(groups: list[list[Member]]) -> list[list[int]]:
    return [[member.number for member in group] for group in groups]


def test_texts_of_like_lengths_go_together_and_the_first_goes_first() -> None:
    members = [text(0, 100), text(1, 8), text(2, 9), text(3, 90), text(4, 8), text(5, 10)]
    assert numbers(grouped(members, 8, None)) == [[3, 0], [1, 4, 2, 5]]
    assert numbers(grouped(members, 2, None)) == [[3, 0], [1, 4], [2, 5]]
    assert numbers(grouped(members, 1, None)) == [[0], [1], [2], [3], [4], [5]]


def test_texts_that_are_too_long_to_pay_go_alone() -> None:
    members = [text(0, 65), text(1, 64), text(2, 65), text(3, 64)]
    assert numbers(grouped(members, 8, 64)) == [[0], [1, 3], [2]]


def test_a_group_holds_little_padding_and_not_too_many_tokens() -> None:
    chance = np.random.default_rng(0)
    members = [text(number, int(chance.integers(1, 400))) for number in range(300)]
    groups = grouped(members, 16, None)
    assert sorted(number for group in numbers(groups) for number in group) == list(range(300))
    for group in groups:
        tokens = max(member.length for member in group) * len(group)
        assert tokens <= MOST_TOKENS or len(group) == 1
        assert tokens - sum(member.length for member in group) <= MOST_PADDING * tokens


def test_what_differs_in_more_than_rows_and_length_goes_apart() -> None:
    plain = text(0, 5, padding=None)
    other = Member(3, Prepared(plain.prepared.inputs, ("logits",), None, None))
    typed = text(4, 5, padding=None, attention_mask=np.ones((1, 5), np.int32))
    members = [plain, text(1, 5), text(2, 6, padding=None), other, typed, text(5, 5, padding=None)]
    assert numbers(grouped(members, 8, None)) == [[0, 5], [1], [2], [3], [4]]


@pytest.mark.parametrize("padding", [RIGHT, LEFT])
def test_rows_are_padded_as_the_tokenizer_pads_and_come_apart_as_they_were(padding: Padding) -> None:
    group = [text(1, 2, rows=2, padding=padding), text(2, 3, padding=padding)]
    joined = together(group)
    short = [9, 1, 1] if padding.left else [1, 1, 9]
    assert joined["input_ids"].tolist() == [short, short, [2, 2, 2]]
    assert joined["attention_mask"].tolist()[0] == ([0, 1, 1] if padding.left else [1, 1, 0])
    answers: dict[str, NDArray[Any]] = {
        "hidden": np.repeat(joined["input_ids"][:, :, None], 2, axis=2).astype(np.float32),
        "logits": np.arange(9, dtype=np.float32).reshape(3, 3),
    }
    first, second = apart(group, answers, ARTIFACT)
    assert first["hidden"].tolist() == [[[1, 1], [1, 1]]] * 2
    assert second["hidden"].tolist() == [[[2, 2]] * 3]
    assert (first["logits"].tolist(), second["logits"].tolist()) == ([[0, 1, 2], [3, 4, 5]], [[6, 7, 8]])


def test_a_file_that_does_not_say_batch_is_not_computed_in_batches() -> None:
    assert batch_axis(ARTIFACT) == "batch"
    rows = TensorSpec(name="x", dtype="FP32", shape=("rows", 3))
    assert batch_axis(ARTIFACT.model_copy(update={"inputs": (*ARTIFACT.inputs, rows)})) is None
    assert batch_axis(ARTIFACT.model_copy(update={"outputs": (rows,)})) is None
    fixed = TensorSpec(name="x", dtype="FP32", shape=(1, 3))
    assert batch_axis(ARTIFACT.model_copy(update={"inputs": (fixed,)})) is None


@pytest.fixture(scope="module")
def bert(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    return small.candidate("bert", tmp_path_factory.mktemp("bert") / "package")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_random_texts_are_answered_together_as_they_are_alone(bert: Candidate, engine: str) -> None:
    """Both tasks, lengths of one word to the most the model takes, several texts in one request among them."""
    opened = open_model(bert.folder, bert.converted.artifact, 1, engine=engine)
    tasks = tasks_of(bert.folder, bert.draft())
    chance = np.random.default_rng(7)

    def words() -> str:
        return " ".join(chance.choice(WORDS, size=int(chance.integers(1, 40))))

    requests = [
        InferenceRequest(text=words()) if number % 3 else InferenceRequest(texts=[words(), words()])
        for number in range(24)
    ]
    requests += [InferenceRequest(text=f"{words()} [MASK] {words()}") for _ in range(8)]
    asked: list[tuple[Task, Prepared]] = []
    for request in requests:
        task = tasks.choose(request)
        asked.append((task, task.preprocess(request)))
    groups = grouped([Member(number, prepared) for number, (_, prepared) in enumerate(asked)], 8, None)
    assert max(map(len, groups)) > 2
    for group in groups:
        answers = opened.run(together(group), group[0].prepared.outputs)
        for member, own in zip(group, apart(group, answers, bert.converted.artifact), strict=True):
            alone = opened.run(member.prepared.inputs, member.prepared.outputs)
            assert own.keys() == alone.keys()
            for name in alone:
                assert own[name].shape == alone[name].shape
                np.testing.assert_allclose(own[name], alone[name], atol=1e-4, rtol=1e-3)
            _same(asked[member.number][0], member.prepared, own, alone)


def _same(task: Task, prepared: Prepared, own: Any, alone: Any) -> None:
    """The task's answer too, whose vectors are made over the text's own tokens alone."""
    one, other = task.postprocess(prepared, own), task.postprocess(prepared, alone)
    for mine, its in zip(*(each if isinstance(each, list) else [each] for each in (one, other)), strict=True):
        assert mine.keys() == its.keys()
        for key, value in its.items():
            if isinstance(value, list):
                np.testing.assert_allclose(mine[key], value, atol=1e-4, rtol=1e-3)
            elif isinstance(value, float):
                assert mine[key] == pytest.approx(value, rel=1e-3)
            else:
                assert mine[key] == value


def test_padding_that_the_mask_does_not_hide_is_seen(bert: Candidate) -> None:
    """What the comparison above would not forgive: the same batch with padding that the model attends to."""
    opened = open_model(bert.folder, bert.converted.artifact, 1)
    tasks = tasks_of(bert.folder, bert.draft())
    requests = [InferenceRequest(text="river"), InferenceRequest(text="river stone cloud letter engine garden")]
    group = [
        Member(number, tasks.choose(request).preprocess(request)) for number, request in enumerate(requests)
    ]
    joined = together(group)
    joined["attention_mask"] = np.ones_like(joined["attention_mask"])
    first, _ = apart(group, opened.run(joined, group[0].prepared.outputs), bert.converted.artifact)
    alone = opened.run(group[0].prepared.inputs, group[0].prepared.outputs)
    (name,) = alone
    assert np.abs(first[name] - alone[name]).max() > 1e-2
