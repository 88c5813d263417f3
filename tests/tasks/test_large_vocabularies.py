"""What Qwen2, Llama 3.2 and DeepSeek Coder need beside TinyLlama: letters put together, a day, other marks."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import transformers
from numpy.typing import NDArray
from tests.small import Small
from tests.tiny_llama import tiny_llama

from mlos.axon.convert.causal_lm import CausalLM
from mlos.engines import Sampling, vocabulary_of
from mlos.errors import InvalidInputError, RefusedError
from mlos.model import Artifact, InferenceRequest, Manifest, Message, ModelFormat, Tensors
from mlos.tasks import Limits, Silence, Task, tasks_of
from mlos.tasks.chat import Chat
from mlos.tasks.generation import Generated
from mlos.tasks.text_generation import TextGeneration

QWEN, LLAMA, DEEPSEEK = "qwen2-0.5b", "llama-3.2-1b", "deepseek-coder-1.3b"
VIETNAMESE = "Tie\u0302\u0301ng Vie\u0323\u0302t co\u0301 da\u0302\u0301u"
HANGUL = "\u1112\u1161\u11ab\u1100\u1173\u11af \u1112\u1161\u11ab"
DECOMPOSED = [
    VIETNAMESE,
    HANGUL,
    f"{VIETNAMESE} {HANGUL}",
    "e\u0301\u0323 A\u030a \u212b \u2126 \u0958",
    "\u0301 alone",
    "already: é Å 한글",
    "def f(x):\n    return x  # \U0001f99c\u200d",
]
ASKED = InferenceRequest(prompt="a", parameters={"max_tokens": 2})
Find = Callable[[str], "Known"]


class _Says:
    """An engine that writes what it is told to."""

    formats: ClassVar[frozenset[ModelFormat]] = frozenset()
    name, version, context_length = "says", "0", 4096

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens

    @classmethod
    def open(cls, folder: Path, artifact: Artifact, threads: int) -> Self:
        raise NotImplementedError  # nothing is opened

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        raise NotImplementedError  # it only writes

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, check: Callable[[], None]
    ) -> Generator[int, None, None]:
        yield from self._tokens


class Known:
    """A small variant: its tasks, and the framework's tokenizer of its repository."""

    def __init__(self, small: Small, name: str) -> None:
        self.folder, converted = small.converted(name)
        self.repository = small.repository(name)
        self.manifest = Manifest(
            name=name,
            reference=f"seeded/tiny/{name}",
            commit="0",
            weights="seeded",
            source_format="safetensors",
            tasks=converted.tasks,
            artifact=converted.artifact,
            preprocessing=converted.preprocessing,
            files=(),
        )
        tasks = tasks_of(self.folder, self.manifest, Limits())
        self.vocabulary = vocabulary_of(self.folder, converted.artifact)
        self.chat: Task = tasks.choose(InferenceRequest(messages=[Message("user", "a")]))
        self.text: Task = tasks.choose(InferenceRequest(prompt="a"))
        self.tokenizer: Any = transformers.PreTrainedTokenizerFast.from_pretrained(self.repository)

    def prompt(self, text: str, **parameters: Any) -> list[int]:
        request = InferenceRequest(prompt=text, parameters=parameters)
        return list(self.text.preprocess(request).inputs["input_ids"][0].tolist())

    def conversation(self, *messages: Message, **parameters: Any) -> list[int]:
        request = InferenceRequest(messages=list(messages), parameters=parameters)
        return list(self.chat.preprocess(request).inputs["input_ids"][0].tolist())

    def framework(self, *messages: Message, **variables: Any) -> list[int]:
        asked = [{"role": message.role, "content": message.content} for message in messages]
        encoded = self.tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_dict=True, **variables
        )
        return list(encoded["input_ids"])


@pytest.fixture(scope="module")
def known(small: Small) -> Find:
    made: dict[str, Known] = {}
    return lambda name: made.get(name) or made.setdefault(name, Known(small, name))


