"""What the catalogue holds of one model: a TOML file of ``models/``, read and checked.

Everything that is specific to a model stands in such a file; no code knows a model by name.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from mlos.errors import MlosError
from mlos.model import InferenceRequest, Reference, Weights

TINY = "tiny"
"""Namespace of the small variants for tests: ``seeded/tiny/NAME``."""


def _request(value: Any) -> InferenceRequest:
    try:
        return msgspec.convert(value, InferenceRequest)
    except msgspec.ValidationError as error:
        raise ValueError(f"not a V1 request: {error}") from error


def _reference(text: str) -> str:
    try:
        reference = Reference.parse(text)
    except MlosError as error:
        raise ValueError(error.message) from error
    if reference.revision is not None:
        raise ValueError(f"{text!r} must not name a revision")
    return text


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


ReferenceText = Annotated[str, Field(min_length=1), BeforeValidator(_reference)]
"""A model reference without a revision."""


class GoldenRequest(_Frozen):
    """One case of the golden record: a request as a person would send it."""

    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    request: Annotated[InferenceRequest, BeforeValidator(_request)]


class References(_Frozen):
    """Where the model can be had; at least one of the three."""

    hub: ReferenceText | None = None
    seeded: ReferenceText | None = None
    trained: ReferenceText | None = None
    """Published weights that a Python distribution carries."""
    gguf: ReferenceText | None = None
    """A repository of the same model in GGUF, served as it came; asked for by its reference alone."""

    def all(self) -> dict[Weights, str]:
        """The references that the model is validated by, by whose weights they lead to."""
        given: dict[Weights, str | None] = {"hub": self.hub, "seeded": self.seeded, "trained": self.trained}
        return {weights: reference for weights, reference in given.items() if reference is not None}

    def texts(self) -> tuple[str, ...]:
        """Every reference that is given."""
        return (*self.all().values(), *((self.gguf,) if self.gguf is not None else ()))


class CarriedTokenizer(_Frozen):
    """A real tokenizer, taken from an installed Python distribution that carries its files."""

    kind: Literal["carried"] = "carried"
    distribution: str
    files: tuple[str, ...] = Field(min_length=1)
    layout: Literal["mpnet"] | None = None
    """Whose special tokens BERT's words are given; None leaves them as they are."""
    settings: dict[str, Any] = {}
    """Keys of ``tokenizer_config.json`` that differ from the carried file's."""


class GgufTokenizer(_Frozen):
    """A real vocabulary, read from a GGUF file that an installed Python distribution carries."""

    kind: Literal["gguf"]
    distribution: str
    files: tuple[str, ...] = Field(min_length=1, max_length=1)
    layout: Literal["roberta", "deberta", "codegen", "llama-3.2"] | None = None
    """Whose numbering or special tokens the words are given; None leaves them as they are."""
    settings: dict[str, Any] = {}
    """Keys of ``tokenizer_config.json``, for example ``chat_template``."""


class SyntheticTokenizer(_Frozen):
    """A vocabulary made up here, where no real one can be had: as large, of the same kind, and labelled so."""

    kind: Literal["synthetic"]
    model: Literal["unigram", "clip-bpe"]
    size: int = Field(gt=300)
    """Tokens, added ones included."""
    layout: Literal["t5", "albert", "xlnet", "xlm-roberta", "deberta-v3"] = "t5"
    """Whose special tokens and steps it has."""
    settings: dict[str, Any] = {}
    """Keys of ``tokenizer_config.json``."""


TokenizerRecipe: TypeAlias = CarriedTokenizer | GgufTokenizer | SyntheticTokenizer


def _tokenizer_kind(value: Any) -> str:
    kind = value.get("kind", "carried") if isinstance(value, dict) else getattr(value, "kind", "carried")
    return str(kind)


class Labels(_Frozen):
    """Names of a classifier's outputs that models share: those of ``file``, after those of ``first``."""

    file: str = Field(pattern=r"^[A-Za-z0-9._-]+\.json$")
    """File in ``configs/``: a list of names."""
    first: tuple[str, ...] = ()


class TinyRecipe(_Frozen):
    """The small variant: what differs in the configuration, and how many parameters that leaves."""

    overrides: dict[str, Any] = Field(min_length=1)
    parameters: int = Field(gt=0)
    files: dict[str, str] = {}
    """Those of the repository's files that differ too, by their files in ``configs/``."""


