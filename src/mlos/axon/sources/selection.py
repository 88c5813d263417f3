"""Which files of a repository packaging needs: an allow-list, and one of several formats.

SafeTensors are preferred (they convert, with the framework's own answers as the golden record), then ONNX,
then GGUF. Code is never taken. Pickles are taken only where a person allows it and there are no SafeTensors;
where nothing else holds the weights, the repository is refused with the reason and the way out. The rules look
at names; the content is checked by ``mlos.formats``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlos.axon.sources.gguf_choice import choose
from mlos.errors import NotFoundError, RefusedError, UsageError
from mlos.model.manifest import normal_path

_SUPPORTING = re.compile(
    r"(?:generation_|tokenizer_|preprocessor_|processor_|sentence_[a-z]+_)?config\.json"
    r"|config_sentence_transformers\.json|tokenizer\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.(?:txt|json)|merges\.txt|spiece\.model|tokenizer\.model|sentencepiece(?:\.bpe)?\.model"
    r"|modules\.json|chat_template\.jinja"
    r"|[0-9]{1,2}_[A-Za-z]{1,32}/(?:config\.json|model\.safetensors)"
)
_DOCUMENT = re.compile(
    r"(?:README(?:\.md)?|LICEN[CS]E(?:\.(?:md|txt))?|NOTICE(?:\.(?:md|txt))?)", re.IGNORECASE
)
_SHARD = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")
_ONNX_DATA = re.compile(r".*[._]data(?:[._][0-9]+)?")
_TEST_DATA = re.compile(r"(?:[^/]+/)*test_data_set_([0-9]{1,3})/(?:input|output)_[0-9]{1,3}\.pb")
MAX_TEST_SETS = 8
"""Sets of test data that are taken, by number; the ONNX Model Zoo's models have three to ten."""
_ONNX_FORM = re.compile(r"(?:onnx/)?model_([^/]+)\.onnx")
_HALVES = {
    "encoder_model": "an encoder and a decoder",
    "decoder_model": "the decoder of a model that writes text",
    "decoder_model_merged": "the decoder of a model that writes text",
    "text_model": "two encoders for zero-shot classification",
    "vision_model": "two encoders for zero-shot classification",
}
"""Graphs that are no model by themselves, as the optimum exporter calls them."""
_PICKLE = re.compile(r".*\.(?:bin|pt|pth|ckpt|pkl|pickle|joblib)")
_PICKLED = re.compile(r"pytorch_model(?:-[0-9]{5}-of-[0-9]{5})?\.bin|[^/]+\.(?:pt|pth)")
PICKLE_INDEX = "pytorch_model.bin.index.json"
"""Which shard holds which tensor, where the weights are several pickles."""
_SAFE_COPY = (
    "ask its publisher for model.safetensors, or write one: model.save_pretrained(FOLDER), in a place you trust"
)


@dataclass(frozen=True)
class Selection:
    """The paths to take, and what a person should know about what was left aside."""

    paths: tuple[str, ...]
    notes: tuple[str, ...] = ()


def select(
    paths: Iterable[str], origin: str, *, allow_pickle: bool = False, form: str | None = None
) -> Selection:
    """Choose from a repository's file names; ``origin`` names the repository in errors.

    With ``allow_pickle``, pickles come next to SafeTensors: they convert too. ``form`` asks for one of the
    precisions that a repository publishes as files of their own, ``Q8_0`` for ``X-Q8_0.gguf`` and ``fp16`` for
    ``onnx/model_fp16.onnx``.

    Raises:
        NotFoundError: if it does not publish that form.
        UsageError: if its weights are converted, so that forms are made here.
        RefusedError: if a name is no plain relative path, or no weights that may be read are among them.
    """
    names = sorted(paths)
    for name in names:
        if not normal_path(name):
            raise RefusedError(f"{origin} holds a file whose name is not a plain relative path: {name[:200]!r}")
    weights, notes = _weights(names, origin, allow_pickle, form)
    around = [name for name in names if _SUPPORTING.fullmatch(name) or _DOCUMENT.fullmatch(name)]
    return Selection(tuple(sorted({*weights, *around})), notes)


def is_document(path: str) -> bool:
    """Whether the file is for people: a README, a licence, a notice."""
    return _DOCUMENT.fullmatch(path) is not None


def is_test_data(path: str) -> bool:
    """Whether the file is called as test data beside an ONNX file: ``test_data_set_0/input_0.pb``."""
    return _TEST_DATA.fullmatch(path) is not None


def test_data(names: Iterable[str], graph: str) -> tuple[list[str], tuple[str, ...]]:
    """The test data beside the ONNX file ``graph``, and a note where there is more than is taken."""
    folder = graph.rpartition("/")[0]
    found: dict[int, list[str]] = {}
    for name in names:
        match = _TEST_DATA.fullmatch(name)
        if match and name.rpartition("/")[0].rpartition("/")[0] == folder:
            found.setdefault(int(match[1]), []).append(name)
    sets = sorted(found)
    left = sets[MAX_TEST_SETS:]
    note = (f"took {MAX_TEST_SETS} sets of test data; left aside {len(left)}",) if left else ()
    return [name for number in sets[:MAX_TEST_SETS] for name in sorted(found[number])], note


def is_pickle(path: str) -> bool:
    """Whether the file is called as pickled weights that may be converted are."""
    return _PICKLED.fullmatch(path) is not None


