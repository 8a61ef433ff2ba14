"""The page in headless Chromium: what people do with it, and what it must not do."""

from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest


@contextmanager
def opened(browser, url, *, errors=(), **options):
    """A page; afterwards it must have had no console errors but those expected, and asked no other host."""
    context = browser.new_context(**options)
    context.set_default_timeout(30_000)
    page = context.new_page()
    said, hosts = [], set()
    page.on("console", lambda message: said.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    try:
        page.goto(f"{url}/")
        page.wait_for_selector("#figures dd")
        yield page
        assert [line for line in said if not any(error in line for error in errors)] == []
        assert hosts <= {urlsplit(url).netloc, ""}
    finally:
        context.close()


def upload(page, name, content):
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})


def expect_label(page, label):
    page.wait_for_function("label => document.getElementById('best-label').textContent === label", arg=label)
    assert page.is_visible("#prediction")


def expect_model(page, name):
    page.wait_for_function("name => document.getElementById('model').textContent === name", arg=name)


def drag(page, points):
    box = page.locator("#canvas").bounding_box()
    steps = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*steps[0])
    page.mouse.down()
    for step in steps[1:]:
        page.mouse.move(*step, steps=4)
    page.mouse.up()


def test_an_uploaded_image_gets_its_label_bars_and_timings(browser, colours_url, png):
    with opened(browser, colours_url) as page:
        assert page.is_visible("#empty")
        upload(page, "lime.png", png("lime"))
        expect_label(page, "green")
        names = page.locator("#classes .name").all_inner_texts()
        assert names[0] == "green"
        assert sorted(names) == ["blue", "green", "red"]
        shares = [float(text.strip("<>% \u00a0")) for text in page.locator("#classes .share").all_inner_texts()]
        assert shares == sorted(shares, reverse=True)
        allocation = [box.bounding_box()["width"] for box in page.locator("#classes .fill").all()]
        assert allocation == sorted(allocation, reverse=True)
        assert "green" in page.inner_text("#status")
        assert page.locator("#timings dd").count() == 6
        assert page.inner_text("#batch") == "Computed alone."
        upload(page, "red.png", png("red"))
        expect_label(page, "red")


def test_dropped_and_pasted_images_are_classified(browser, colours_url, png):
    event = """([type, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "given.png", {type: "image/png"}));
        const event = type === "drop" ? new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer: data})
                                      : new ClipboardEvent("paste", {bubbles: true, clipboardData: data});
        document.getElementById("drop").dispatchEvent(event);
    }"""
    with opened(browser, colours_url) as page:
        page.evaluate(event, ["drop", list(png("blue"))])
        expect_label(page, "blue")
        page.evaluate(event, ["paste", list(png("red"))])
        expect_label(page, "red")
        assert page.inner_text("#file-name") == "given.png"


def test_a_text_file_is_a_message_and_the_next_image_works(browser, colours_url, png):
    with opened(browser, colours_url, errors=["status of 400"]) as page:
        upload(page, "notes.txt", b"no image at all")
        page.wait_for_selector("#problem .problem")
        message = page.inner_text("#problem")
        assert "Expected an image" in message
        assert "notes.txt" in message
        assert not page.is_visible("#prediction")
        upload(page, "red.png", png("red"))
        expect_label(page, "red")
        assert page.inner_text("#problem") == ""


def test_a_server_that_has_gone_is_a_message(browser, colours_url, png):
    with opened(browser, colours_url, errors=["ERR_INTERNET_DISCONNECTED"]) as page:
        page.context.set_offline(True)
        upload(page, "red.png", png("red"))
        page.wait_for_selector("#problem .problem")
        assert "cannot be reached" in page.inner_text("#problem")
        page.wait_for_selector("[data-state=lost]")


def test_a_drawing_is_fitted_to_the_samples_and_classified(browser, strokes_url):
    with opened(browser, strokes_url) as page:
        page.check("input[value=draw]", force=True)
        # Short and in a corner: only centred and scaled does it lie on the middle columns.
        drag(page, [(0.15, 0.1), (0.15, 0.35)])
        expect_label(page, "vertical")
        page.click("#clear")
        drag(page, [(0.6, 0.85), (0.9, 0.85)])
        expect_label(page, "horizontal")


def test_drawing_is_offered_only_for_small_grey_inputs(browser, colours_url):
    with opened(browser, colours_url) as page:
        assert not page.is_visible("#modes")


def test_samples_of_the_bundle_get_the_class_that_the_executor_gave_them(browser, colours_url, shared_bundle):
    expected = [
        shared_bundle.processor.labels[index] for index in shared_bundle.golden.outputs["logits"].argmax(axis=1)
    ]
    with opened(browser, colours_url) as page:
        buttons = page.locator("#sample-list button").all()
        assert len(buttons) == len(expected)
        for button, label in zip(buttons, expected, strict=True):
            button.click()
            expect_label(page, label)


