"""MLCommons' load generator drives a live server, and measures what the validation's own client measures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from tests.clients.environments import environment
from tests.core.conftest import Server, Start
from tests.core.packages import WIDTH, WORDS
from tests.small import Small

from mlos.store import Store
from mlos.validation import load
from mlos.validation.load import Query
from mlos.validation.tiers import Length

GENERATING = Path(__file__).parent / "children" / "generate_load.py"
TEXTS = ["mlos makes", "ml deployment easy", "easy", "mlos mlos ml makes ml easy", "deployment makes"]
TOLERANCE = 0.25
"""How far the two medians may be apart here; they are to agree within 5 % on a quiet machine."""


def drive(url: str, requests: list[dict[str, Any]], scenario: str, queries: int, **more: Any) -> Any:
    (packages,) = (environment("loadgen") / "lib").glob("python3.*/site-packages")
    order = {"url": url, "requests": requests, "scenario": scenario, "queries": queries, "seed": 11, **more}
    done = subprocess.run(
        [sys.executable, GENERATING, packages],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def embedding(text: str) -> Any:
    """What ``packages.embedder`` makes of a text."""
    table = np.random.default_rng(1).normal(size=(len(WORDS), WIDTH)).astype(np.float32)
    mean = table[[WORDS.index(word) for word in text.split()]].mean(axis=0)
    return mean / np.linalg.norm(mean)


def wrong(found: Any) -> list[Any]:
    """The answers that are not those of their own requests."""
    return [
        each
        for each in found["results"]
        if "error" in each
        or not np.allclose(each["result"]["embedding"], embedding(TEXTS[each["index"]]), atol=1e-5)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "queries", "rate"), [("SingleStream", 300, 1.0), ("Server", 200, 40.0)])
def test_the_load_generator_gets_right_answers(
    served: Server, scenario: str, queries: int, rate: float
) -> None:
    before = served.metric("mlos_requests_total", model="embedder", code="200")
    requests = [{"text": text} for text in TEXTS]
    url = f"{served.url}/v1/models/embedder/inference"
    found = drive(url, requests, scenario, queries, rate=rate)
    assert len(found["results"]) == queries
    assert {each["index"] for each in found["results"]} == set(range(len(TEXTS)))
    assert wrong(found) == []
    assert found["scenario"] == [scenario]
    assert set(found["percentiles_ms"]) >= {"50.00", "90.00", "99.00"}
    answered = served.metric("mlos_requests_total", model="embedder", code="200") - before
    assert answered == queries + len(TEXTS)
    # The check sees an answer that is another's.
    first, second = (next(each for each in found["results"] if each["index"] == index) for index in (0, 1))
    first["result"], second["result"] = second["result"], first["result"]
    assert len(wrong(found)) == 2


@pytest.mark.slow
def test_our_single_stream_measures_what_the_load_generators_does(
    start: Start, store: Store, small: Small
) -> None:
    """The same requests to the same server, in turns; the medians of the turns' medians are compared."""
    small.install("bert", store)
    server = start()
    url = f"{server.url}/v1/models/bert/inference"
    requests = [{"text": " ".join([word] * 40), "task": "embeddings"} for word in ("river", "stone", "cloud")]
    brief = Length(timed_seconds=2, samples=100, window_seconds=0.5, warmup_seconds=2, budget_seconds=20)
    ours, theirs = [], []
    for turn in range(6):
        for generated in (turn % 2 == 0, turn % 2 == 1):
            if generated:
                theirs.append(drive(url, requests, "SingleStream", 300)["percentiles_ms"]["50.00"])
            else:
                found = load.single_stream(url, [Query(each) for each in requests], turn, brief)
                assert (found.errors, len(found.samples) >= 100) == (0, True)
                ours.append(median(sample.taken_ms for sample in found.samples))
    ratio = median(ours) / median(theirs)
    sys.stderr.write(f"our SingleStream median over the load generator's: {ratio:.4f} ({ours}, {theirs} ms)\n")
    assert 1 - TOLERANCE < ratio < 1 + TOLERANCE
