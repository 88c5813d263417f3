"""Text to text on a small T5: the framework's answers, in parts and in whole, and requests that are wrong."""

from __future__ import annotations

from typing import Any

import pytest
from tests.small import Small
from tests.tiny_t5 import TinyT5, tiny_t5

from mlos.engines import EncoderDecoder
from mlos.errors import DeadlineError, InvalidInputError, PayloadTooLargeError, RefusedError
from mlos.model import InferenceRequest
from mlos.parity import compare_inputs
from mlos.tasks import Limits, Silence
from mlos.tasks.text2text_generation import Text2TextGeneration

TEXTS = ["The ship slowly left the harbour.", "Yes.", "Two engineers timed the same answer twice, é 日本 😀."]


class Listener(Silence):
    """Keeps the parts, and gives the request up after so many steps."""

    def __init__(self, patience: int = 1 << 30) -> None:
        self.parts: list[str] = []
        self.steps = 0
        self._patience = patience

    def emit(self, part: dict[str, Any]) -> None:
        self.parts.append(part["text"])

    def check(self) -> None:
        self.steps += 1
        if self.steps > self._patience:
            raise DeadlineError("nobody waits")


@pytest.fixture(scope="module")
def made(small: Small) -> TinyT5:
    return tiny_t5(small)


@pytest.fixture(scope="module")
def task(made: TinyT5) -> Text2TextGeneration:
    return Text2TextGeneration(made.folder, made.manifest, Limits())


@pytest.fixture(scope="module")
def engine(made: TinyT5) -> EncoderDecoder:
    return made.opened()


def answer(
    task: Text2TextGeneration, engine: EncoderDecoder, stream: Silence | None = None, **request: Any
) -> Any:
    prepared = task.preprocess(InferenceRequest(**request))
    return task.postprocess(prepared, task.compute(engine, prepared, stream or Silence()))


def test_every_golden_request_is_answered_as_the_framework_does(
    made: TinyT5, task: Text2TextGeneration, engine: EncoderDecoder
) -> None:
    for case in made.golden.cases:
        prepared = task.preprocess(case.request)
        assert compare_inputs(case, prepared.inputs) is None
        assert task.postprocess(prepared, task.compute(engine, prepared, Silence())) == case.result


def test_texts_together_are_answered_as_each_alone(task: Text2TextGeneration, engine: EncoderDecoder) -> None:
    for parameters in ({"max_tokens": 9}, {"max_tokens": 9, "num_beams": 3}):
        together = answer(task, engine, texts=TEXTS, parameters=parameters)
        assert together == [answer(task, engine, text=text, parameters=parameters) for text in TEXTS]


def test_parts_make_the_text_and_a_prompt_is_a_text(task: Text2TextGeneration, engine: EncoderDecoder) -> None:
    for text in TEXTS:
        listener = Listener()
        whole = answer(task, engine, listener, prompt=text, parameters={"max_tokens": 16})
        assert "".join(listener.parts) == whole["text"]
        assert len(listener.parts) > 3
        assert listener.steps == whole["usage"]["completion_tokens"] == 16
        assert whole["finish_reason"] == "length"


def test_a_text_whose_spaces_are_cleaned_up_is_told_once(made: TinyT5, engine: EncoderDecoder) -> None:
    facts = made.manifest.preprocessing[Text2TextGeneration.name] | {"clean_up_tokenization_spaces": True}
    manifest = made.manifest.model_copy(update={"preprocessing": {Text2TextGeneration.name: facts}})
    listener = Listener()
    task = Text2TextGeneration(made.folder, manifest, Limits())
    whole = answer(task, engine, listener, text=TEXTS[0], parameters={"max_tokens": 8})
    assert listener.parts == [whole["text"]]


def test_a_beam_comes_in_one_part(task: Text2TextGeneration, engine: EncoderDecoder) -> None:
    listener = Listener()
    whole = answer(task, engine, listener, text="Yes.", parameters={"max_tokens": 5, "num_beams": 2})
    assert listener.parts == [whole["text"]]
    assert listener.steps == 5


def test_an_answer_that_ends_by_itself_says_so(
    made: TinyT5, engine: EncoderDecoder, task: Text2TextGeneration
) -> None:
    """A token that the answer does come upon, taken for its end."""
    steps = [tokens[0] for tokens in _steps(made, engine, task)]
    end = int(steps[4])
    first = steps.index(end)
    facts = made.manifest.preprocessing[task.name] | {"ends": [end]}
    manifest = made.manifest.model_copy(update={"preprocessing": {task.name: facts}})
    ending = Text2TextGeneration(made.folder, manifest, Limits())
    result = answer(ending, engine, text=TEXTS[0], parameters={"max_tokens": 16})
    assert (result["finish_reason"], result["usage"]["completion_tokens"]) == ("stop", first + 1)


def _steps(made: TinyT5, engine: EncoderDecoder, task: Text2TextGeneration) -> list[list[int]]:
    source = made.tokenizer(TEXTS[0], return_tensors="pt")
    written = made.model.generate(
        **{name: source[name] for name in ("input_ids", "attention_mask")}, max_new_tokens=8, do_sample=False
    )
    return [[token] for token in written[0].tolist()[1:]]


def test_who_no_longer_waits_is_not_written_for(task: Text2TextGeneration, engine: EncoderDecoder) -> None:
    for beams in (1, 3):
        listener = Listener(patience=3)
        with pytest.raises(DeadlineError):
            answer(task, engine, listener, text="Yes.", parameters={"max_tokens": 99, "num_beams": beams})
        assert listener.steps == 4


@pytest.mark.parametrize(
    ("request_", "error", "field"),
    [
        ({"text": "a", "parameters": {"temperature": 1}}, InvalidInputError, "parameters.temperature"),
        ({"text": "a", "parameters": {"num_beams": 9}}, InvalidInputError, "parameters.num_beams"),
        ({"text": "a", "parameters": {"max_tokens": 0}}, InvalidInputError, "parameters.max_tokens"),
        (
            {"text": "a", "parameters": {"early_stopping": "soon"}},
            InvalidInputError,
            "parameters.early_stopping",
        ),
        ({"texts": ["a"] * 9, "parameters": {"num_beams": 8}}, PayloadTooLargeError, "texts"),
        ({"texts": ["a", "b"], "stream": True}, InvalidInputError, "stream"),
        ({"inputs": {}}, InvalidInputError, "inputs"),
        ({"image": b"x"}, InvalidInputError, "image"),
    ],
)
def test_a_wrong_request_is_told_by_its_field(
    task: Text2TextGeneration, request_: dict[str, Any], error: type[InvalidInputError], field: str
) -> None:
    with pytest.raises(error) as caught:
        task.preprocess(InferenceRequest(**request_))
    assert caught.value.field == field


def test_a_package_that_is_no_encoder_decoder_is_refused(made: TinyT5) -> None:
    one = made.artifact.parts["encoder"]
    for change in (
        {"artifact": one},
        {"preprocessing": {Text2TextGeneration.name: {"max_length": 9, "pad_token": "<pad>"}}},
    ):
        with pytest.raises(RefusedError):
            Text2TextGeneration(made.folder, made.manifest.model_copy(update=change), Limits())
