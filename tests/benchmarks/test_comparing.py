from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]  # its stubs are another distribution
import pytest
from benchmarks.comparing import Rounds, compare, holm
from benchmarks.results import Block, Comparison, WorkloadResult, table_of, verdict_of
from benchmarks.sides import Mlos, Peer, Side, peer_names, side_named
from benchmarks.wire import Asked, check, written
from benchmarks.workloads import WORKLOADS, package_of, requests_of, settings_of
from rich.console import Console

from mlos.errors import NotFoundError, ParityError, UnavailableError
from mlos.parity import tolerance_named
from mlos.store import Package
from mlos.tune.paired import Ratio

FP32 = tolerance_named("fp32")
NO_PACKAGE: Any = None
"""These servers open no file."""


def asked(number: int = 1) -> Asked:
    x = np.arange(1, 9, dtype=np.float32)[None] * number
    return Asked({"x": x}, {"y": 2 * x})


class Ours(Peer):
    ours = True


def side(tmp_path: Path, way: str, *, ours: bool = False) -> Side:
    folder = tmp_path / way
    folder.mkdir(exist_ok=True)
    server = Path(__file__).with_name("server.py")
    (folder / "peer.toml").write_text(f"""
        title = "{way}"
        command = ["{{python}}", "{server}", "{{port}}", "{way}"]
        ready = "/"
        configuration = ["doubles"]
        environment = {{ CHILD = "{folder / "child"}" }}
        wires = {{ json = {{ form = "v2-json", path = "/infer" }} }}
    """)
    return (Ours if ours else Peer)("ours" if ours else way, folder, Path(sys.executable))


def rounds(*sides: Side, clients: int = 2) -> tuple[Rounds, list[str]]:
    said: list[str] = []
    return Rounds(sides, [("json", clients)], [asked(n) for n in (1, 2, 3)], NO_PACKAGE, {}, said.append), said


def test_two_right_servers_are_compared_in_mirrored_blocks(tmp_path: Path) -> None:
    found, _ = rounds(side(tmp_path, "right", ours=True), side(tmp_path, "also"))
    found.admit()
    found.run(groups=2, seconds=0.1, seed=3)

    assert [record.error for record in found.records] == [None, None]
    for group in (0, 1):
        order = [block.side for block in found.blocks if block.group == group]
        assert sorted(order) == ["also", "also", "ours", "ours"]
        assert order == order[::-1]
    for block in found.blocks:
        assert sum(block.histogram.values()) == block.n >= 2
    measured = [(one.ours, one.peer, one.thing, one.measure) for one in found.compared()]
    assert measured == [
        ("ours", "also", "json/2", "latency p50"),
        ("ours", "also", "json/2", "seconds per answer"),
    ]


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("wrong", "asked by json, wrong answers wrong: output 'y' is wrong: max |error| 0.08"),
        ("refuses", 'answered with status 500: {"error": "not today"}'),
        ("cuts", "the connection was cut"),
        ("leaves", "status 3; its log ends: no licence found"),
    ],
)
def test_a_peer_that_does_not_answer_right_is_told_and_never_timed(tmp_path: Path, way: str, told: str) -> None:
    found, said = rounds(side(tmp_path, "right", ours=True), side(tmp_path, way))
    found.admit()
    found.run(groups=1, seconds=0.05, seed=0)

    error = found.records[1].error
    assert error is not None
    assert told in error
    assert any(told in line for line in said)
    assert {block.side for block in found.blocks} == {"ours"}
    assert found.compared() == []


def test_a_peer_that_answers_wrong_under_load_is_out_with_what_it_said(tmp_path: Path) -> None:
    found, _ = rounds(side(tmp_path, "right", ours=True), side(tmp_path, "later"))
    found.admit()
    assert found.records[1].error is None
    found.run(groups=1, seconds=0.3, seed=0)

    assert "later answers wrong" in str(found.records[1].error)
    assert "later" not in {block.side for block in found.blocks}


def test_a_worker_that_survives_its_parent_is_ended(tmp_path: Path) -> None:
    with side(tmp_path, "orphan").serving(NO_PACKAGE, {}):
        child = psutil.Process(int((tmp_path / "orphan" / "child").read_text()))
        assert child.is_running()
    assert not child.is_running()


def test_a_failure_under_way_carries_the_servers_last_words(tmp_path: Path) -> None:
    with (
        pytest.raises(UnavailableError, match=r"no answer.*its log ends"),
        side(tmp_path, "right").serving(NO_PACKAGE, {}),
    ):
        raise UnavailableError("no answer")


@pytest.mark.parametrize("form", ["v2-json", "v2-binary"])
def test_an_answer_is_held_to_the_right_one(form: Any) -> None:
    one = asked()
    body = b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 8], '
    body += b'"data": [2, 4, 6, 8, 10, 12, 14, 16]}]}'
    check(form, one, body, None, FP32)
    for wrong, told in (
        (body.replace(b"16", b"16.1"), "is wrong"),
        (body.replace(b"[1, 8]", b"[8]"), r"shape \[8\]"),
        (body.replace(b'"y"', b'"z"'), "was not answered"),
        (body.replace(b"16", b"null"), "NaN"),
        (body[:-2], "not an answer"),
    ):
        with pytest.raises(ParityError, match=told):
            check(form, one, wrong, None, FP32)


def test_a_binary_request_has_its_tensors_behind_its_json() -> None:
    request = written("v2-binary", "/infer", asked())
    head, _, body = request.partition(b"\r\n\r\n")
    length = int(head.partition(b"Inference-Header-Content-Length: ")[2].split()[0])
    assert f"Content-Length: {len(body)}".encode() in head
    assert body[length:] == asked().tensors["x"].tobytes()