def test_everything_is_reached_by_keyboard(browser, colours_url, shared_bundle):
    count = len(shared_bundle.golden.inputs["image"])
    last = shared_bundle.processor.labels[int(shared_bundle.golden.outputs["logits"][-1].argmax())]
    with opened(browser, colours_url) as page:
        reached = []
        while len(reached) < 20 and reached[-1:] != [
            f"sample {len(shared_bundle.golden.inputs['image'])}, expected {last}"
        ]:
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.ariaLabel"))
        assert "file" in reached
        samples = [name for name in reached if name and name.startswith("sample")]
        assert len(samples) == count
        page.keyboard.press("Enter")
        expect_label(page, last)


def test_several_models_are_chosen_from_a_list(browser, two_models_url, png):
    with opened(browser, two_models_url) as page:
        assert page.inner_text("#model") == "colours"
        page.select_option("#models", "strokes")
        expect_model(page, "strokes")
        page.wait_for_selector("#modes", state="visible")
        page.select_option("#models", "colours")
        expect_model(page, "colours")
        page.wait_for_selector("#modes", state="hidden")
        upload(page, "red.png", png("red"))
        expect_label(page, "red")


def test_the_charts_count_requests(browser, colours_url, png):
    with opened(browser, colours_url) as page:
        before = int(page.evaluate("fetch('stats').then(answer => answer.json())")["requests"])
        upload(page, "red.png", png("red"))
        page.wait_for_function(
            "n => Number(document.querySelector('#totals dd').textContent.replaceAll(',', '')) > n", arg=before
        )
        page.wait_for_selector("#rate-chart svg :is(path, circle)")
        assert "Requests per second" in page.get_attribute("#rate-chart svg", "aria-label")


def test_the_labels_of_the_axes_stand_inside_of_their_charts(browser, colours_url):
    draw = """async () => {
        const { drawLines } = await import("./page/charts.js");
        const chart = document.getElementById("latency-chart");
        const outside = [];
        for (const top of [1, 100, 1000, 5000, 10000, 100000]) {
            const format = (value) => value < 1000 ? `${value} ms` : `${value / 1000} s`;
            drawLines(chart, [[0, top]], { label: "", format });
            const { left } = chart.getBoundingClientRect();
            for (const text of chart.querySelectorAll("text")) {
                if (text.getBoundingClientRect().left < left) outside.push(text.textContent);
            }
        }
        return outside;
    }"""
    with opened(browser, colours_url) as page:
        assert page.evaluate(draw) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen_and_axe_finds_nothing(browser, strokes_url, png, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    # axe is put into the page by the test; the page's own rules would refuse it.
    options = {"color_scheme": scheme, "viewport": {"width": width, "height": 740}, "bypass_csp": True}
    with opened(browser, strokes_url, **options) as page:
        for mode in ("image", "draw"):
            page.check(f"input[value={mode}]", force=True)
            if mode == "image":
                upload(page, "a-file-with-a-name-that-is-longer-than-any-screen-" * 3 + ".png", png("white"))
                page.wait_for_selector("#prediction:not([hidden])")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found = axe.Axe().run(page)
            assert found.violations_count == 0, found.generate_report()


def test_where_keys_are_on_the_page_asks_for_one_and_keeps_it_in_its_tab(browser, guarded_url, png):
    url, key = guarded_url
    context = browser.new_context()
    context.set_default_timeout(30_000)
    page = context.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{url}/")
    page.get_by_label("API key").wait_for()
    assert "Expected an API key" in page.locator("#problem").inner_text()
    page.get_by_label("API key").fill("cpt_wrong")
    page.get_by_role("button", name="Use it").click()
    page.locator("#problem", has_text="another one").wait_for()
    page.get_by_label("API key").fill(key)
    page.get_by_label("API key").press("Enter")
    expect_model(page, "strokes")
    page.locator("#sample-list img").first.wait_for()
    assert (
        page.locator("#sample-list img").first.evaluate("async image => (await image.decode(), image.naturalWidth)")
        == 8
    )
    assert page.get_by_label("API key").is_hidden()
    page.locator("#sample-list button").first.click()
    expect_label(page, "vertical")
    page.reload()
    expect_model(page, "strokes")
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 1, ""]
    page.evaluate("sessionStorage.clear()")
    page.reload()
    page.get_by_label("API key").wait_for()
    page.screenshot(path="/tmp/key.png")
    assert [line for line in said if "401" not in line] == []
    context.close()
