"""T18: what one client sent is nowhere in what another gets, in no buffer that is used for both."""

from __future__ import annotations

import json
import os
import socket

import numpy as np
from tests.core.conftest import Server

from mlos.accel.wire import INLINE_LIMIT, PREFIX, Emit, Wire

CANARY = 12345.678
SECRET = np.float32(CANARY).tobytes()


def message(body: object) -> bytes:
    """All that crosses to another process for a message, its memory file included."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        wire: Wire[Emit] = Wire(Emit)
        wire.encode(Emit(1, body)).send(ours)
        packet, descriptors, *_ = socket.recv_fds(theirs, PREFIX.size + INLINE_LIMIT, 1)
        for descriptor in descriptors:
            packet += os.pread(descriptor, 1 << 24, 0)
            os.close(descriptor)
        return packet


def test_no_message_carries_bytes_of_the_one_before() -> None:
    secret = np.frombuffer(SECRET * 50_000, np.uint8)
    assert message({"a": secret, "b": secret[:5]}).count(SECRET) > 50_000
    for size in (0, 1, 63, 65, 1000, INLINE_LIMIT + 1, 100_001):
        # Odd sizes: between the arrays is padding, which nobody fills with what he was asked to send.
        rows = np.full(size, 7, np.uint8)
        crossed = message([rows, rows, rows[: size // 2]])
        assert SECRET not in crossed
        head, length = PREFIX.unpack_from(crossed)[1:]
        assert len(crossed) == PREFIX.size + length
        rest = crossed[PREFIX.size + head :]
        assert set(rest) <= {0, 7}
        assert rest.count(7) == 2 * size + size // 2


def raw(server: Server, rows: np.ndarray, **changed: object) -> bytes:
    """The whole answer of V2 to raw rows, error or not."""
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": list(rows.shape),
        "parameters": {"binary_data_size": rows.nbytes},
        **changed,
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    return server.request("POST", "/v2/models/double/infer", head + rows.tobytes(), length).body


def test_no_answer_holds_a_canary_of_another_client(shared: Server) -> None:
    doubled = np.float32(2 * CANARY).tobytes()
    for rows in (20_000, 3, 1):  # by memory file and by packet
        secret = np.full((rows, 3), CANARY, np.float32)
        assert raw(shared, secret).count(doubled) == 3 * rows
        for other in (20_000, 700, 1, 0):
            ones = np.ones((other, 3), np.float32)
            answers = [
                raw(shared, ones),
                raw(shared, ones, shape=[other + 1, 3]),
                raw(shared, ones, datatype="INT64"),
                raw(shared, ones, name="z"),
            ]
            assert answers[0].endswith((2 * ones).tobytes())
            for answer in answers:
                assert SECRET not in answer
                assert doubled not in answer
                assert b"12345" not in answer
                assert b"24691" not in answer
    told = shared.get("/metrics").body + shared.get("/v1/models").body + shared.log.read_bytes()
    assert b"12345.67" not in told
    assert b"24691.35" not in told
