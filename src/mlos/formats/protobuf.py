"""Protocol Buffers' wire format, read from a file without reading the large fields.

Encoding: https://protobuf.dev/programming-guides/encoding/. A schema says which fields of which messages are of
interest; :meth:`Wire.fold` walks a message by it, hopping over payloads, and gives each finished message to the
handler of its kind, so a graph of a million nodes never exists as objects. It is stricter than the native
parsers where they differ among themselves: a field that may stand once stands once, a field has the wire type
of its schema, and groups are refused. Unknown fields are skipped, as the format demands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeAlias

from mlos.errors import CorruptError
from mlos.formats.source import Source

MAX_DEPTH = 100
"""Messages within messages; the native parsers' own limit."""
MAX_FIELDS = 2_000_000
"""Fields looked at in one file: seconds of work, and graphs of a hundred thousand nodes."""
MAX_TEXT = 1 << 20
"""Bytes of one text."""
MAX_TEXTS = 1 << 27
"""Bytes of all texts together."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Kind(Enum):
    """How a field is read, and what is kept of it."""

    INTEGER = auto()
    """A varint, kept as a signed 64-bit integer; where repeated it may be packed."""
    TEXT = auto()
    """UTF-8 of bounded length, kept."""
    MESSAGE = auto()
    """A message, walked; what its handler makes of it is kept, unless that is none."""
    PAYLOAD = auto()
    """Bytes or texts that are not read; their :class:`Tally` is kept."""
    VARINTS = auto()
    """Varints that are not read, packed or one by one; their tally is kept."""
    FIXED32 = auto()
    """Four-byte numbers, as VARINTS."""
    FIXED64 = auto()
    """Eight-byte numbers, as VARINTS."""


_WIRES = {
    Kind.INTEGER: (_VARINT,),
    Kind.TEXT: (_BYTES,),
    Kind.MESSAGE: (_BYTES,),
    Kind.PAYLOAD: (_BYTES,),
    Kind.VARINTS: (_VARINT, _BYTES),
    Kind.FIXED32: (_FIXED32, _BYTES),
    Kind.FIXED64: (_FIXED64, _BYTES),
}
_WIDTHS = {Kind.FIXED32: 4, Kind.FIXED64: 8}


@dataclass(frozen=True)
class Field:
    """What a schema says of one field number: its name, how to read it, whether it repeats, which message."""

    name: str
    kind: Kind
    repeated: bool = False
    message: str = ""


@dataclass
class Tally:
    """What is known of values that were not read: how many stood one by one, and the bytes of packed runs.

    For payloads ``packed`` is the bytes of all of them, and ``single`` their count.
    """

    single: int = 0
    packed: int = 0


Schema: TypeAlias = Mapping[str, Mapping[int, Field]]
Message: TypeAlias = dict[str, Any]
"""Field name to what was kept; a list where the field repeats. Fields that did not stand are absent."""
Handler: TypeAlias = Callable[[Message], Any]


class Wire:
    """A walk over the messages of one file, with its limits on depth, fields and text."""

    def __init__(self, source: Source, schema: Schema, handlers: Mapping[str, Handler]) -> None:
        self.source = source
        self.schema = schema
        self.handlers = handlers
        self.fields = 0
        self.texts = 0

    def fold(self, message: str, start: int, end: int, depth: int = 0) -> Any:
        """Walk the message of kind ``message`` in bytes ``start`` to ``end``; the answer of its handler.

        Raises:
            CorruptError: if the bytes break the encoding, or the schema.
            RefusedError: if a limit is passed.
        """
        if depth > MAX_DEPTH:
            raise self.source.corrupt(
                "messages are nested too deep", f"at most {MAX_DEPTH} levels", f"more, in a {message}"
            )
        schema = self.schema[message]
        found: Message = {}
        position = start
        while position < end:
            number, wire, value, position = self.step(position, end, message)
            field = schema.get(number)
            if field is None:
                continue
            if wire not in _WIRES[field.kind] and not (
                field.kind is Kind.INTEGER and field.repeated and wire == _BYTES
            ):
                raise self._wrong(f"{message}.{field.name} has wire type {wire}", start)
            if field.name in found and not field.repeated:
                raise self._wrong(f"{message}.{field.name} stands twice", start)
            self._keep(found, field, wire, value, position, depth)
        handler = self.handlers.get(message)
        return handler(found) if handler else None

    def step(self, position: int, end: int, message: str) -> tuple[int, int, int, int]:
        """The field at ``position``: its number, wire type, value and the position after it.

        The value of a length-delimited field is where its bytes begin; that of a fixed one has no meaning.
        """
        self._count()
        begin = position
        key, position = self.varint(position, end)
        number, wire = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise self._wrong(f"a {message} has field number {number}", begin)
        if wire == _VARINT:
            value, position = self.varint(position, end)
            return number, wire, value, position
        if wire == _BYTES:
            length, value = self.varint(position, end)
            position = value + length
        elif wire == _FIXED32:
            value, position = position, position + 4
        elif wire == _FIXED64:
            value, position = position, position + 8
        else:
            raise self._wrong(f"a {message} has a field of wire type {wire}", begin)
        if position > end:
            raise self.source.corrupt(
                f"field {number} of a {message} reaches past its end", f"at most byte {end}", f"byte {position}"
            )
        return number, wire, value, position

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """The varint at ``position``, unsigned, and the position after it."""
        source = self.source
        at = position - source.start
        if position >= end:
            raise self._wrong("a number is cut off", position)
        if at < 0 or at >= len(source.window):
            source.refill(position)
            at = 0
        byte = source.window[at]
        if byte < 0x80:
            return byte, position + 1
        raw = source.read(position, min(10, end - position), "a number")
        value = shift = 0
        for count, byte in enumerate(raw, 1):
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                if value >> 64:
                    raise self._wrong("a number of more than 64 bits", position)
                return value, position + count
        raise self._wrong(
            "a number of more than 10 bytes" if len(raw) == 10 else "a number is cut off", position
        )

    def _count(self) -> None:
        self.fields += 1
        if self.fields > MAX_FIELDS:
            raise self.source.refused(
                "the graph is too large to verify",
                f"at most {MAX_FIELDS} fields",
                "more",
                "keep long tables in initializers",
            )

    def _keep(self, found: Message, field: Field, wire: int, value: int, after: int, depth: int) -> None:
        """Add one occurrence of ``field`` to ``found``. ``value`` to ``after`` are its bytes, if it has any."""
        kind = field.kind
        if kind is Kind.INTEGER:
            numbers = [value]
            if wire == _BYTES:
                numbers = []
                while value < after:
                    number, value = self.varint(value, after)
                    numbers.append(number)
                    self._count()
            signed = [number - (1 << 64) if number >> 63 else number for number in numbers]
            if field.repeated:
                found.setdefault(field.name, []).extend(signed)
            else:
                found[field.name] = signed[0]
        elif kind is Kind.TEXT:
            _put(found, field, self._text(field, value, after))
        elif kind is Kind.MESSAGE:
            made = self.fold(field.message, value, after, depth + 1)
            if made is not None or not field.repeated:
                _put(found, field, made)
        else:
            tally = found.setdefault(field.name, Tally())
            width = _WIDTHS.get(kind, 1)
            if wire != _BYTES:
                tally.single += 1
            elif (after - value) % width:
                raise self._wrong(f"{field.name} ends inside a number", value)
            else:
                tally.single += kind is Kind.PAYLOAD
                tally.packed += after - value

    def _text(self, field: Field, start: int, end: int) -> str:
        self.texts += end - start
        if end - start > MAX_TEXT or self.texts > MAX_TEXTS:
            raise self.source.refused(
                "it holds too much text",
                f"at most {MAX_TEXT} bytes in one text and {MAX_TEXTS} in all",
                f"{end - start} bytes in {field.name}",
                "shorten its names and properties",
            )
        try:
            return self.source.read(start, end - start, field.name).decode()
        except UnicodeDecodeError as error:
            raise self._wrong(f"{field.name} is not UTF-8 text", start) from error

    def _wrong(self, what: str, position: int) -> CorruptError:
        return self.source.corrupt(
            "it is not a valid protobuf file", "well-formed messages", f"{what}, near byte {position}"
        )


def _put(found: Message, field: Field, value: Any) -> None:
    if field.repeated:
        found.setdefault(field.name, []).append(value)
    else:
        found[field.name] = value
