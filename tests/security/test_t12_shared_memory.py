"""What a hostile end can send (T12, T15), and what the other end makes of it: a ProtocolError, nothing else."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlos.accel.userspace import UserspaceFront
from mlos.accel.wire import (
    ARRAY_CODE,
    INLINE_LIMIT,
    MAGIC,
    MESSAGE_LIMIT,
    PREFIX,
    SEALS,
    Claim,
    Closed,
    Complete,
    Emit,
    ProtocolError,
    Wire,
)
from mlos.errors import UnavailableError

LARGE = INLINE_LIMIT + 1


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def wire() -> Wire[Emit]:
    return Wire(Emit)


def send(end: socket.socket, packet: bytes, *descriptors: int) -> None:
    rights = array.array("i", descriptors).tobytes()
    end.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else [])


def memfd(size: int, seals: int) -> int:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.truncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    "packet",
    [
        b"x",
        b"x" * PREFIX.size,
        PREFIX.pack(MAGIC, 0, 0),
        PREFIX.pack(MAGIC, 9, 8) + b"x" * 8,
        PREFIX.pack(MAGIC, 1, 2) + b"x",
        PREFIX.pack(MAGIC, 1, 1) + b"\xc1",
        PREFIX.pack(MAGIC, 1, MESSAGE_LIMIT + 1),
        PREFIX.pack(MAGIC, 1, LARGE),
        PREFIX.pack(MAGIC, 2**32 - 1, 2**64 - 1),
        PREFIX.pack(MAGIC, 50_000, 50_000) + b"\x91" * 50_000,
        b"x" * (PREFIX.size + INLINE_LIMIT + 1),
    ],
)
def test_malformed_packets_are_refused(ends: tuple[socket.socket, socket.socket], packet: bytes) -> None:
    send(ends[0], packet)
    with pytest.raises(ProtocolError):
        wire().receive(ends[1])


@given(st.binary(min_size=1, max_size=400))
def test_random_frames_are_refused_or_understood(frame: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        send(ours, PREFIX.pack(MAGIC, len(frame), len(frame)) + frame)
        with contextlib.suppress(ProtocolError):
            wire().receive(theirs)


@pytest.mark.parametrize(
    "seals", [0, fcntl.F_SEAL_SHRINK, SEALS & ~fcntl.F_SEAL_WRITE, SEALS & ~fcntl.F_SEAL_SHRINK]
)
def test_a_memfd_that_is_not_wholly_sealed_is_refused(
    ends: tuple[socket.socket, socket.socket], seals: int
) -> None:
    before = open_descriptors()
    descriptor = memfd(LARGE, seals)
    send(ends[0], PREFIX.pack(MAGIC, 1, LARGE), descriptor)
    os.close(descriptor)
    with pytest.raises(ProtocolError, match="sealed"):
        wire().receive(ends[1])
    assert open_descriptors() == before


@pytest.mark.parametrize("size", [0, LARGE - 1, LARGE + 4096])
def test_a_memfd_of_another_size_is_refused(ends: tuple[socket.socket, socket.socket], size: int) -> None:
    descriptor = memfd(size, SEALS)
    send(ends[0], PREFIX.pack(MAGIC, 1, LARGE), descriptor)
    os.close(descriptor)
    with pytest.raises(ProtocolError, match="bytes"):
        wire().receive(ends[1])


def test_a_file_is_not_a_memfd(ends: tuple[socket.socket, socket.socket]) -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(LARGE)
        send(ends[0], PREFIX.pack(MAGIC, 1, LARGE), file.fileno())
        with pytest.raises(ProtocolError, match=r"memfd|sealed"):
            wire().receive(ends[1])


@pytest.mark.parametrize("count", [2, 4, 40])
def test_too_many_descriptors_are_closed(ends: tuple[socket.socket, socket.socket], count: int) -> None:
    before = open_descriptors()
    descriptor = memfd(LARGE, SEALS)
    send(ends[0], PREFIX.pack(MAGIC, 1, LARGE), *[descriptor] * count)
    os.close(descriptor)
    with pytest.raises(ProtocolError):
        wire().receive(ends[1])
    assert open_descriptors() == before


@pytest.mark.parametrize(
    "header",
    [
        ["FP32", [2], 64],
        ["FP32", [2], -64],
        ["FP32", [2], 1],
        ["FP32", [3], 0],
        ["FP32", [-1], 0],
        ["FP32", [2**62, 2**62], 0],
        ["FP32", [0, 2**62, 2**62], 0],
        ["FP32", [1] * 33, 0],
        ["object", [1], 0],
        ["FP32", 7, 0],
    ],
)
def test_arrays_outside_their_message_are_refused(
    ends: tuple[socket.socket, socket.socket], header: list[Any]
) -> None:
    extension = msgspec.msgpack.Ext(ARRAY_CODE, msgspec.msgpack.encode(header))
    frame = msgspec.msgpack.encode(["emit", 1, extension])
    padding = bytes(-len(frame) % 64)
    send(ends[0], PREFIX.pack(MAGIC, len(frame), len(frame) + len(padding) + 8) + frame + padding + bytes(8))
    with pytest.raises(ProtocolError):
        wire().receive(ends[1])


def test_an_end_that_hangs_up_is_no_protocol_error(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].close()
    with pytest.raises(Closed):
        wire().receive(ends[1])


def test_no_descriptor_stays_open_once_the_arrays_are_gone(ends: tuple[socket.socket, socket.socket]) -> None:
    before = open_descriptors()
    for _ in range(20):
        packet = wire().encode(Emit(1, np.zeros(LARGE)))
        packet.send(ends[0])
        assert wire().receive(ends[1]).body.nbytes == 8 * LARGE
    assert open_descriptors() == before


@pytest.mark.parametrize(
    "frame",
    [Emit(7, "x"), Complete(7, 0.0, None, None), Complete(7, 0.0, None, None, claim=1), Claim(0), Claim(5000)],
)
def test_a_worker_that_breaks_the_rules_is_reported(frame: Emit | Complete | Claim) -> None:
    async def main() -> None:
        reasons: list[str] = []
        front = UserspaceFront(lambda place, reason: reasons.append(reason))
        with socket.socket(fileno=front.connect()) as worker:
            wire().encode(frame).send(worker)
            while not reasons:
                await asyncio.sleep(0.005)
            assert worker.recv(1) == b""

    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize("claim", [-1, 5000])
def test_a_worker_that_claims_nonsense_with_an_answer_is_reported(claim: int) -> None:
    async def main() -> None:
        reasons: list[str] = []
        front = UserspaceFront(lambda place, reason: reasons.append(reason))
        ticket = front.submit("x", deadline=time.monotonic() + 30)
        with socket.socket(fileno=front.connect()) as worker:
            wire().encode(Claim(1)).send(worker)
            while not front.claimed:
                await asyncio.sleep(0.005)
            wire().encode(Complete(0, 0.0, "y", None, claim)).send(worker)
            while not reasons:
                await asyncio.sleep(0.005)
        assert (await ticket.outcome).body == "y"
        front.close(UnavailableError("the end"))

    asyncio.run(asyncio.wait_for(main(), 30))
