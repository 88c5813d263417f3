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

from mlos.errors import RefusedError
from mlos.formats.gguf_parts import parts_of
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
_PICKLE = re.compile(r".*\.(?:bin|pt|pth|ckpt|pkl|pickle|joblib)")
_PICKLED = re.compile(r"pytorch_model(?:-[0-9]{5}-of-[0-9]{5})?\.bin|[^/]+\.(?:pt|pth)")
PICKLE_INDEX = "pytorch_model.bin.index.json"
"""Which shard holds which tensor, where the weights are several pickles."""
_GGUF_PREFERENCE = ("Q4_K_M", "Q8_0", "F16", "BF16", "F32")
_SAFE_COPY = (
    "ask its publisher for model.safetensors, or write one: model.save_pretrained(FOLDER), in a place you trust"
)


@dataclass(frozen=True)
class Selection:
    """The paths to take, and what a person should know about what was left aside."""

    paths: tuple[str, ...]
    notes: tuple[str, ...] = ()


def select(paths: Iterable[str], origin: str, *, allow_pickle: bool = False) -> Selection:
    """Choose from a repository's file names; ``origin`` names the repository in errors.

    With ``allow_pickle``, pickles come next to SafeTensors: they convert too.

    Raises:
        RefusedError: if a name is no plain relative path, or no weights that may be read are among them.
    """
    names = sorted(paths)
    for name in names:
        if not normal_path(name):
            raise RefusedError(f"{origin} holds a file whose name is not a plain relative path: {name[:200]!r}")
    weights, notes = _weights(names, origin, allow_pickle)
    around = [name for name in names if _SUPPORTING.fullmatch(name) or _DOCUMENT.fullmatch(name)]
    return Selection(tuple(sorted({*weights, *around})), notes)


def is_document(path: str) -> bool:
    """Whether the file is for people: a README, a licence, a notice."""
    return _DOCUMENT.fullmatch(path) is not None


def is_pickle(path: str) -> bool:
    """Whether the file is called as pickled weights that may be converted are."""
    return _PICKLED.fullmatch(path) is not None


def _weights(names: Sequence[str], origin: str, allow_pickle: bool) -> tuple[list[str], tuple[str, ...]]:
    if "model.safetensors" in names:
        return ["model.safetensors"], ()
    if "model.safetensors.index.json" in names:
        return ["model.safetensors.index.json", *(name for name in names if _SHARD.fullmatch(name))], ()
    if allow_pickle and (pickles := _pickles(names, origin)):
        return pickles, ("the weights are pickles; they are read in a sandbox of their own",)
    graphs = [name for name in names if re.fullmatch(r"(?:onnx/)?[^/]+\.onnx", name)]
    if graphs:
        return _onnx(names, graphs, origin)
    ggufs = [name for name in names if re.fullmatch(r"[^/]+\.gguf", name)]
    if ggufs:
        return _gguf(ggufs, origin)
    raise _nothing(names, origin)


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


def _onnx(names: Sequence[str], graphs: list[str], origin: str) -> tuple[list[str], tuple[str, ...]]:
    preferred = [name for name in ("model.onnx", "onnx/model.onnx") if name in graphs]
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
    return [chosen, *data], note


def _gguf(names: list[str], origin: str) -> tuple[list[str], tuple[str, ...]]:
    firsts = [name for name in names if parts_of(name)[0] == name]
    whole = sorted(firsts, key=lambda name: len(parts_of(name)) > 1)
    if not whole:
        raise _part_missing(origin, names[0], parts_of(names[0])[0])
    for precision in _GGUF_PREFERENCE:
        for name in whole:
            if re.search(rf"(?:^|[._-]){precision}(?:[._-]|$)", name, re.IGNORECASE):
                return _all_parts(name, names, origin), _left_aside(name, whole)
    if len(whole) > 1:
        raise RefusedError(
            f"{origin} holds {len(whole)} GGUF models and no name says which to prefer: {', '.join(whole[:6])}",
            hint="download the one you mean and install it: axon install file:PATH/NAME.gguf",
        )
    return _all_parts(whole[0], names, origin), ()


def _all_parts(first: str, names: Sequence[str], origin: str) -> list[str]:
    for part in parts_of(first):
        if part not in names:
            raise _part_missing(origin, first, part)
    return list(parts_of(first))


def _part_missing(origin: str, part: str, missing: str) -> RefusedError:
    return RefusedError(
        f"{origin} holds {part} without {missing}",
        field=missing,
        expected="all parts of the model",
        got="not all",
    )


def _left_aside(chosen: str, among: list[str]) -> tuple[str, ...]:
    return (f"took {chosen}; left aside {len(among) - 1} other GGUF files",) if len(among) > 1 else ()


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
