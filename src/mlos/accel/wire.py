"""How one message crosses a Unix socket: a MessagePack frame, then its arrays; in a memfd when they are large.

A message is ``prefix | frame | padding | array | padding | array ...``. The prefix (``<4sIQ``) holds the
magic, the frame's length and the length of all that follows it. Up to 64 KiB a message is one packet; above,
the packet holds the prefix alone and carries one memfd with the rest, sealed against shrinking, growing and
writing. Arrays lie at offsets aligned to 64 bytes and are viewed in place by the receiver, read-only.

The receiver trusts nothing: seals and size are checked before the memfd is mapped, element types are numbers
and booleans only, and every array must lie inside its message.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import socket
import struct
from array import array as int_array
from typing import Any, Generic, TypeVar, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlos.model.tensors import DType, TensorSpec

INLINE_LIMIT = 64 << 10
MESSAGE_LIMIT = 1 << 30
ALIGNMENT = 64
PREFIX = struct.Struct("<4sIQ")
MAGIC = b"mlc1"
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
ARRAY_CODE = 1
_MOST_DIMENSIONS = 32
_DTYPES = {
    name: TensorSpec(name=name, dtype=name, shape=()).numpy_dtype.newbyteorder("<") for name in get_args(DType)
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ANCILLARY = socket.CMSG_SPACE(4 * struct.calcsize("i"))


class Submit(msgspec.Struct, tag="submit", array_like=True, frozen=True):
    """Front to worker: a request. ``sent`` is when its encoding began; after the ``last`` its claim is void."""

    id: int
    deadline: float
    sent: float
    body: Any
    last: bool


class Cancel(msgspec.Struct, tag="cancel", array_like=True, frozen=True):
    """Front to worker: nobody waits for this request any more."""

    id: int


class Given(msgspec.Struct, tag="given", array_like=True, frozen=True):
    """Front to worker: there is no more for its claim, where the last of it could not be sent."""


class Claim(msgspec.Struct, tag="claim", array_like=True, frozen=True):
    """Worker to front: credit for up to ``count`` requests, all of them at once."""

    count: int


class Emit(msgspec.Struct, tag="emit", array_like=True, frozen=True):
    """Worker to front: a partial result."""

    id: int
    body: Any


class Complete(msgspec.Struct, tag="complete", array_like=True, frozen=True):
    """Worker to front: the answer, or the error in its place, and a claim with it.

    ``finished`` is when its encoding began; a ``claim`` of 0 is none.
    """

    id: int
    finished: float
    body: Any
    error: dict[str, Any] | None
    claim: int = 0


class _ArrayHeader(msgspec.Struct, array_like=True, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    offset: int


class ProtocolError(Exception):
    """The other end broke the rules of the wire; nothing more can be believed from it."""


class Closed(Exception):  # noqa: N818  # an orderly end, not an error
    """The other end has closed the socket."""


T = TypeVar("T")


class Packet:
    """An encoded message, ready to be sent once. Sending may be tried again after ``BlockingIOError``."""

    def __init__(self, chunks: list[Any], memfd: int | None) -> None:
        self._chunks, self._memfd = chunks, memfd

    def send(self, end: socket.socket) -> None:
        """Send in one piece.

        Raises:
            BlockingIOError: if a non-blocking socket is full; nothing was sent.
        """
        if self._memfd is None:
            end.sendmsg(self._chunks)
            return
        descriptor = int_array("i", [self._memfd]).tobytes()
        end.sendmsg(self._chunks, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)])
        self.discard()

    def discard(self) -> None:
        """Release what the packet holds."""
        if self._memfd is not None:
            os.close(self._memfd)
            self._memfd = None


class Wire(Generic[T]):
    """Encodes and decodes messages at one end; ``incoming`` is the union of frames that may arrive there."""

    def __init__(self, incoming: Any) -> None:
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._put)
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(incoming, ext_hook=self._get)
        self._arrays: list[NDArray[Any]] = []
        self._size = 0
        self._data = memoryview(b"")

    def encode(self, frame: Submit | Cancel | Given | Claim | Emit | Complete) -> Packet:
        """A frame as a packet.

        Raises:
            TypeError: if a body holds what cannot cross: an object, or an array of anything but numbers.
            ValueError: if the message would be larger than the limit.
        """
        self._arrays, self._size = [], 0
        head = self._encoder.encode(frame)
        arrays, self._arrays = self._arrays, []
        chunks: list[Any] = [head]
        size = len(head)
        for item in arrays:
            padding = -size % ALIGNMENT
            chunks += [bytes(padding), item.reshape(-1).view(np.uint8).data]
            size += padding + item.nbytes
        if size > MESSAGE_LIMIT:
            raise ValueError(f"a message of {size} bytes is larger than the limit of {MESSAGE_LIMIT}")
        prefix = PREFIX.pack(MAGIC, len(head), size)
        if size <= INLINE_LIMIT:
            return Packet([prefix, *chunks], None)
        return Packet([prefix], _sealed(chunks))

    def receive(self, end: socket.socket, *, wait: bool = True) -> T:
        """The next message.

        Raises:
            BlockingIOError: if there is none and ``wait`` is false or the socket does not block.
            Closed: if the other end is gone.
            ProtocolError: if what came is not a message.
        """
        flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
        try:
            packet, ancillary, truncated, _ = end.recvmsg(PREFIX.size + INLINE_LIMIT, _ANCILLARY, flags)
        except ConnectionError as error:
            raise Closed from error
        descriptors = _descriptors(ancillary)
        try:
            if not packet and not descriptors:
                raise Closed
            if truncated & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ProtocolError("a packet was cut short")
            return self._decode(packet, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _decode(self, packet: bytes, descriptors: list[int]) -> T:
        if len(packet) < PREFIX.size:
            raise ProtocolError(f"a packet of {len(packet)} bytes has no prefix")
        magic, frame, size = PREFIX.unpack_from(packet)
        if magic != MAGIC or not 0 < frame <= size <= MESSAGE_LIMIT:
            raise ProtocolError(f"not a message: magic {magic!r}, frame {frame}, size {size}")
        inline = size <= INLINE_LIMIT
        if len(descriptors) != (0 if inline else 1) or len(packet) != PREFIX.size + (size if inline else 0):
            raise ProtocolError(f"{len(packet)} bytes, {len(descriptors)} descriptors for a size of {size}")
        self._data = memoryview(packet)[PREFIX.size :] if inline else _mapped(descriptors[0], size)
        self._size = frame
        try:
            return self._decoder.decode(self._data[:frame])
        except (ValueError, OverflowError, RecursionError) as error:  # msgspec's own are ValueErrors
            raise ProtocolError(f"not a frame: {error}") from error
        finally:
            self._data = memoryview(b"")

    def _put(self, value: Any) -> Any:
        """Stand a header in for an array whose elements follow the frame. ``offset`` counts from its end."""
        if not isinstance(value, np.ndarray):
            raise TypeError(f"a {type(value).__name__} cannot cross to another process")
        name = _NAMES.get(value.dtype)
        if name is None:
            raise TypeError(f"an array of {value.dtype} cannot cross to another process")
        # The frame's length is not known yet, so offsets count arrays only: each starts aligned after the last.
        offset = self._size + -self._size % ALIGNMENT
        self._size = offset + value.nbytes
        self._arrays.append(np.ascontiguousarray(value))
        header = msgspec.msgpack.encode(_ArrayHeader(name, value.shape, offset))
        return msgspec.msgpack.Ext(ARRAY_CODE, header)

    def _get(self, code: int, data: memoryview) -> NDArray[Any]:
        if code != ARRAY_CODE:
            raise ProtocolError(f"extension {code} is unknown")
        header = msgspec.msgpack.decode(data, type=_ArrayHeader)
        dtype = _DTYPES.get(header.dtype)
        if dtype is None or len(header.shape) > _MOST_DIMENSIONS or any(axis < 0 for axis in header.shape):
            raise ProtocolError(f"not an array: {header}")
        start = self._size + -self._size % ALIGNMENT + header.offset
        count = math.prod(header.shape)
        if header.offset < 0 or start + count * dtype.itemsize > len(self._data):
            if count:
                raise ProtocolError(f"an array lies outside its message: {header}")
            start = 0
        if header.offset % ALIGNMENT:
            raise ProtocolError(f"an array is not aligned: {header}")
        view: NDArray[Any] = np.frombuffer(self._data, dtype, count, start) if count else np.empty(0, dtype)
        return view.reshape(header.shape)


def _sealed(chunks: list[Any]) -> int:
    descriptor = os.memfd_create("mlos", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(os.dup(descriptor), "wb", buffering=0) as file:
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:
                    rest = rest[file.write(rest) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _mapped(descriptor: int, size: int) -> memoryview:
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError as error:
        raise ProtocolError("the descriptor is not a memfd") from error
    if seals & SEALS != SEALS:
        raise ProtocolError(f"the memfd is not sealed: {seals:#x}")
    if os.fstat(descriptor).st_size != size:
        raise ProtocolError(f"the memfd has {os.fstat(descriptor).st_size} bytes, not {size}")
    # Private: before Linux 6.7 a file sealed against writing could not be mapped shared, not even to read.
    return memoryview(mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ))


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = int_array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)
