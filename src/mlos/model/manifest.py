"""The manifest: everything a package declares about itself, as immutable as its digest.

What differs between two installs of the same model (times, dates) is not in it; it stands in the install
record. So the same model, converted by the same tools on the same kind of processor, has the same digest: the
golden record and the parity it led to hold the last bits of floating-point sums, which instruction sets decide.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mlos.errors import RefusedError
from mlos.model.tensors import TensorSpec

SCHEMA_VERSION: Literal[4] = 4
"""Version 2 added models of several graphs and divergences, version 3 variants and their quality, version 4 how
a variant was calibrated, and programs of torch; what earlier versions wrote is read as it is."""

ModelFormat: TypeAlias = Literal["onnx", "gguf", "safetensors", "pytorch", "pt2"]
Weights: TypeAlias = Literal["hub", "trained", "seeded", "local"]
"""Whose weights: published on a hub, carried by a Python package, random from a seed, or a user's own file."""
FileRole: TypeAlias = Literal["graph", "weights", "config", "tokenizer", "golden", "document"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Frozen):
    """One file of the package. ``path`` is relative to the package folder, ``size`` is in bytes."""

    path: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    role: FileRole

    @field_validator("path")
    @classmethod
    def _relative(cls, path: str) -> str:
        if path != normal_path(path):
            raise ValueError(f"not a plain relative path: {path!r}")
        return path


class Artifact(_Frozen):
    """The servable form: which file an engine opens, and the tensors it takes and gives.

    A model of several graphs has no file of its own but ``parts``, each with its own tensors, for example
    ``encoder`` and ``decoder``; ``inputs`` and ``outputs`` are then those of the whole.
    """

    format: ModelFormat
    precision: str
    path: str | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parts: dict[str, Artifact] = {}

    @property
    def runs_code(self) -> bool:
        """Whether its files can run code as they are opened, so that they have to be verified before."""
        return self.format == "pt2"

    @model_validator(mode="after")
    def _file_or_parts(self) -> Artifact:
        if (self.path is None) != bool(self.parts):
            raise ValueError("an artifact has either a path or parts")
        return self


class ParityMeasure(_Frozen):
    """How far one output stood from the framework's, over all cases of the golden record.

    ``max_abs_error`` is in the output's own unit; ``tolerance`` names the row of the tolerance table that was
    applied; ``worst_ratio`` is the largest of |error| / (atol + rtol * |reference|), so at most 1 passes (all
    three absent where the row bounds no single element); ``cosine`` is that of the worst sample;
    ``argmax_agreement`` is a share from 0 to 1, absent where an argmax means nothing; ``kl_divergence`` is the
    mean over all decided positions of the Kullback-Leibler divergence from the framework's distribution, in
    nats, absent where the row bounds none; ``case`` names the golden case with the largest error.
    """

    output: str
    case: str | None = None
    max_abs_error: float
    atol: float | None = None
    rtol: float | None = None
    worst_ratio: float | None = None
    cosine: float
    argmax_agreement: float | None = None
    kl_divergence: float | None = None
    tolerance: str
    passed: bool


class QualityMeasure(_Frozen):
    """What a variant does at a task, beside what the original does: of trained weights only.

    ``task`` is what was done with which data, for example ``retrieval: 60 passages, 20 queries``;
    ``original`` and ``variant`` are the same ``metric`` of both, from 0 to 1 and the better the larger;
    ``agreement`` says from -1 to 1 how alike both order the answers (Kendall's tau-b, the mean of the queries).
    """

    task: str
    metric: str
    original: float
    variant: float
    agreement: float


class Calibration(_Frozen):
    """How the scales of a variant in static int8 were fixed, and which of its operators stay in fp32.

    ``examples`` fixed the ranges, by ``method``; on others, ``held_back``, it was measured which operators are
    ``left_out``, named as the graph names them, those first that move the answers most; ``operators`` take
    eight bits. ``cosine`` is that of the worst answer to the examples held back against the original's,
    ``argmax_agreement`` the share of their decisions, absent where an argmax means nothing.
    """

    method: str
    examples: int = Field(ge=1)
    held_back: int = Field(ge=1)
    operators: int = Field(ge=1)
    left_out: tuple[str, ...]
    cosine: float
    argmax_agreement: float | None = None


class Manifest(_Frozen):
    """A package. Its digest is the SHA-256 of :meth:`canonical`."""

    schema_version: Literal[1, 2, 3, 4] = SCHEMA_VERSION
    name: str
    reference: str
    commit: str
    weights: Weights
    licence: str | None = None
    architecture: str | None = None
    parameters: int | None = Field(default=None, ge=0)
    source_format: ModelFormat
    tasks: tuple[str, ...] = Field(min_length=1)
    artifact: Artifact
    preprocessing: dict[str, Any] = {}
    """Per task, what its tokenizing, pooling and normalising need, for example ``{"embeddings": {...}}``."""
    golden: str | None = None
    """Folder of the golden record inside the package; absent where no framework answers for the file."""
    parity: tuple[ParityMeasure, ...] = ()
    variant_of: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Digest of the package that this one is another form of; absent for an original."""
    quality: tuple[QualityMeasure, ...] = ()
    calibration: Calibration | None = None
    """Of a variant in static int8."""
    files: tuple[FileEntry, ...]
    tools: dict[str, str] = {}
    """Version of each program that made the package."""

    def canonical(self) -> bytes:
        """The manifest as JSON with sorted keys and no spaces: the bytes that are stored and hashed."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical form, in hexadecimal."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    @classmethod
    def parse(cls, data: bytes, origin: str) -> Manifest:
        """Read a stored manifest; ``origin`` names it in errors.

        Raises:
            RefusedError: if it is of a newer schema, or not a manifest.
        """
        try:
            version = json.loads(data).get("schema_version")
        except (ValueError, AttributeError) as error:
            raise RefusedError(f"{origin} is not a manifest: {error}") from error
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise RefusedError(
                f"{origin} has manifest schema {version}; this MLOS reads up to {SCHEMA_VERSION}",
                field="schema_version",
                expected=f"<= {SCHEMA_VERSION}",
                got=str(version),
                hint="upgrade MLOS: pip install --upgrade mlos",
            )
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RefusedError(
                f"{origin} is not a valid manifest: {where}: {first['msg']}", field=where
            ) from error


def normal_path(path: str) -> str | None:
    """``path`` if it is a plain relative POSIX path, else None.

    Plain: no leading slash, no empty, ``.`` or ``..`` segment, no backslash, no control character.
    """
    segments = path.split("/")
    bad = any(segment in ("", ".", "..") for segment in segments) or "\\" in path
    return None if bad or any(ord(character) < 32 or ord(character) == 127 for character in path) else path
