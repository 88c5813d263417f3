from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.validation import example

from mlos.validation import drawing, report
from mlos.validation.results import Run, read_runs


class Page(HTMLParser):
    """The page's tags, with their attributes, and its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = tag == "script"

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts.append(data)
            self._script = False


def test_the_page_shows_every_model_with_its_error_and_tolerance(run: Run) -> None:
    html = report.render([run])
    assert "1 of 2 models passed" in html
    assert "no performance claim" in html
    for shown in (
        "2.1e-05",
        "0.0001",
        "bert",
        "minilm",
        "mlos validate --model seeded/google/bert-base-uncased",
    ):
        assert shown in html
    assert "n/a, needs 662" in html


def test_the_page_needs_no_network_and_allows_none(run: Run) -> None:
    html = report.render([run])
    page = Page(html)
    links = [
        value for _, attributes in page.tags for name in ("src", "href") if (value := attributes.get(name))
    ]
    assert links
    assert all(link.startswith(("#", "data:application/json")) for link in links)
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert f"'sha256-{digest}'" in policy


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7*7 }}"])
def test_hostile_names_stay_text(run: Run, name: str) -> None:
    hostile = run.model_copy(update={"rows": (run.rows[0].model_copy(update={"name": name}),)})
    page = Page(report.render([hostile]))
    assert len(page.scripts) == 1
    assert not any(tag == "img" or "onerror" in attributes for tag, attributes in page.tags)
    assert {a["data-model"] for _, a in page.tags if "data-model" in a} == {name}


def test_the_raw_samples_travel_with_the_page(run: Run) -> None:
    (encoded,) = set(
        re.findall(r'download="bert-[^"]*" href="data:application/json;base64,([^"]+)"', report.render([run]))
    )
    data = json.loads(base64.b64decode(encoded))
    latency = run.rows[0].latency
    assert latency is not None
    assert data["client_end_to_end"] == list(latency.samples_ms)
    assert data["unit"] == "ms"


def test_the_page_is_written_whole(run: Run, tmp_path: Path) -> None:
    path = report.write([run], tmp_path / "site" / "index.html")
    assert path.read_text().rstrip().endswith("</html>")


def test_speeds_stand_beside_their_intervals_and_a_divergence_beside_its_bound() -> None:
    html = report.render([example.run()])
    chat = next(row for row in example.run().rows if row.name == "tinyllama")
    assert chat.generation is not None
    interval = chat.generation.intervals["tokens_per_second"]
    assert drawing.span(interval) in html
    assert "KL 0.011" in html
    assert "of 0.03" in html
    assert "F16" in html, "the form on the way is shown too"


def test_no_speed_of_a_smoke_run_goes_without_its_claim() -> None:
    html = report.render([example.run("smoke")])
    assert "95 % interval</span>" not in html
    assert html.count("smoke: no claim") > 20


def test_memory_is_the_most_that_was_held() -> None:
    html = report.render([example.run()])
    assert "659 MB</div>" in html
    assert "586 MB when ready, 659 MB at most" in html


def test_what_speaks_against_a_number_stands_beside_it(run: Run) -> None:
    assert 'class="flag"' not in report.render([run])
    latency = run.rows[0].latency
    assert latency is not None
    unstable = latency.model_copy(update={"stable": False, "steal_share": 0.03})
    rows = (run.rows[0].model_copy(update={"latency": unstable}),)
    html = report.render([run.model_copy(update={"rows": rows})])
    assert ">UNSTABLE</span>" in html
    assert ">STEAL</span>" in html
    assert "warm-up windows did not agree" in html


def test_what_was_cached_is_said_and_has_no_time() -> None:
    html = report.render([example.run()])
    row = html[html.index('<tr role="row" data-model="minilm"') :]
    assert ">cached<" in row[: row.index("</tr>")].replace("\n", "")


def test_a_page_carries_the_samples_of_the_newest_runs_and_names_the_file_of_the_others(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "SAMPLES_CARRIED", 70)
    html = report.render([run])
    assert html.count("download=") == 1
    assert f"in the result file {run.run}.json" in html


def test_results_of_schema_1_are_drawn() -> None:
    html = report.render(read_runs([Path(__file__).with_name("data") / "schema-1.json"]))
    assert "1 of 2 models passed" in html


def test_sixty_models_are_drawn_and_stay_a_page() -> None:
    run = example.run()
    rows = tuple(row.model_copy(update={"name": f"{row.name}-{at}"}) for at in range(9) for row in run.rows)
    html = report.render([run.model_copy(update={"rows": rows})])
    assert html.count('<tr role="row" data-model=') == 63
    assert len(html) < 6_000_000


def test_the_page_says_what_computed_a_model_and_what_else_was_tried() -> None:
    html = report.render([example.run()])
    assert "openvino, bf16, 2 threads, up to 4 waiting requests together" in html
    assert "axon tune minilm" in html
    assert "cosine 0.9721 is below 0.98" in html  # the candidate that was refused
    assert html.count('class="name taken"') == 1
