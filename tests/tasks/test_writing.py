"""Text that comes in pieces: whole characters, nothing past a stop string, nothing lost."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlos.tasks.generation import Writing


def written(pieces: list[bytes], stops: tuple[str, ...]) -> tuple[list[str], Writing]:
    writing = Writing(stops)
    deltas = []
    for piece in pieces:
        deltas.append(writing.add(piece))
        if writing.stopped:
            break
    deltas.append(writing.finish())
    return deltas, writing


def test_a_character_in_two_pieces_comes_whole() -> None:
    deltas, writing = written(["é".encode()[:1], "é".encode()[1:] + b"t"], ())
    assert deltas == ["", "ét", ""]
    assert writing.text == "ét"


def test_a_broken_character_at_the_end_is_replaced() -> None:
    assert written([b"a", "é".encode()[:1]], ())[1].text == "a�"


def test_what_may_be_a_stop_string_is_held_back_and_given_when_it_is_none() -> None:
    deltas, writing = written([b"one E", b"N", b"E two"], ("END",))
    assert deltas == ["one ", "", "ENE two", ""]
    assert not writing.stopped


@pytest.mark.parametrize(
    ("pieces", "stops", "text"),
    [
        ([b"one EN", b"D two"], ("END",), "one "),
        ([b"END"], ("END",), ""),
        ([b"a\n\nb"], ("b", "\n\n"), "a"),
        ([b"aab"], ("ab",), "a"),
        ([b"one EN"], ("END",), "one EN"),
    ],
)
def test_a_stop_string_ends_the_text_before_itself(
    pieces: list[bytes], stops: tuple[str, ...], text: str
) -> None:
    deltas, writing = written(pieces, stops)
    assert "".join(deltas) == writing.text == text


@given(
    text=st.text(alphabet="abé€😀", max_size=40),
    stops=st.lists(st.text(alphabet="abé€", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 120), max_size=12),
)
def test_however_it_is_cut_the_parts_make_the_text_up_to_the_first_stop(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    data = text.encode()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(edges)]
    deltas, writing = written(pieces, tuple(stops))
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    wanted = text[: min(found)[1]] if found else text  # the stop string that is complete first
    assert "".join(deltas) == writing.text == wanted
    assert writing.stopped == bool(found)
