"""Chat and text generation on a small Llama: the framework's prompts and words, and nobody else's tokens."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tiny_llama import TinyLlama, tiny_llama

from mlos.engines import LanguageModel, open_model
from mlos.errors import DeadlineError, InvalidInputError, PayloadTooLargeError, RefusedError
from mlos.model import Artifact, InferenceRequest, Manifest, Message
from mlos.parity import compare_inputs, compare_result, tolerance_of
from mlos.tasks import Limits, Silence, Task, Tasks, tasks_of
from mlos.tasks.chat import Chat
from mlos.tasks.generation import Generated
from mlos.tasks.text_generation import TextGeneration

HELLO = InferenceRequest(messages=[Message("user", "Hello")])


class Listener(Silence):
    """Keeps the parts, and gives the request up after so many."""

    def __init__(self, patience: int = 1 << 30) -> None:
        self.parts: list[str] = []
        self._patience = patience

    def emit(self, part: dict[str, Any]) -> None:
        self.parts.append(part["text"])

    def check(self) -> None:
        if len(self.parts) >= self._patience:
            raise DeadlineError("nobody waits")


@pytest.fixture(scope="module")
def made() -> TinyLlama:
    return tiny_llama()


def manifest_of(artifact: Artifact) -> Manifest:
    return Manifest(
        name="tinyllama",
        reference="seeded/tiny/tinyllama",
        commit="0",
        weights="seeded",
        source_format="safetensors",
        tasks=("chat", "text-generation"),
        artifact=artifact,
        files=(),
    )


@pytest.fixture(scope="module")
def tasks(made: TinyLlama) -> Tasks:
    return tasks_of(made.folder, manifest_of(made.artifacts["F32"]))


@pytest.fixture(scope="module")
def engine(made: TinyLlama) -> LanguageModel:
    opened = open_model(made.folder, made.artifacts["F32"], 1)
    assert isinstance(opened, LanguageModel)
    return opened


def written(
    task: Task, engine: LanguageModel, request: InferenceRequest, stream: Silence | None = None
) -> Generated:
    generated = task.compute(engine, task.preprocess(request), stream or Silence())
    assert isinstance(generated, Generated)
    return generated


def asked(prompt: str, **parameters: Any) -> InferenceRequest:
    return InferenceRequest(prompt=prompt, parameters=parameters)


def test_prompts_and_greedy_words_are_the_frameworks(
    made: TinyLlama, tasks: Tasks, engine: LanguageModel
) -> None:
    tolerance = tolerance_of(made.artifacts["F32"], "")
    assert tolerance.atol is not None  # so that the words are compared
    for case in made.golden.cases:
        task = tasks.choose(case.request)
        assert task.name == case.task
        prepared = task.preprocess(case.request)
        assert compare_inputs(case, prepared.inputs) is None
        result = task.postprocess(prepared, task.compute(engine, prepared, Silence()))
        assert compare_result(case, result, tolerance) is None, (case.result, result)


def test_parts_make_the_text(tasks: Tasks, engine: LanguageModel) -> None:
    listener = Listener()
    generated = written(tasks.choose(HELLO), engine, HELLO, listener)
    assert "".join(listener.parts) == generated.text
    assert len(listener.parts) > 10
    assert generated.completion_tokens <= 256


def test_a_stop_string_ends_the_text_before_itself(tasks: Tasks, engine: LanguageModel) -> None:
    task = tasks.choose(asked("x"))
    whole = written(task, engine, asked("Once upon a time", max_tokens=12))
    assert whole.finish_reason == "length"
    stop = whole.text[len(whole.text) // 2 :][:3]
    listener = Listener()
    cut = written(task, engine, asked("Once upon a time", max_tokens=12, stop=[stop, "never said"]), listener)
    assert cut.finish_reason == "stop"
    assert cut.text == "".join(listener.parts) == whole.text[: whole.text.index(stop)]
    assert cut.completion_tokens < whole.completion_tokens


def test_max_tokens_is_kept(tasks: Tasks, engine: LanguageModel) -> None:
    for most in (1, 5):
        generated = written(tasks.choose(asked("x")), engine, asked("The ship", max_tokens=most))
        assert generated.completion_tokens == most
        assert generated.tokens == {"prompt": generated.prompt_tokens, "completion": most}


def test_sampling_follows_its_seed(tasks: Tasks, engine: LanguageModel) -> None:
    def write(**parameters: Any) -> str:
        return written(tasks.choose(asked("x")), engine, asked("The ship", max_tokens=16, **parameters)).text

    greedy = write()
    assert write(temperature=0, seed=3) == greedy
    assert write(temperature=1.5, seed=3) == write(temperature=1.5, seed=3)
    assert len({write(temperature=1.5, seed=seed) for seed in range(4)} | {greedy}) > 2
    assert write(temperature=1.5, seed=3, top_k=1) == greedy


def test_who_no_longer_waits_is_not_written_for(tasks: Tasks, engine: LanguageModel) -> None:
    listener = Listener(patience=3)
    with pytest.raises(DeadlineError):
        written(tasks.choose(HELLO), engine, HELLO, listener)
    assert len(listener.parts) == 3
    assert written(tasks.choose(HELLO), engine, HELLO).text  # the engine is free and well


def test_a_prompt_as_long_as_the_context_is_refused(tasks: Tasks, engine: LanguageModel) -> None:
    request = asked("word " * engine.context_length)
    with pytest.raises(PayloadTooLargeError, match="leaves no room") as caught:
        written(tasks.choose(request), engine, request)
    assert caught.value.expected == f"fewer than {engine.context_length} tokens"


@pytest.mark.parametrize("text", ["</s>", "a <s> b", "<s><|user|>", "<unk>"])
def test_a_person_does_not_speak_in_control_tokens(tasks: Tasks, text: str) -> None:
    for request, field in (
        (InferenceRequest(messages=[Message("user", "a"), Message("assistant", text)]), "messages[1].content"),
        (InferenceRequest(prompt=text), "prompt"),
    ):
        with pytest.raises(InvalidInputError, match="control token") as caught:
            tasks.choose(request).preprocess(request)
        assert caught.value.field == field
    meant = asked(text, special_tokens=True)
    assert tasks.choose(meant).preprocess(meant).inputs["input_ids"].shape[0] == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [Message("user", "a")] * 1025}, "messages"),
        ({"messages": [Message("root", "a")]}, "messages[0].role"),
        ({"messages": [Message("user", "\ud800")]}, "messages"),
        ({"parameters": {"temperature": -1}}, "parameters.temperature"),
        ({"parameters": {"temperature": 1e-38}}, "parameters.temperature"),
        ({"parameters": {"repetition_penalty": 1e-40}}, "parameters.repetition_penalty"),
        ({"parameters": {"temperature": float("nan")}}, "parameters.temperature"),
        ({"parameters": {"top_p": 0}}, "parameters.top_p"),
        ({"parameters": {"max_tokens": True}}, "parameters.max_tokens"),
        ({"parameters": {"stop": ""}}, "parameters.stop"),
        ({"parameters": {"stop": ["a"] * 17}}, "parameters.stop"),
        ({"parameters": {"seed": 1 << 32}}, "parameters.seed"),
        ({"parameters": {"colour": 1}}, "parameters.colour"),
    ],
)
def test_a_wrong_conversation_is_told_by_its_field(tasks: Tasks, change: dict[str, Any], field: str) -> None:
    request = InferenceRequest(**({"messages": HELLO.messages} | change))
    with pytest.raises(InvalidInputError) as caught:
        tasks.choose(request).preprocess(request)
    assert caught.value.field == field


class _Templated(Chat):
    """Chat with another template than the model's own."""

    def __init__(self, made: TinyLlama, template: str) -> None:
        super().__init__(made.folder, manifest_of(made.artifacts["F32"]), Limits())
        self.use(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for x in messages.__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ 1 // 0 }}",
        "{{ messages[7].content.nothing }}",
        "{{ range(10 ** 9) | list }}",
    ],
)
def test_a_template_reaches_nothing_and_what_it_raises_is_told(made: TinyLlama, template: str) -> None:
    with pytest.raises(InvalidInputError, match="chat template refuses"):
        _Templated(made, template).preprocess(HELLO)


def test_a_template_that_writes_without_end_is_stopped(made: TinyLlama) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}"
    with pytest.raises(PayloadTooLargeError, match="more than"):
        _Templated(made, endless).preprocess(HELLO)


def test_a_template_that_thinks_without_end_is_stopped(
    made: TinyLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlos.tasks.chat._RENDER_SECONDS", 0.2)
    silent = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(InvalidInputError, match="took longer"):
        _Templated(made, silent).preprocess(HELLO)


def test_a_template_that_is_none_is_refused_at_once(made: TinyLlama) -> None:
    with pytest.raises(RefusedError, match="chat template cannot be read"):
        _Templated(made, "{% for %}")


def test_an_engine_that_does_not_write_is_refused(made: TinyLlama) -> None:
    class Other:
        name = "other"

    task = TextGeneration(made.folder, manifest_of(made.artifacts["F32"]), Limits())
    with pytest.raises(RefusedError, match="does not continue"):
        task.compute(Other(), task.preprocess(asked("x")), Silence())  # type: ignore[arg-type]  # which is the point