def _weights(
    names: Sequence[str], origin: str, allow_pickle: bool, form: str | None
) -> tuple[list[str], tuple[str, ...]]:
    graphs = [name for name in names if re.fullmatch(r"(?:onnx/)?[^/]+\.onnx", name)]
    converted, notes = _converted(names, origin, allow_pickle)
    if converted and form is not None:
        raise UsageError(
            f"{origin} is converted from its weights: its forms are made here",
            field="reference",
            expected="a reference without '+'",
            got=repr(form),
            hint=f"axon quantize or axon convert {origin}",
        )
    if converted:
        aside = f"took {converted[0]}, which is converted and proved; left aside {len(graphs)} ONNX models"
        return converted, (*notes, aside) if graphs else notes
    if graphs:
        chosen, notes = _onnx(names, graphs, origin, form)
        if any(is_pickle(name) for name in names):
            notes += ("its pickled weights would be converted and proved instead with --allow-pickle",)
        return chosen, notes
    ggufs = [name for name in names if re.fullmatch(r"(?:[^/]+/)?[^/]+\.gguf", name)]
    if ggufs:
        return choose(ggufs, origin, form)
    raise _nothing(names, origin)


def _converted(names: Sequence[str], origin: str, allow_pickle: bool) -> tuple[list[str], tuple[str, ...]]:
    """The weights that are converted, if there are any, and notes."""
    if "model.safetensors" in names:
        return ["model.safetensors"], ()
    if "model.safetensors.index.json" in names:
        return ["model.safetensors.index.json", *(name for name in names if _SHARD.fullmatch(name))], ()
    if allow_pickle and (pickles := _pickles(names, origin)):
        return pickles, ("the weights are pickles; they are read in a sandbox of their own",)
    return [], ()


def _pickles(names: Sequence[str], origin: str) -> list[str]:
    if "pytorch_model.bin" in names:
        return ["pytorch_model.bin"]
    if PICKLE_INDEX in names:
        return [PICKLE_INDEX, *(name for name in names if name.endswith(".bin") and is_pickle(name))]
    pickles = [name for name in names if name.endswith((".pt", ".pth")) and is_pickle(name)]
    if len(pickles) > 1:
        raise RefusedError(
            f"{origin} holds {len(pickles)} pickles, none called pytorch_model.bin: {', '.join(pickles[:6])}",
            hint="leave only the one you mean in the folder",
        )
    return pickles


def _onnx(
    names: Sequence[str], graphs: list[str], origin: str, form: str | None
) -> tuple[list[str], tuple[str, ...]]:
    wanted = "model.onnx" if form is None else f"model_{form}.onnx"
    preferred = [name for name in graphs if name.lower() in (f"onnx/{wanted}".lower(), wanted.lower())]
    preferred.sort(key=lambda name: "/" not in name)
    if form is not None and not preferred:
        known = ", ".join(sorted({match[1] for name in graphs if (match := _ONNX_FORM.fullmatch(name))}))
        raise NotFoundError(
            f"{origin} publishes no form {form!r}; there is {known or 'none'}",
            field="reference",
            expected=known or "a reference without '+'",
            got=repr(form),
        )
    _refuse_halves(graphs, origin)
    if not preferred and len(graphs) > 1:
        raise RefusedError(
            f"{origin} holds {len(graphs)} ONNX models and none is called model.onnx: {', '.join(graphs[:6])}",
            hint="download the one you mean and install it: axon install file:PATH/NAME.onnx",
        )
    chosen = (preferred or graphs)[0]
    folder = chosen.rpartition("/")[0]
    others = tuple(graph for graph in graphs if graph != chosen)
    data = [
        name
        for name in names
        if name.rpartition("/")[0] == folder
        and _ONNX_DATA.fullmatch(name)
        and not name.startswith(others or ("\0",))
    ]
    note = (f"took {chosen}; left aside {len(others)} other ONNX models",) if others else ()
    tests, more = test_data(names, chosen)
    return [chosen, *data, *tests], (*note, *more)


def _refuse_halves(graphs: Sequence[str], origin: str) -> None:
    """Refuse graphs that are one model together only, unless the whole model is there too."""
    stems = {name.rpartition("/")[2].removesuffix(".onnx") for name in graphs}
    if "model" in stems:
        return
    for half, kind in _HALVES.items():
        if half in stems:
            raise RefusedError(
                f"{origin} holds {kind} in ONNX, which is not served as it came: {', '.join(graphs[:6])}",
                field=half,
                expected="one graph called model.onnx, or SafeTensors, which are converted and proved",
                got=", ".join(sorted(stems)[:6]),
                hint="install the repository that publishes its SafeTensors, or a GGUF of a language model",
            )


def _nothing(names: Sequence[str], origin: str) -> RefusedError:
    pickles = [name for name in names if _PICKLE.fullmatch(name)]
    if pickles:
        return RefusedError(
            f"{origin} holds its weights only as pickles, which run code when read: {', '.join(pickles[:3])}",
            expected="model.safetensors, an .onnx or a .gguf file",
            got=pickles[0],
            hint=f"axon install --allow-pickle REFERENCE reads them in a sandbox; or {_SAFE_COPY}",
        )
    unusual = [name for name in names if name.endswith(".safetensors")]
    if unusual:
        return RefusedError(
            f"{origin} has no whole model: {unusual[0]} is not a name the framework loads a model from",
            expected="model.safetensors or model.safetensors.index.json",
            got=unusual[0],
            hint="an adapter is merged into its base model first (peft: merge_and_unload, save_pretrained)",
        )
    return RefusedError(
        f"{origin} holds no weights that MLOS can read",
        expected="model.safetensors, an .onnx or a .gguf file",
        got=f"{len(names)} files",
    )
