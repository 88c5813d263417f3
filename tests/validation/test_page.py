"""The page in a real browser: filters, permalinks, themes, links copied, and neither an error nor a request."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from tests.validation import example

from mlos.validation import report
from mlos.validation.results import Run, read_runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Opened:
    """A page, the runs it shows, and everything it did that it should not do."""

    page: Page
    runs: list[Run]
    address: str
    noticed: list[str] = field(default_factory=list)

    def shows(self, *models: str) -> None:
        """Wait until these models, in this order, are what the table shows; the cards are the same."""
        run = self.page.locator("section.run:not([hidden])")
        expect(run.locator(".models tbody tr:not([hidden]) td.model a")).to_have_text(list(models))
        cards = run.locator("details.model[data-model]:not([hidden]) > summary > strong").all_inner_texts()
        assert sorted(cards) == sorted(models)


EVERYTHING = ("bert", "minilm", "resnet", "t5", "vit", "tinyllama", "llama-3.2-1b")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        reason = "no Chromium is installed (apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Run]]:
    """The page as `mlos report` draws it: from files."""
    folder = tmp_path_factory.mktemp("site")
    for run in (example.run(), example.run("smoke", at=-3)):
        run.save(folder)
    runs = read_runs([folder])
    return report.write(runs, folder / "index.html"), runs


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    yield context
    context.close()


@pytest.fixture
def opened(context: BrowserContext, site: tuple[Path, list[Run]]) -> Iterator[Opened]:
    path, runs = site
    found = Opened(context.new_page(), runs, path.as_uri())
    found.page.set_default_timeout(20_000)
    found.page.on("console", lambda message: found.noticed.append(f"console: {message.text}"))
    found.page.on("pageerror", lambda error: found.noticed.append(f"error: {error}"))
    found.page.on("request", lambda request: found.noticed.append(f"request: {request.url:.200}"))
    found.page.goto(found.address)
    assert found.noticed == [f"request: {found.address}"], "the page itself is all that is fetched"
    found.noticed.clear()
    yield found
    assert found.noticed == []


def test_a_category_can_be_chosen_and_let_go(opened: Opened) -> None:
    page = opened.page
    opened.shows(*EVERYTHING)
    vision = page.get_by_role("button", name="vision 2")
    vision.click()
    opened.shows("resnet", "vit")
    assert page.url.endswith(f"#{opened.runs[0].run}&category=vision")
    expect(vision).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("status").first).to_have_text("2 of 7 shown")
    page.get_by_role("button", name="all 7").click()
    opened.shows(*EVERYTHING)


def test_filters_add_up_and_an_empty_page_says_how_to_go_on(opened: Opened) -> None:
    page = opened.page
    page.get_by_label("filter by status").first.select_option("passed")
    page.get_by_role("button", name="vision 2").click()
    opened.shows("resnet")
    page.get_by_label("filter by task").first.select_option("chat")
    opened.shows()
    page.get_by_role("button", name="show all").click()
    opened.shows(*EVERYTHING)


def test_a_permalink_leads_to_its_run_model_and_filters(opened: Opened) -> None:
    page, older = opened.page, opened.runs[1]
    page.goto(f"{opened.address}#{older.run}/tinyllama&category=llm")
    opened.noticed.clear()  # the page was fetched again
    opened.shows("tinyllama", "llama-3.2-1b")
    card = page.locator(f"[id='{older.run}-tinyllama']")
    expect(card).to_have_attribute("open", "")
    expect(card).to_be_in_viewport()
    expect(page.locator("#runs")).to_have_value(older.run)
    page.locator("#runs").select_option(opened.runs[0].run)
    assert unquote(page.url).endswith(f"#{opened.runs[0].run}&category=llm")


def test_going_back_goes_back(opened: Opened) -> None:
    page = opened.page
    page.get_by_role("button", name="nlp 3").click()
    page.locator("section.run:not([hidden]) td.model a", has_text="minilm").click()
    opened.shows(*EVERYTHING)  # a model's own link has no filters
    page.go_back()
    opened.shows("bert", "minilm", "t5")


def test_links_can_be_copied(opened: Opened) -> None:
    page, run = opened.page, opened.runs[0].run
    page.get_by_role("button", name="llm 2").click()
    page.get_by_role("button", name="copy link").first.click()
    expect(page.locator("#link")).to_have_text("copied")
    view = page.evaluate("navigator.clipboard.readText()")
    assert view == f"{opened.address}#{run}&category=llm"
    page.goto(f"{opened.address}#{run}/bert")
    card = page.locator(f"[id='{run}-bert']")
    card.locator("button[data-link]").click()
    expect(card.locator("button[data-link]")).to_have_text("copied")
    assert page.evaluate("navigator.clipboard.readText()") == f"{opened.address}#{run}/bert"
    card.locator(".command button").first.click()
    expect(card.locator(".command button").first).to_have_text("copied")
    assert page.evaluate("navigator.clipboard.readText()") == opened.runs[0].rows[0].commands["all"]
    opened.noticed.clear()


def test_the_theme_is_the_system_s_until_one_is_chosen_and_then_stays(opened: Opened) -> None:
    page, button = opened.page, opened.page.locator("#theme")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ground)
    assert light != dark
    button.click()
    expect(button).to_have_text("theme: light")
    assert page.evaluate(ground) == light
    button.click()
    expect(button).to_have_text("theme: dark")
    page.emulate_media(color_scheme="light")
    assert page.evaluate(ground) == dark
    page.reload()
    opened.noticed.clear()
    assert page.evaluate(ground) == dark
    button.click()
    expect(button).to_have_text("theme: system")
    assert page.evaluate(ground) == light


def test_columns_sort_either_way_and_what_is_not_known_comes_last(opened: Opened) -> None:
    page = opened.page
    head = page.get_by_role("columnheader", name="p50").first
    head.get_by_role("button").click()
    opened.shows("minilm", "resnet", "bert", "t5", "tinyllama", "vit", "llama-3.2-1b")
    expect(head).to_have_attribute("aria-sort", "ascending")
    head.get_by_role("button").click()
    opened.shows("tinyllama", "t5", "bert", "resnet", "minilm", "vit", "llama-3.2-1b")
    page.goto(f"{opened.address}#{opened.runs[0].run}&sort=model")
    opened.shows(*sorted(EVERYTHING))
    opened.noticed.clear()


@pytest.mark.parametrize("width", [360, 1600])
def test_the_page_fits_a_phone_and_a_wide_screen(opened: Opened, width: int) -> None:
    page = opened.page
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate("for (const card of document.querySelectorAll('details')) card.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for model in ("bert", "tinyllama"):
        assert page.locator(f"tr[data-model='{model}']").first.is_visible()


def test_raw_samples_can_be_saved_from_the_page(opened: Opened, tmp_path: Path) -> None:
    page, run = opened.page, opened.runs[0]
    page.goto(f"{opened.address}#{run.run}/tinyllama")
    with page.expect_download() as download:
        page.locator(f"[id='{run.run}-tinyllama'] a[download]").click()
    download.value.save_as(tmp_path / "samples.json")
    data = json.loads((tmp_path / "samples.json").read_bytes())
    chat = next(row for row in run.rows if row.name == "tinyllama")
    assert chat.latency is not None
    assert chat.generation is not None
    assert data["client_end_to_end"] == list(chat.latency.samples_ms)
    assert data["generation"]["first_ms"] == list(chat.generation.first_ms)
    assert all("data:application/json" in entry or opened.address in entry for entry in opened.noticed)
    opened.noticed.clear()


def test_a_hash_that_means_nothing_shows_the_newest_run(opened: Opened) -> None:
    opened.page.goto(f"{opened.address}#%E0%A4%A/..//&category=nothing&=&sort=%")
    opened.noticed.clear()
    assert opened.page.locator("section.run:not([hidden])").count() == 1
    opened.shows()
    opened.page.get_by_role("button", name="show all").click()
    opened.shows(*EVERYTHING)


def test_without_scripts_every_run_is_shown_whole(browser: Browser, site: tuple[Path, list[Run]]) -> None:
    path, runs = site
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("section.run:visible").count() == len(runs)
    assert page.locator(".controls:visible, .filters:visible").count() == 0
    context.close()
