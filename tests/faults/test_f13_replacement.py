"""F13: a version takes another's place, and a worker another's, without a failed request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.core import packages
from tests.core.conftest import Answer, Server, Start
from tests.core.handling import administer, alive

from mlos.store import Store

CLIENTS = 8
X = {"inputs": {"x": [1.0]}}


@contextmanager
def asked_by_many(server: Server, names: tuple[str, ...]) -> Iterator[list[Answer]]:
    """Clients that ask without a pause, each by one of the names, as long as this lasts."""
    over, answers = threading.Event(), list[Answer]()

    def ask(name: str) -> None:
        while not over.is_set():
            answers.append(server.infer(name, X))

    clients = [threading.Thread(target=ask, args=(names[each % len(names)],)) for each in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        server.wait_for(lambda: len(answers) > CLIENTS)
        yield answers
    finally:
        over.set()
        for client in clients:
            client.join()


def value(answer: Answer) -> float:
    return float(answer.json["result"]["y"][0])


def test_a_new_version_takes_the_place_of_the_one_before_it(start: Start, store: Store) -> None:
    packages.plus(store, 1, "c1")
    server = start()
    assert value(server.infer("plus", X)) == 2
    before = server.worker("plus")
    with asked_by_many(server, ("plus", "tests/plus")) as answers:
        packages.plus(store, 10, "c2")
        server.wait_for(lambda: answers[-1].status == 200 and value(answers[-1]) == 11)
        server.wait_for(lambda: not alive(before))
    assert {answer.status for answer in answers} == {200}
    assert {value(answer) for answer in answers} == {2, 11}
    assert server.metric("mlos_loads_total", reason="update") == 1
    # The one before it is still installed: by its own reference it is found, and loaded again.
    assert value(server.infer("hf/tests/plus@c1", X)) == 2
    assert value(server.infer("plus", X)) == 11


def test_a_version_that_is_overwritten_serves_until_the_new_one_is_ready(start: Start, store: Store) -> None:
    packages.plus(store, 1, "c1")
    server = start("--model", "plus")
    server.wait_for(lambda: server.get("/v2/health/ready").status == 200)
    before = server.worker("plus")
    with asked_by_many(server, ("plus", "hf/tests/plus@c1")) as answers:
        packages.plus(store, 10, "c1")
        server.wait_for(lambda: not alive(before))
        assert server.get("/v2/health/ready").status == 200
    assert {answer.status for answer in answers} == {200}
    assert value(answers[-1]) == 11


def test_a_version_that_cannot_be_loaded_leaves_the_one_before_it_serving(start: Start, store: Store) -> None:
    packages.plus(store, 1, "c1")
    server = start()
    assert value(server.infer("plus", X)) == 2
    before = server.worker("plus")
    with asked_by_many(server, ("plus",)) as answers:
        packages.flip_byte(packages.plus(store, 10, "c2"))
        server.wait_for(lambda: "a new version cannot be loaded" in server.log.read_text())
        known = len(answers)
        server.wait_for(lambda: len(answers) > known + CLIENTS)
    assert {answer.status for answer in answers} == {200}
    assert {value(answer) for answer in answers} == {2}
    assert alive(before)
    states = {row["reference"]: row["state"] for row in server.get("/v1/models").json["data"]}
    assert states == {"hf/tests/plus@c1": "READY", "hf/tests/plus@c2": "FAILED"}
    # Asked for by its own reference it says why, and installed whole it takes its place.
    assert server.infer("hf/tests/plus@c2", X).status == 422
    packages.plus(store, 100, "c3")
    server.wait_for(lambda: value(server.infer("plus", X)) == 101)


def test_a_reload_replaces_the_worker_without_a_failed_request(start: Start, store: Store) -> None:
    packages.plus(store, 1, "c1")
    server = start()
    assert administer(server, "reload", "plus").json["state"] == "READY"  # nothing to replace: it is loaded
    before = server.worker("plus")
    with asked_by_many(server, ("plus",)) as answers:
        assert administer(server, "reload", "plus").status == 200
        server.wait_for(lambda: not alive(before))
        answered = server.metric("mlos_requests_total", model="plus", code="200")
        server.wait_for(lambda: server.metric("mlos_requests_total", model="plus", code="200") > answered)
    assert {answer.status for answer in answers} == {200}
    assert server.metric("mlos_loads_total", reason="reload") == 1


def test_a_reload_that_fails_changes_nothing(start: Start, store: Store) -> None:
    package = packages.plus(store, 1, "c1")
    server = start()
    assert value(server.infer("plus", X)) == 2
    before = server.worker("plus")
    packages.flip_byte(package)
    answer = administer(server, "reload", "plus")
    assert (answer.status, answer.error["code"]) == (422, "corrupt")
    assert value(server.infer("plus", X)) == 2
    assert alive(before)
