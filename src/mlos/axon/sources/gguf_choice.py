"""Which of a repository's GGUF files is meant: publishers put one model there in many precisions.

A file's name says its precision (``X-Q4_K_M.gguf``, ``X.q8_0.gguf``, ``X-fp16-00001-of-00002.gguf``), which is
what a person asks for behind a ``+``. Asked for none, it is the first of :data:`ORDER` that is there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlos.errors import NotFoundError, RefusedError
from mlos.formats.gguf_parts import parts_of

ORDER = (
    "Q4_K_M",
    *("Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0"),
    *("Q4_K_S", "Q4_K_L", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0", "Q5_1", "Q5_0"),
    *("F16", "BF16", "F32"),
    *("Q3_K_L", "Q3_K_M", "IQ3_M", "Q3_K_S", "IQ3_S", "IQ3_XS", "Q2_K"),
)
"""Q4_K_M, which a conversion here makes too; then what is nearest above it, other mixtures of four and five
bits, unquantized numbers, and only then what is coarser."""
_LABEL = re.compile(
    r"(?<![A-Za-z0-9])((?:I?Q|TQ)[0-9][A-Z0-9_]*|MXFP4(?:_MOE)?|BF16|FP?16|FP?32)(?![A-Za-z0-9_])",
    re.IGNORECASE,
)
_OWN = re.compile(r"(?:I?Q|TQ)[0-9]_[A-Z0-9_]+|MXFP4(?:_MOE)?|BF16|F16|F32")
_PROJECTOR = "mmproj"
"""How files begin that hold another model's eyes, and are no language model."""


UNSERVED_GGUF = {
    "t5": "an encoder and a decoder",
    "t5encoder": "an encoder of T5's kind",
    "clip": "an encoder of images",
    "whisper": "a recogniser of speech",
    "wavtokenizer-dec": "a writer of sounds",
}
"""Architectures in GGUF that are not served, and what they are."""


def refuse_gguf(architecture: str, kind: str) -> RefusedError:
    """The error for a GGUF model that is not served."""
    return RefusedError(
        f"a GGUF model of the architecture {architecture} is {kind}, which is not served",
        field="general.architecture",
        expected="a language model, or an encoder of texts that pools by the mean or the first token",
        got=architecture,
        hint="where its SafeTensors are published, install those: they are converted and proved",
    )


def canonical(form: str) -> str:
    """A form as it is shown and stored: a precision of GGUF in its own spelling, any other in lower case."""
    return form.upper() if _OWN.fullmatch(form.upper()) else form.lower()


def label(path: str) -> str | None:
    """The precision that a file's name says last; None if it says none."""
    found = _LABEL.findall(path.rpartition("/")[2].removesuffix(".gguf"))
    return _precision(found[-1]) if found else None


def _precision(form: str) -> str:
    return {"FP16": "F16", "FP32": "F32"}.get(form.upper(), form.upper())


def choose(names: Sequence[str], origin: str, form: str | None) -> tuple[list[str], tuple[str, ...]]:
    """All parts of one of the GGUF models ``names``, and notes; ``form`` asks for a precision.

    Of two files of one precision the one that is whole goes before one in parts.

    Raises:
        NotFoundError: if there is none of that precision.
        RefusedError: if no name says which to prefer, or a part is missing.
    """
    models = [name for name in names if not name.rpartition("/")[2].lower().startswith(_PROJECTOR)]
    firsts = [name for name in models if parts_of(name)[0] == name]
    if not firsts:
        first = (models or names)[0]
        raise _part_missing(origin, first, parts_of(first)[0])
    found: dict[str | None, str] = {}
    for name in sorted(firsts, key=lambda name: len(parts_of(name)) > 1):
        found.setdefault(label(name), name)
    known = ", ".join(sorted(each for each in found if each is not None))
    if form is not None:
        chosen = found.get(_precision(form))
        if chosen is None:
            raise NotFoundError(
                f"{origin} publishes no form {form!r}; there is {known or 'none'}",
                field="reference",
                expected=known or "a reference without '+'",
                got=repr(form),
            )
    else:
        chosen = next((found[each] for each in ORDER if each in found), None)
    if chosen is None and len(firsts) > 1:
        listed = ", ".join(firsts[:6])
        raise RefusedError(
            f"{origin} holds {len(firsts)} GGUF models and no name says which to prefer: {listed}",
            expected=f"a reference with one of them: +{known.replace(', ', ', +')}" if known else None,
            hint="download the one you mean and install it: axon install file:PATH/NAME.gguf",
        )
    chosen = chosen or firsts[0]
    for part in parts_of(chosen):
        if part not in names:
            raise _part_missing(origin, chosen, part)
    note = f"took {chosen}; left aside {len(firsts) - 1} other GGUF files"
    more = f": {known}; REFERENCE+PRECISION takes another" if known and form is None else ""
    return list(parts_of(chosen)), (note + more,) if len(firsts) > 1 else ()


def _part_missing(origin: str, part: str, missing: str) -> RefusedError:
    return RefusedError(
        f"{origin} holds {part} without {missing}",
        field=missing,
        expected="all parts of the model",
        got="not all",
    )