class TestLettersTakenApart:
    @pytest.mark.parametrize("text", DECOMPOSED)
    def test_prompts_are_put_together_as_in_the_framework(self, known: Find, text: str) -> None:
        qwen = known(QWEN)
        assert qwen.prompt(text) == qwen.tokenizer(text)["input_ids"]

    @pytest.mark.parametrize("text", DECOMPOSED)
    def test_conversations_too(self, known: Find, text: str) -> None:
        qwen = known(QWEN)
        said = (Message("system", text), Message("user", text))
        assert qwen.conversation(*said) == qwen.framework(*said)

    def test_without_it_they_would_differ(self, known: Find) -> None:
        qwen = known(QWEN)
        facts = {"ends": [151_643, 151_645], "normalization": "NFC"}
        assert qwen.manifest.preprocessing == {"chat": facts, "text-generation": facts}
        plain = TextGeneration(qwen.folder, qwen.manifest.model_copy(update={"preprocessing": {}}), Limits())
        for text in (VIETNAMESE, HANGUL):
            tokens = plain.preprocess(InferenceRequest(prompt=text)).inputs["input_ids"][0].tolist()
            assert tokens != qwen.tokenizer(text)["input_ids"]

    def test_an_accent_does_not_melt_into_a_mark_before_it(self, known: Find) -> None:
        """``>`` and U+0338 are ``≯`` together; but the mark is found first."""
        qwen = known(QWEN)
        text = "a<|im_end|>\u0338 b>\u0338"
        assert qwen.prompt(text, special_tokens=True) == qwen.tokenizer(text)["input_ids"]

    @pytest.mark.parametrize("name", [LLAMA, DEEPSEEK])
    @pytest.mark.parametrize("text", DECOMPOSED)
    def test_others_leave_them_apart(self, known: Find, name: str, text: str) -> None:
        assert all("normalization" not in facts for facts in known(name).manifest.preprocessing.values())
        assert known(name).prompt(text) == known(name).tokenizer(text)["input_ids"]


class TestFacts:
    """On TinyLlama's vocabulary, by the manifest's word alone."""

    def task(self, **facts: Any) -> Chat:
        made = tiny_llama()
        manifest = Manifest(
            name="tinyllama",
            reference="seeded/tiny/tinyllama",
            commit="0",
            weights="seeded",
            source_format="safetensors",
            tasks=("chat",),
            artifact=made.artifacts["F32"],
            preprocessing={"chat": facts},
            files=(),
        )
        return Chat(made.folder, manifest, Limits())

    def test_nobody_spells_a_mark_in_other_letters(self) -> None:
        request = InferenceRequest(messages=[Message("user", "a\uff1c/s\uff1e b")])  # wide < and >
        self.task(normalization="NFC").preprocess(request)
        with pytest.raises(InvalidInputError, match="control token '</s>'"):
            self.task(normalization="NFKC").preprocess(request)

    @pytest.mark.parametrize(
        ("facts", "problem"),
        [
            ({"normalization": "nfc"}, "Unicode form"),
            ({"normalization": 1}, "Unicode form"),
            ({"ends": 2}, "an answer ends"),
            ({"ends": ["</s>"]}, "an answer ends"),
        ],
    )
    def test_facts_that_say_nothing_are_refused(self, facts: dict[str, Any], problem: str) -> None:
        with pytest.raises(RefusedError, match=problem) as caught:
            self.task(**facts)
        assert caught.value.field == f"preprocessing.chat.{next(iter(facts))}"


