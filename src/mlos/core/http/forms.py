"""Bodies that are files: a form with files in it, or one file as it is. Nothing here looks into one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, get_type_hints

import msgspec
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, QueryParams, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from mlos.core.http.errors import MediaTypeError
from mlos.errors import InvalidInputError
from mlos.model import InferenceRequest

_FILES = {"image": "image", "images": "image", "file": "image", "audio": "audio", "audios": "audio"}
"""Names of form fields that hold files, and what they are; several files make a request of several."""
_WORDS = {name for name, kind in get_type_hints(InferenceRequest).items() if kind == str | None}
_FIELDS = {field.name for field in msgspec.structs.fields(InferenceRequest)} - set(_FILES)
_MOST_FILES, _MOST_FIELDS = 64, 64


class _Parser(MultiPartParser):
    """starlette's, with every file kept in memory: the body is there already, and bounded.

    A field that is not in the encoding it is said to be in is refused: starlette would read it as Latin-1, and
    the model would be asked about another text.
    """

    def __init__(self, headers: Headers, body: bytes) -> None:
        super().__init__(
            headers,
            _once(body),
            max_files=_MOST_FILES,
            max_fields=_MOST_FIELDS,
            max_part_size=max(len(body), 1),
        )
        self.spool_max_size = len(body) + 1

    def on_part_end(self) -> None:
        """Take in a part that is complete."""
        if self._current_part.file is None:
            try:
                self._current_part.data.decode(self._charset)
            except UnicodeDecodeError as error:
                name = self._current_part.field_name[:100]
                raise MultiPartException(f"the text of {name!r} is not {self._charset}: {error}") from error
        super().on_part_end()


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def of_file(body: bytes, kind: str, query: QueryParams) -> InferenceRequest:
    """The request whose body is one file, an ``image`` or ``audio``; other fields stand in the address.

    Raises:
        InvalidInputError: if one of them is unknown or no value for it.
    """
    return _request({name: query.getlist(name) for name in query}, {kind: [body]})


async def of_form(headers: Headers, body: bytes) -> InferenceRequest:
    """The request of a ``multipart/form-data`` body.

    Image files come as ``image`` (or ``images``, or ``file``), sounds as ``audio`` (or ``audios``), one or
    several. The other fields of a request come under their names: words as they are, everything else as JSON.

    Raises:
        InvalidInputError: if the body is no form, or a field is unknown or no value for it.
        MediaTypeError: if its text is said to be in another encoding than UTF-8.
    """
    _, options = parse_options_header(headers.get("content-type", ""))
    charset = options.get(b"charset", b"utf-8").decode("latin-1").lower()
    if charset not in ("utf-8", "utf8", "us-ascii"):  # the parser would decode by whatever codec is named
        raise MediaTypeError(
            "the text of a form is read as UTF-8", field="Content-Type", expected="utf-8", got=charset[:100]
        )
    try:
        form = await _Parser(headers, body).parse()
    except (MultiPartException, KeyError, UnicodeError) as error:
        reason = error.message if isinstance(error, MultiPartException) else f"{type(error).__name__}: {error}"
        raise InvalidInputError(
            f"the body is not a form: {reason}", field="body", expected="multipart/form-data", got=reason
        ) from error
    try:
        return await _of_items(form)
    finally:
        await form.close()


async def _of_items(form: FormData) -> InferenceRequest:
    fields: dict[str, list[str]] = {}
    files: dict[str, list[bytes]] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name not in _FILES:
                raise InvalidInputError(
                    f"the form holds a file under the name {name[:100]!r}",
                    field=name[:100],
                    expected=" or ".join(_FILES),
                    got=repr(name[:100]),
                )
            files.setdefault(_FILES[name], []).append(await value.read())
        else:
            fields.setdefault(name, []).append(value)
    if not fields and not files:
        raise InvalidInputError(
            "the form holds no whole field", field="body", expected="multipart/form-data", got="an empty form"
        )
    return _request(fields, files)


def _request(fields: Mapping[str, list[str]], files: Mapping[str, list[bytes]]) -> InferenceRequest:
    values: dict[str, Any] = {}
    for name, given in fields.items():
        if name not in _FIELDS:
            raise InvalidInputError(
                f"unknown field {name[:100]!r}",
                field=name[:100],
                expected=", ".join(sorted(_FIELDS | set(_FILES))),
                got=repr(name[:100]),
            )
        if name == "texts" and not given[0].startswith("["):
            values[name] = given
        elif len(given) > 1:
            raise InvalidInputError(
                f"{name} stands {len(given)} times in the form", field=name, expected="once"
            )
        else:
            values[name] = given[0] if name in _WORDS else _json(name, given[0])
    for kind, held in files.items():
        values |= {kind: held[0]} if len(held) == 1 else {f"{kind}s": held}
    try:
        return msgspec.convert(values, InferenceRequest)
    except msgspec.ValidationError as error:
        raise InvalidInputError(f"the form is not a request: {error}", field="body") from error


def _json(name: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInputError(
            f"{name} is not JSON: {error}", field=name, expected="JSON", got=f"{text[:100]!r}"
        ) from error
