"""Structured logs: one JSON object per line on stderr, written by a thread so that nobody waits for a disk.

A record that finds the queue full is dropped and counted; the next line written says how many. Control
characters and everything outside ASCII are escaped. No prompt, no input and no answer is ever logged.
"""

from __future__ import annotations

import json
import logging
import queue
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Any, TextIO

_QUEUE = 10_000
_LONGEST = 4096
_FLUSH_SECONDS = 1.0


def fields(**values: Any) -> dict[str, Any]:
    """The ``extra`` of a logging call: what a line says besides its message."""
    return {"fields": values}


def line(record: logging.LogRecord) -> str:
    """A record as one line of JSON."""
    moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    entry: dict[str, Any] = {
        "time": moment,
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage()[:_LONGEST],
        **getattr(record, "fields", {}),
    }
    if record.exc_info:
        entry["traceback"] = logging.Formatter().formatException(record.exc_info)
    # JSON escapes all control characters but DEL.
    return json.dumps(entry, default=str).replace("\x7f", "\\u007f")


class QueuedLog(logging.Handler):
    """Hands records to a thread that writes them; never blocks. ``dropped`` counts the lines lost."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.dropped = 0
        self._stream = stream
        self._queue: queue.Queue[logging.LogRecord | None] = queue.Queue(_QUEUE)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what is queued, for a second at most: a reader that is stuck must not hold up the exit."""
        deadline = time.monotonic() + _FLUSH_SECONDS
        try:
            self._queue.put(None, timeout=_FLUSH_SECONDS)
        except queue.Full:
            self.dropped += 1
        else:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        super().close()

    def _write(self) -> None:
        said = 0
        while (record := self._queue.get()) is not None:
            text = line(record)
            if self.dropped > said:
                said, lost = self.dropped, self.dropped - said
                text = (
                    json.dumps({"level": "warning", "message": f"{lost} log lines were dropped"}) + "\n" + text
                )
            try:
                self._stream.write(text + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # a full disk, a reader that left, a stream closed at exit
                self.dropped += 1


def start(level: str) -> QueuedLog:
    """Send all logging of this process to stderr as JSON lines, from ``level`` up."""
    handler = QueuedLog(sys.stderr)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its start and end are told by our own lines
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it quotes what strangers sent
    logging.captureWarnings(capture=True)
    return handler