class TestTheDay:
    SAID = (
        (Message("user", "Hello"),),
        (Message("system", " Be brief. "), Message("user", "Hello"), Message("assistant", "Yes\n")),
        (Message("system", "x"), Message("user", "a"), Message("assistant", "b"), Message("user", "🐦 c ")),
    )

    @pytest.mark.parametrize("said", SAID)
    @pytest.mark.parametrize(("day", "told"), [("2024-07-26", "26 Jul 2024"), ("2031-02-03", "03 Feb 2031")])
    def test_the_template_is_told_the_day_of_the_request(
        self, known: Find, said: tuple[Message, ...], day: str, told: str
    ) -> None:
        llama = known(LLAMA)
        found = llama.conversation(*said, date=day)
        assert found == llama.framework(*said, date_string=told)
        assert f"Today Date: {told}\n" in llama.tokenizer.decode(found)

    def test_without_one_it_is_the_framework_s_today(self, known: Find) -> None:
        llama = known(LLAMA)
        while True:  # once more if midnight came between
            today = datetime.date.today()
            ours, theirs = llama.conversation(*self.SAID[1]), llama.framework(*self.SAID[1])
            if datetime.date.today() == today:
                break
        assert ours == theirs
        assert ours != llama.conversation(*self.SAID[1], date="2024-07-26")

    @pytest.mark.parametrize("day", ["26 Jul 2024", "2024-13-01", "2024-02-30", "20240726", "", 20240726, None])
    def test_what_is_no_day_is_refused(self, known: Find, day: Any) -> None:
        with pytest.raises(InvalidInputError) as caught:
            known(LLAMA).conversation(Message("user", "a"), date=day)
        assert caught.value.field == "parameters.date"

    def test_a_prompt_has_none(self, known: Find) -> None:
        with pytest.raises(InvalidInputError, match="unknown parameter 'date'"):
            known(LLAMA).prompt("a", date="2024-07-26")

    def test_a_golden_conversation_that_would_differ_tomorrow_is_refused(self, known: Find) -> None:
        family = CausalLM.load(known(LLAMA).repository)
        request = {"messages": [{"role": "user", "content": "a"}], "parameters": {"max_tokens": 1}}
        with pytest.raises(InvalidInputError, match="must name a day"):
            family.record([{"name": "g", "request": request}], lambda: None)
        request["parameters"] = {"max_tokens": 1, "date": "2024-07-26"}
        (case,) = family.record([{"name": "g", "request": request}], lambda: None).cases
        assert case.inputs["input_ids"][0].tolist() == known(LLAMA).conversation(
            Message("user", "a"), date="2024-07-26"
        )


class TestMarks:
    def test_llama_3_2_names_them_anew_in_their_places(self, known: Find) -> None:
        control = known(LLAMA).vocabulary.control
        assert len(control) == 256
        assert sorted(control.values()) == list(range(128_000, 128_256))
        assert {name: number for name, number in control.items() if "reserved" not in name} == {
            "<|begin_of_text|>": 128_000,
            "<|end_of_text|>": 128_001,
            "<|finetune_right_pad_id|>": 128_004,
            "<|start_header_id|>": 128_006,
            "<|end_header_id|>": 128_007,
            "<|eom_id|>": 128_008,
            "<|eot_id|>": 128_009,
            "<|python_tag|>": 128_010,
        }
        assert control["<|reserved_special_token_247|>"] == 128_255

    @pytest.mark.parametrize(
        ("name", "ends", "guessed"),
        [
            (LLAMA, [128_001, 128_008, 128_009], set()),
            (QWEN, [151_643, 151_645], {128_247}),  # the word </s>
            (DEEPSEEK, [32_021], {32_014}),  # the end of a document
        ],
    )
    def test_an_answer_ends_where_the_framework_s_does(
        self, known: Find, name: str, ends: list[int], guessed: set[int]
    ) -> None:
        model = known(name)
        assert [facts["ends"] for facts in model.manifest.preprocessing.values()] == [ends, ends]
        of_llama_cpp = {token for token in range(len(model.tokenizer)) if model.vocabulary.ends(token)}
        assert of_llama_cpp == {*ends, *guessed}
        for token in of_llama_cpp:
            wrote = model.text.compute(_Says([token, 1]), model.text.preprocess(ASKED), Silence())
            assert isinstance(wrote, Generated)
            assert wrote.finish_reason == ("stop" if token in ends else "length")
            assert wrote.completion_tokens == (1 if token in ends else 2)

    @pytest.mark.parametrize("name", [LLAMA, QWEN, DEEPSEEK])
    def test_conversations_are_the_framework_s(self, known: Find, name: str) -> None:
        model = known(name)
        for said in TestTheDay.SAID:
            day = {"date": "2024-07-26"} if name == LLAMA else {}
            told = {"date_string": "26 Jul 2024"} if name == LLAMA else {}
            assert model.conversation(*said, **day) == model.framework(*said, **told)


def test_tokens_for_single_bytes_keep_their_own_names(known: Find) -> None:
    """DeepSeek Coder has thirteen; decoded, each would be U+FFFD, and two alike make llama.cpp abort."""
    vocabulary = known(DEEPSEEK).vocabulary
    for letter in "õ÷ÁýÀÿøúþüùöû":
        assert (
            vocabulary.encode(letter, control=False, begin=False)
            == known(DEEPSEEK).tokenizer(letter, add_special_tokens=False)["input_ids"]
        )
