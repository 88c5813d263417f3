from __future__ import annotations

import httpx2
import pytest
from tests.validation.v1_server import answer, events, generated, serving

from mlos.errors import MlosError, UnavailableError, WorkerError
from mlos.validation.asking import ask, ask_streamed


def test_an_answer_carries_every_stage_that_the_server_reported() -> None:
    with serving(lambda body: (200, answer())) as (url, asked), httpx2.Client() as client:
        got = ask(client, url, {"text": "hello"})
    assert asked == [{"text": "hello"}]
    assert got.answer.result == {"embedding": [0.5], "dimensions": 1}
    assert got.stages_ms == {"read": 0.25, "queue": 0.5, "compute": 2.0}
    assert got.taken_ms > 0


@pytest.mark.parametrize(
    ("status", "content", "said"),
    [
        (500, b'{"message": "out of order"}', "500.*out of order"),
        (302, b"", "302"),
        (200, b"<html>", "not a V1 response"),
        (200, b"\xff\xfe", "not a V1 response"),
        (200, b"[]", "not a V1 response"),
        (200, answer(timings_ms=None), "timings_ms"),
        (200, answer(timings_ms={"queue": "long"}), "timings_ms"),
        (200, answer(digest=7), "digest"),
    ],
)
def test_an_answer_that_is_none_says_what_is_wrong(status: int, content: bytes, said: str) -> None:
    with (
        serving(lambda body: (status, content)) as (url, _),
        httpx2.Client() as client,
        pytest.raises(WorkerError, match=said),
    ):
        ask(client, url, {"text": "hello"})


def test_nobody_there_is_an_error_like_any_other() -> None:
    with serving(lambda body: (200, answer())) as (url, _):
        pass
    with httpx2.Client() as client, pytest.raises(WorkerError, match="ConnectError"):
        ask(client, url, {"text": "hello"})


def test_a_streamed_answer_is_its_parts_and_the_whole() -> None:
    chunks = events(
        ("part", b'{"text": "The "}'), ("part", b'{"text": "end"}'), ("answer", generated("The end"))
    )
    with serving(lambda body: (200, chunks)) as (url, asked), httpx2.Client() as client:
        got = ask_streamed(client, url, {"prompt": "x"})
    assert asked == [{"prompt": "x", "stream": True}]
    assert got.streamed == got.answer.result["text"] == "The end"
    assert got.first_ms is not None
    assert 0 < got.first_ms <= got.taken_ms
    assert got.stages_ms == {"queue": 0.5, "compute": 2.0}


def test_events_may_be_cut_anywhere_and_carry_what_nobody_asked_for() -> None:
    whole = b": comment\nid: 7\nretry: 10\n\n" + b"".join(
        events(("part", b'{"text": "a"}'), ("ping", b"{}"), ("answer", generated("a")))
    )
    with (
        serving(lambda body: (200, [whole[at : at + 7] for at in range(0, len(whole), 7)])) as (url, _),
        httpx2.Client() as client,
    ):
        assert ask_streamed(client, url, {}).streamed == "a"


def test_a_failure_in_a_stream_is_the_error_it_says() -> None:
    failure = b'{"error": {"code": "unavailable", "message": "the worker died"}}'
    with (
        serving(lambda body: (200, events(("part", b'{"text": "a"}'), ("error", failure)))) as (url, _),
        httpx2.Client() as client,
        pytest.raises(UnavailableError, match="the worker died"),
    ):
        ask_streamed(client, url, {})


@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        ([], "ended after 0 parts"),
        (events(("part", b'{"text": "a"}')), "ended after 1 parts"),
        (events(("part", b'{"text": 5}')), "not a V1 response"),
        (events(("answer", b"{}")), "not a V1 response"),
        (events(("error", b"[]")), "not a V1 response"),
        ([b"event: part\ndata: \xff\xfe\n\n"], "not a V1 response"),
    ],
)
def test_a_stream_that_is_none_says_what_is_wrong(chunks: list[bytes], said: str) -> None:
    with (
        serving(lambda body: (200, chunks)) as (url, _),
        httpx2.Client() as client,
        pytest.raises(MlosError, match=said),
    ):
        ask_streamed(client, url, {})


def test_a_stream_that_is_refused_says_why() -> None:
    with (
        serving(lambda body: (400, b'{"message": "does not stream"}')) as (url, _),
        httpx2.Client() as client,
        pytest.raises(WorkerError, match=r"400.*does not stream"),
    ):
        ask_streamed(client, url, {})
