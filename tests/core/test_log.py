"""A log that nobody reads never holds up who writes it (F29), and its lines are what they say (T20)."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time

from mlos.core.log import QueuedLog, fields, line


def record(message: str, **values: object) -> logging.LogRecord:
    made = logging.LogRecord("test", logging.INFO, __file__, 1, message, None, None)
    made.__dict__.update(fields(**values))
    return made


def test_a_line_is_json_with_its_fields() -> None:
    entry = json.loads(line(record("hello", request_id="abc", n=1)))
    assert (entry["message"], entry["level"], entry["request_id"], entry["n"]) == ("hello", "info", "abc", 1)


def test_control_characters_never_reach_the_terminal() -> None:
    text = line(record("a\x1b[31m\n\x00\x7f\x9b\u2028b", field="\r\x1b"))
    assert all(32 <= ord(character) < 127 for character in text)
    assert json.loads(text)["message"] == "a\x1b[31m\n\x00\x7f\x9b\u2028b"


def test_a_traceback_is_told() -> None:
    made = record("oh")
    try:
        raise KeyError("x")
    except KeyError:
        made.exc_info = sys.exc_info()
    assert "KeyError" in json.loads(line(made))["traceback"]


def test_a_reader_that_is_stuck_costs_lines_and_not_time() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as stuck, open(writing, "w", buffering=1) as stream:  # noqa: PTH123  (descriptors)
        log = QueuedLog(stream)
        began = time.monotonic()
        for _ in range(30_000):
            log.handle(record("x" * 200))
        log.close()
        assert time.monotonic() - began < 30
        assert log.dropped > 10_000
        os.set_blocking(reading, False)
        while stuck.read(1 << 20):  # lets the writer go on, so that it ends with the test
            time.sleep(0.01)


def test_what_was_lost_is_told_and_the_rest_is_written() -> None:
    stream = io.StringIO()
    log = QueuedLog(stream)
    log.dropped = 3
    log.handle(record("after"))
    log.close()
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["message"] == "3 log lines were dropped"
    assert second["message"] == "after"


def test_a_stream_that_fails_is_survived() -> None:
    stream = io.StringIO()
    stream.close()
    log = QueuedLog(stream)
    log.handle(record("x"))
    log.close()
    assert log.dropped == 1