class SeededRecipe(_Frozen):
    """How the published architecture is filled with calibrated random weights."""

    form: Literal["repository", "onnx"] = "repository"
    """What is made: the framework's own files; or an ONNX file with the framework's answers beside it."""
    seed: int = Field(ge=0)
    config: str = Field(pattern=r"^[A-Za-z0-9._-]+\.json$")
    """File in ``configs/``: the published configuration, transcribed."""
    config_source: str = Field(pattern=r"^https://")
    """Where the configuration is published."""
    tokenizer: (
        Annotated[
            Annotated[CarriedTokenizer, Tag("carried")]
            | Annotated[GgufTokenizer, Tag("gguf")]
            | Annotated[SyntheticTokenizer, Tag("synthetic")],
            Discriminator(_tokenizer_kind),
        ]
        | None
    ) = None
    labels: Labels | None = None
    """What the published configuration lists as ``id2label``, where a shared file holds it."""
    files: dict[str, str] = {}
    """Further files of the repository, such as ``preprocessor_config.json``, by their files in ``configs/``."""
    spread: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Standard deviation of a layer's output by an expression found in its name; the first counts, else 1."""
    tiny: TinyRecipe

    @field_validator("spread")
    @classmethod
    def _expressions(cls, spread: dict[str, float]) -> dict[str, float]:
        for pattern in spread:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return spread


class Entry(_Frozen):
    """One model of the catalogue."""

    name: str = Field(pattern=r"^[a-z0-9]+([.-][a-z0-9]+)*$")
    """The short name."""
    family: str
    tasks: tuple[str, ...] = Field(min_length=1)
    """What it does; where a request does not say, the first that fits."""
    sets: tuple[str, ...] = ()
    """Sets that it is validated with, beside ``all``; ``default`` is what a run without names validates."""
    licence: str
    architecture: str
    """Class of transformers that the published configuration names, or one of the room ``axon/seeding``."""
    parameters: int = Field(gt=0)
    tolerance: str
    """Row of the parity room's tolerance table."""
    references: References
    aliases: tuple[ReferenceText, ...] = ()
    """Other references that people write; each means the reference of the same source above."""
    golden: tuple[GoldenRequest, ...] = ()
    """Three at least; none of a model that comes as an ONNX file, whose publisher's test data is its record."""
    seeded: SeededRecipe | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Entry:
        given = self.references.all()
        if not given:
            raise ValueError("references: give at least one of hub, seeded and trained")
        if (self.references.seeded is None) != (self.seeded is None):
            raise ValueError("seeded: a seeded reference and a [seeded] recipe come together")
        least = 0 if self.seeded is not None and self.seeded.form == "onnx" else 3
        if len(self.golden) < least or (self.golden and not least):
            raise ValueError(
                f"golden: expected {f'at least {least} requests' if least else 'none beside an ONNX file'}, "
                f"got {len(self.golden)}"
            )
        sources = {Reference.parse(text).source for text in given.values()}
        for alias in self.aliases:
            if Reference.parse(alias).source not in sources:
                raise ValueError(f"aliases: {alias} has no reference of its own source to stand for")
        names = [case.name for case in self.golden]
        if len(set(names)) != len(names):
            raise ValueError(f"golden: names must differ, got {', '.join(names)}")
        for case in self.golden:
            if case.request.task is not None and case.request.task not in self.tasks:
                raise ValueError(
                    f"golden: {case.name} asks for {case.request.task}, not one of this model's tasks"
                )
        return self

    @property
    def tiny_reference(self) -> str | None:
        """Reference of the small seeded variant, if there is one."""
        return f"seeded/{TINY}/{self.name}" if self.seeded else None

    @property
    def preferred(self) -> Reference:
        """What the short name stands for: the hub's repository, else trained, else seeded weights."""
        references = self.references
        text = references.hub or references.trained or references.seeded
        assert text is not None  # _consistent saw to it
        return Reference.parse(text)

    def canonical(self, reference: Reference) -> Reference | None:
        """The reference of this model that ``reference`` means, at its revision; None if it means another.

        An alias gives the reference it stands for.
        """
        plain = str(reference.at(None))
        if plain in self.references.texts() or plain == self.tiny_reference:
            return reference
        if plain not in self.aliases:
            return None
        for text in self.references.all().values():
            known = Reference.parse(text)
            if known.source == reference.source:
                return known.at(reference.revision)
        return None

    def is_tiny(self, reference: Reference) -> bool:
        """Whether ``reference`` asks for the small variant."""
        return str(reference.at(None)) == self.tiny_reference
