"""The page and the evidence of a language model."""

import shutil
from urllib.parse import urlsplit

import pytest

from cpt_deploy.bundle import Bundle, update_validation


@pytest.fixture(scope="module")
def url(language_bundle, serve_here):
    with serve_here(language_bundle.path, access_log=False) as address:
        yield address


@pytest.fixture
def page(browser, url):
    """The page, which must say no error and ask no other host."""
    context = browser.new_context()
    context.set_default_timeout(30_000)
    opened = context.new_page()
    said, hosts = [], set()
    opened.on("console", lambda message: said.append(message.text) if message.type in {"error", "warning"} else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    yield opened
    context.close()
    assert said == []
    assert hosts <= {urlsplit(url).netloc, ""}


def test_text_goes_on_token_by_token_and_is_scored(page, url):
    page.goto(f"{url}/")
    page.wait_for_selector("#figures dd")
    assert page.inner_text("#model") == "bigram"
    assert "vocabulary 8" in page.inner_text("#model-facts")
    assert page.is_visible("#try-text")
    assert not page.is_visible("#try-input")
    page.fill("#prompt", "the company")
    page.fill("#max-tokens", "4")
    page.fill("#temperature", "0")
    page.get_by_role("button", name="Generate").click()
    page.wait_for_selector("#text-facts dd")
    assert page.inner_text("#written") == "the company said it was new"
    assert page.is_disabled("#stop")
    page.fill("#prompt", "the company the")
    page.get_by_role("button", name="Score").click()
    page.wait_for_selector(".token")
    surprises = page.eval_on_selector_all(".token", "tokens => tokens.map(token => token.dataset.surprise)")
    # Nothing stands before the first; the second was to be expected, and the third was not.
    assert surprises == ["", "0", "4"]
    assert "Perplexity" in page.inner_text("#text-facts")


def test_what_the_server_refuses_is_shown(browser, url):
    page = browser.new_page()
    page.goto(f"{url}/")
    page.wait_for_selector("#figures dd")
    page.fill("#prompt", "the " * 9000)
    page.get_by_role("button", name="Generate").click()
    page.wait_for_selector("#text-problem .problem")
    assert "at most 8192 tokens" in page.inner_text("#text-problem")
    page.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen_and_axe_finds_nothing(browser, url, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    # axe is put into the page by the test; the page's own rules would refuse it.
    context = browser.new_context(viewport={"width": width, "height": 740}, bypass_csp=True)
    page = context.new_page()
    page.goto(f"{url}/")
    page.wait_for_selector("#figures dd")
    page.fill("#prompt", "the company " * 20)
    page.get_by_role("button", name="Score").click()
    page.wait_for_selector(".token")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    context.close()


def test_the_description_is_shown_without_internet(page, url):
    page.goto(f"{url}/docs")
    page.wait_for_selector(".opblock")
    page.locator(".opblock-summary", has_text="/score").first.click()
    page.wait_for_selector(".opblock-body")
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    page.locator(".live-responses-table", has_text="perplexity").wait_for()
    # Below a path too, as the page asks for what stands beside it.
    assert page.evaluate("performance.getEntriesByType('resource').every(entry => entry.responseStatus === 200)")


REPORT = {
    "model_sha256": "0" * 64,
    "verdict": "passed",
    "passed": True,
    "reasons": [],
    "validated_at": "2026-01-01T00:00:00+00:00",
    "dataset": {"name": "words", "split": "test", "samples": 200, "unit": "tokens"},
    "metric": {"name": "perplexity", "higher_is_better": False, "percent": False},
    "runtimes": [{"name": "trained", "perplexity": 9.5}, {"name": "onnxruntime", "perplexity": 9.75}],
    "integers": {"compared": 1000, "mismatching": 0},
    "versions": {"onnxruntime": "1.30.0"},
    "cpu": {"model": "a processor"},
}


def test_a_language_model_has_evidence_and_no_samples(tmp_path, language_bundle, connect_to):
    copied = Bundle.open(shutil.copytree(language_bundle.path, tmp_path / "bundle"))
    with connect_to(copied) as client:
        (listed,) = client.get("/models").json()["models"]
        assert listed["form"] == "text"
        evidence = client.get("/evidence").json()
        assert (evidence["form"], evidence["facts"]) == ("text", {"vocabulary": 8, "context": None})
        assert evidence["validation"] is None
        update_validation(copied, {**REPORT, "content_sha256": copied.content_sha256})
        found = client.get("/evidence").json()["validation"]
        assert (found["metric"]["name"], found["value"], found["trained_value"]) == ("perplexity", 9.75, 9.5)
        assert found["of_this_model"]
        assert client.get("/samples").json() == {"samples": [], "drawing": None, "rows": {"input_ids": [[2, 3, 4]]}}
