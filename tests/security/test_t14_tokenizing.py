"""T14: a text that a model's tokenizer takes for ever to read costs its own request alone.

Real tokenizers with regular expressions that go through a text in very many ways, as a package may bring.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tests.core import packages
from tests.core.conftest import Server, Start

from mlos.errors import InvalidInputError
from mlos.store import Store
from mlos.tasks.text import TextEncoder

SLOW = r"\w*\w*\w*[^\w\s]"
"""Takes time with the fourth power of a word's length: seconds for a few hundred letters."""
HOPELESS = r"(x+x+)+$"
"""Takes time with a power of two: the library's limit on tries is met, and it panics."""
LONG = ("x" * 220 + " ") * 40
PLAIN = {"text": "mlos makes ml"}


def loaded(server: Server, *names: str) -> None:
    for name in names:
        assert server.infer(name, PLAIN).status == 200


@pytest.mark.parametrize("rows", [1, 3])
def test_a_panic_of_the_tokenizer_is_an_error_of_the_request(tmp_path: Path, rows: int) -> None:
    package = packages.embedder(Store(tmp_path / "store"), split=HOPELESS)
    encoder = TextEncoder(package.folder, package.manifest, "embeddings")
    hopeless = "x" * 60 + "z"
    for encode in (encoder.encode, encoder.encodings):
        with pytest.raises(InvalidInputError, match="retry-limit"):
            encode([hopeless] * rows)
    assert encoder.encode(["mlos makes"])["input_ids"].shape == (1, 2)


def test_a_text_that_is_too_long_is_not_tokenized_at_all(shared: Server) -> None:
    answer = shared.infer("embedder", {"text": "mlos " * 2000})
    assert (answer.status, answer.error["field"]) == (413, "text")


def test_a_text_that_the_tokenizer_gives_up_leaves_the_worker_as_it_was(start: Start, store: Store) -> None:
    packages.embedder(store, split=HOPELESS)
    server = start()
    loaded(server, "embedder")
    worker = server.worker("embedder")
    answer = server.infer("embedder", {"text": "x" * 60 + "z"})
    assert (answer.status, answer.error["field"]) == (400, "text")
    assert "tokenizer" in answer.error["message"]
    loaded(server, "embedder")
    assert server.worker("embedder") == worker
    assert server.metric("mlos_restarts_total", model="embedder") == 0


def test_tokenizing_has_the_requests_deadline_and_others_do_not_wait_for_it(start: Start, store: Store) -> None:
    packages.embedder(store, "stuck", split=SLOW)
    packages.embedder(store, "other")
    server = start("--request-timeout", "6")
    loaded(server, "stuck", "other")
    stuck = server.worker("stuck")
    answers = []
    asking = threading.Thread(target=lambda: answers.append(server.infer("stuck", {"text": LONG})))
    asking.start()
    server.wait_for(lambda: server.metric("mlos_claimed", model="stuck") == 1)
    loaded(server, "other")
    assert asking.is_alive(), "the text was tokenized in no time"
    asking.join()
    assert (answers[0].status, answers[0].error["code"]) == (504, "deadline")
    # What cannot be interrupted is ended a little later, and another worker takes its place.
    server.wait_for(lambda: server.infer("stuck", PLAIN).status == 200)
    assert server.worker("stuck") != stuck
    assert any("overran" in str(line.get("reason")) for line in server.lines())
    assert server.metric("mlos_restarts_total", model="other") == 0