def blocks(ours: float, peer: float, groups: int, *, steady: bool = True, noise: float = 0.0) -> list[Block]:
    def block(group: int, place: int, side: str, ms: float) -> Block:
        return Block(
            group=group, place=place, side=side, thing="json/1", n=9, seconds=1.0, median_ms=ms, p90_ms=None,
            rate=1e3 / ms, steady=steady, steal_share=0.0, histogram={"1": 9},
        )  # fmt: skip

    chance = np.random.default_rng(0)
    sides = (("ours", ours), ("peer", peer), ("peer", peer), ("ours", ours))
    return [
        block(group, place, side, ms * float(np.exp(chance.normal(0, noise))))
        for group in range(groups)
        for place, (side, ms) in enumerate(sides)
    ]


@pytest.mark.parametrize(
    ("ours", "groups", "steady", "noise", "verdict"),
    [
        (8.0, 10, True, 0.001, "faster"),
        (12.0, 10, True, 0.001, "slower"),
        (9.9, 10, True, 0.001, "no difference found"),
        (9.0, 10, True, 0.2, "no difference found"),
        (8.0, 9, True, 0.001, "no claim: 9 of at least 10 pairs"),
        (8.0, 10, False, 0.001, "no claim: 0 of at least 10 pairs; 10 groups left out: UNSTABLE"),
    ],
)
def test_the_verdict_is_in_the_words_of_the_standard(
    ours: float, groups: int, steady: bool, noise: float, verdict: str
) -> None:
    found = compare(
        blocks(ours, 10.0, groups, steady=steady, noise=noise), "ours", "peer", "json/1", "latency p50"
    )
    assert found is not None
    assert found.verdict == verdict
    assert found.ratio is None or found.ratio.low <= found.ratio.ratio <= found.ratio.high


def test_a_group_that_lacks_a_block_is_not_counted() -> None:
    found = compare(blocks(8.0, 10.0, 3)[:-1], "ours", "peer", "json/1", "latency p50")
    assert found is not None
    assert found.ratio is not None
    assert found.ratio.n == 2


def test_a_group_in_which_processor_time_was_stolen_is_left_out_and_told() -> None:
    seen = blocks(8.0, 10.0, 11)
    seen[5] = seen[5].model_copy(update={"steal_share": 0.02, "median_ms": 1e3})
    found = compare(seen, "ours", "peer", "json/1", "latency p50")
    assert found is not None
    assert found.ratio is not None
    assert (found.ratio.n, found.ratio.ratio, found.verdict) == (10, 0.8, "faster")
    assert found.flags == ("1 groups left out: processor time stolen",)


def test_a_side_without_blocks_is_not_compared_however_unsteady_the_other_was() -> None:
    ours = [block for block in blocks(8.0, 10.0, 3, steady=False) if block.side == "ours"]
    assert compare(ours, "ours", "peer", "json/1", "latency p50") is None


def comparison(p: float) -> Comparison:
    ratio = Ratio(ratio=0.8, low=0.7, high=0.9, n=10, floor=0.03)
    return Comparison(
        ours="mlos", peer="plain", thing="json/1", measure="latency p50", ratio=ratio, p=p, p_holm=p, flags=(),
        verdict=verdict_of(ratio, ()),
    )  # fmt: skip


def test_holms_correction_is_the_published_example() -> None:
    # Four p-values and their adjusted ones, as R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") gives them.
    corrected = [one.p_holm for one in holm([comparison(p) for p in (0.01, 0.04, 0.03, 0.005)])]
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_the_table_shows_ratio_interval_noise_verdict_and_whom_it_could_not_compare(tmp_path: Path) -> None:
    found, _ = rounds(side(tmp_path, "leaves"))
    found.admit()
    result = WorkloadResult(
        name="trivial", about="doubles", reference="file:x", digest="0" * 64, requests=3, sides=found.records,
        comparisons=(comparison(0.002).model_copy(update={"ours": "ours", "peer": "peer"}),),
        blocks=tuple(blocks(8.0, 10.0, 2)),
    )  # fmt: skip
    console = Console(width=250)
    with console.capture() as shown:
        console.print(table_of(result))
    for part in ("0.800 [0.700, 0.900]", "3.0%", "faster", "not compared", "status 3"):
        assert part in shown.get()


def test_every_peer_is_described_and_pinned() -> None:
    assert {"plain", "mlserver", "litserve", "bentoml", "kserve", "ray", "pytriton"} <= set(peer_names())
    for name in peer_names():
        peer = side_named(name)
        assert peer.title
        assert peer.configuration
        folder = Path(sys.modules["benchmarks.sides"].__file__ or "").parent / "peers" / name
        lines = (folder / "requirements.txt").read_text().splitlines()
        assert lines
        assert [line for line in lines if "==" not in line] == []
    with pytest.raises(NotFoundError, match="no peer"):
        side_named("nobody")


@pytest.fixture(scope="module")
def trivial(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOS_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield package_of(WORKLOADS["trivial"])


def test_our_own_server_answers_the_trivial_model_right_in_every_form(trivial: Package) -> None:
    workload = WORKLOADS["trivial"]
    requests = requests_of(workload, trivial, seed=0)
    assert all((one.outputs["y"] == 2 * one.tensors["x"]).all() for one in requests)
    found = Rounds(
        [Mlos("mlos")], workload.things, requests, trivial, settings_of(workload, trivial), lambda said: None
    )
    found.admit()
    (record,) = found.records
    assert record.error is None
    assert record.checked == 16
    assert record.facts["engine"].startswith("onnxruntime ")
