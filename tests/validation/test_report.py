from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mlos.validation import report
from mlos.validation.results import Run


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


def test_the_bar_of_an_error_is_logarithmic() -> None:
    assert report.closeness(1e-9) == 0.0
    assert report.closeness(1.0) == pytest.approx(6 / 7)
    assert report.closeness(100.0) == 1.0


def test_the_histogram_counts_every_sample(run: Run) -> None:
    latency = run.rows[0].latency
    assert latency is not None
    assert sum(one.count for one in report.histogram(latency)) == latency.n
    assert sum(part.amount for part in report.stage_parts(latency)) == pytest.approx(latency.client_median_ms)
