"""The page in a real Chromium, against the real server and the embedded model."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed; it comes with the extra dev")

from axe_playwright_python.sync_playwright import Axe
from browsing import MODEL, NO_BROWSER, ask, browser, fill, find_browser, serving
from playwright.sync_api import Browser, Page, Request, Route, expect
from serving import WAIT, Running, until

from clara.model import ClaraModel
from clara.pipeline import Clara
from clara.records import Hit
from clara.serve.access import KeyEntry, Limits

CHROMIUM = find_browser()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)

METRES = "330 metres"
HEIGHT = "How high is the Eiffel Tower?"
KEY = "a-key-for-the-page"
WRONG = "<img src=x onerror=window.hacked=1>.txt"
WRONG_TEXT = "<script>window.hacked = 1</script> The Fir pump & its <b>valve</b> are painted blue.\n"


@dataclass(frozen=True)
class Site:
    """What the tests share.

    Attributes:
        path: of the store.
        rag: the store, which holds three samples.
        server: over it, without a key.
        browser: Chromium.
    """

    path: Path
    rag: Clara
    server: Running
    browser: Browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    assert CHROMIUM is not None
    path = tmp_path_factory.mktemp("page") / "samples"
    model = ClaraModel.load(MODEL, dtype="fp32")
    rag = fill(path, model, "eiffel-tower.md", "printing-press.pdf", "honey-bee.txt")
    with rag, serving({path: rag}) as server, browser(CHROMIUM) as launched:
        yield Site(path, rag, server, launched)


@pytest.fixture
def page(site: Site) -> Iterator[Page]:
    """A fresh page whose requests never leave the server, and whose scripts never fail."""
    context = site.browser.new_context(viewport={"width": 1280, "height": 850})
    opened = context.new_page()
    asked: list[str] = []
    errors: list[str] = []

    def noted(request: Request) -> None:
        asked.append(request.url)

    context.on("request", noted)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda said: errors.append(said.text) if "Content Security Policy" in said.text else None)
    opened.goto(site.server.base)
    yield opened
    context.close()
    assert errors == []
    assert [url for url in asked if not url.startswith(("http://127.0.0.1:", "http://localhost:"))] == []


def faults(page: Page) -> list[str]:
    """What axe-core finds of serious or critical impact."""
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html']}" for each in found if each["impact"] in {"serious", "critical"}]


def test_a_question_is_answered_and_its_citation_opens_where_it_stands(page: Page) -> None:
    turn = ask(page, HEIGHT)
    expect(turn.locator(".said")).to_contain_text(METRES)
    expect(turn.locator(".source .quote mark")).to_have_text(METRES)
    expect(turn.locator(".cost")).to_contain_text("tokens read as text")
    expect(turn.locator(".chips li").first).to_be_visible()
    assert faults(page) == []
    turn.locator(".cite").first.click()
    reader = page.locator("#reader")
    expect(reader.locator("h2")).to_have_text("eiffel-tower.md")
    expect(reader.locator("mark")).to_have_text(METRES)
    expect(reader.locator("mark")).to_be_in_viewport()
    expect(reader.locator(".passages")).to_contain_text("Visitors can reach three levels")
    assert faults(page) == []
    with page.context.expect_page() as opened:
        reader.locator("#reader-open").click()
    alone = opened.value
    expect(alone.locator("mark")).to_have_text(METRES)
    expect(alone.locator("mark")).to_be_in_viewport()
    assert faults(alone) == []


def test_a_question_that_comes_before_the_stores_waits_for_them(page: Page) -> None:
    held: list[Route] = []
    page.route("**/v1/stores", lambda route: held.append(route))  # noqa: PLW0108 - playwright marks the handler, which no built-in takes
    page.reload()
    page.locator("#question").fill(HEIGHT)
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_have_value(HEIGHT)
    while len(held) < 2:  # the page's own, and the question's
        page.wait_for_timeout(50)
    for route in held:
        route.continue_()
    expect(page.locator(".turn .said")).to_contain_text(METRES)


HOLD = """() => {
  const send = window.fetch;
  window.held = null;
  window.fetch = (url, options) => {
    if (!String(url).endsWith("/chat/completions")) return send(url, options);
    window.held = options.body;
    return new Promise(() => {});
  };
}"""
"""Lets no answer come before the page is left: a route of Playwright's let one through, once in some suites."""


def test_a_conversation_outlasts_a_reload(page: Page) -> None:
    thread, question = page.locator("#thread"), "How high is the <b>Eiffel Tower</b>?"

    def shown() -> str:
        expect(page.locator(".source .quote mark")).to_have_text(METRES)
        expect(page.locator(".chips li").first).to_be_visible()
        return thread.inner_text()

    ask(page, question)
    before, asked = shown(), list[str]()
    page.on("request", lambda sent: asked.append(f"{sent.method} {sent.url}"))
    page.reload()
    assert shown() == before
    assert [each for each in asked if each.startswith("POST") or "/lens" in each] == []
    expect(page.locator(".question")).to_have_text(question)
    assert page.locator("main b").count() == 0
    page.evaluate(HOLD)
    page.locator("#question").fill("And when was it built?")
    page.keyboard.press("Enter")
    page.wait_for_function("held !== null")
    said = [each["content"] for each in json.loads(page.evaluate("held"))["messages"]]
    assert (said[0], METRES in said[1], len(said)) == (question, True, 3)
    page.reload()  # its question may be asked again
    expect(page.locator(".turn").last).to_contain_text("Stopped. Ask again")
    expect(page.locator(".turn")).to_have_count(2)
    page.get_by_role("button", name="New conversation").click()
    page.reload()
    expect(page.locator("#welcome-text")).to_contain_text("3 documents")
    expect(page.locator(".turn")).to_have_count(0)


def test_readings_stand_beside_each_other(page: Page) -> None:
    page.locator("#context").select_option("memory")
    turn = ask(page, "What did Gutenberg print?")
    expect(turn.locator(".cost")).to_contain_text("64 of them memory tokens")
    turn.locator(".compare").click()
    cards = turn.locator(".card")
    expect(cards.locator("h3").first).to_be_focused()
    expect(cards.locator("h3")).to_have_text(["Memories", "Full text", "Nothing"])
    expect(cards.locator("dl")).to_have_count(3)
    memory, text, nothing = (int(each) for each in cards.locator("dl > div:first-child dd").all_inner_texts())
    assert nothing < memory < text
    expect(cards.locator("h3").first).to_be_focused()  # still, once its card is filled
    assert all(float(each) > 0 for each in cards.locator("dl > div:last-child dd").all_inner_texts())
    assert faults(page) == []


def test_a_pdf_opens_at_its_page_and_a_follow_up_is_understood(page: Page) -> None:
    turn = ask(page, "Where did Johannes Gutenberg live?")
    expect(turn.locator(".source .title")).to_contain_text("printing-press.pdf, page 1")
    turn.locator(".source").click()
    expect(page.locator("#reader .page-mark").first).to_have_text("Page 1")
    expect(page.locator("#reader-place")).to_contain_text("Page 1")
    page.keyboard.press("Escape")
    expect(turn.locator(".source")).to_be_focused()  # which comes late, and would take the next key
    turn = ask(page, "And when did he print the Bible?")
    expect(turn.locator(".understood q")).to_contain_text("Gutenberg")


def test_what_is_not_in_the_documents_is_said_and_may_be_guessed(page: Page) -> None:
    turn = ask(page, "Which tax rate does Peru have?")
    expect(turn.locator(".notice.none")).to_contain_text("Not found in your documents.")
    expect(turn.locator(".source")).to_have_count(0)
    turn.get_by_role("button", name="Show the best guess").click()
    turn = page.locator(".turn").last
    expect(turn.locator(".said")).not_to_be_empty()
    expect(page.locator(".turn")).to_have_count(1)


def test_files_are_uploaded_read_escaped_and_removed(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.4 without pages")
    page.get_by_role("link", name="Documents", exact=True).click()
    expect(page.locator("tbody tr")).to_have_count(3)
    page.evaluate(
        """([name, text]) => {
          const carried = new DataTransfer();
          carried.items.add(new File([text], name, { type: 'text/plain' }));
          for (const kind of ['dragenter', 'dragover', 'drop']) {
            const told = { dataTransfer: carried, bubbles: true, cancelable: true };
            document.body.dispatchEvent(new DragEvent(kind, told));
          }
        }""",
        [WRONG, WRONG_TEXT * 8],
    )
    page.set_input_files("#files", broken)
    expect(page.locator(".upload.done")).to_contain_text(WRONG)
    expect(page.locator(".upload.done")).to_contain_text("added")
    expect(page.locator(".upload.failed")).to_contain_text("broken.pdf")
    assert len(page.locator(".upload.failed .status").inner_text()) > 10
    assert faults(page) == []
    row = page.locator("tbody tr").filter(has_text=WRONG)
    expect(row.locator(".size").first).to_contain_text("tokens")
    row.get_by_role("button", name=WRONG, exact=True).click()
    expect(page.locator("#reader .passages")).to_contain_text("<script>window.hacked = 1</script>")
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Ask", exact=True).click()
    page.locator("#question").fill("What colour is the Fir pump's <b>valve</b>?")
    page.keyboard.press("Enter")
    expect(page.locator(".question")).to_have_text("What colour is the Fir pump's <b>valve</b>?")
    page.get_by_role("link", name="Documents", exact=True).click()
    page.get_by_role("button", name=f"Remove {WRONG}").click()
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(page.locator("tbody tr")).to_have_count(3)
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main b, main script").count() == 0
    page.evaluate("() => { const s = document.createElement('div'); s.textContent = ''; document.body.append(s); }")
    blocked = page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; return ''; } catch (e) { return e.name; } }"
    )
    assert blocked == "TypeError"


def test_a_page_that_is_loaded_while_files_are_indexed_follows_them(page: Page, site: Site) -> None:
    store = site.server.app.state.server.library.all()["samples"]
    with store.writing:  # nothing can be indexed
        files = [
            ("files", ("quince.txt", b"The quince is a fruit that is hard and sour when raw.")),
            ("files", ("broken.pdf", b"%PDF-1.4 no pages")),
        ]
        several = site.server.client.post("/v1/documents", files=files).json()
        one = site.server.client.post("/v1/documents", files={"files": ("tool.exe", b"MZ\x90\x00")}).json()
        listed = site.server.client.get("/v1/documents/jobs").json()["data"]
        assert [(each["id"], each["filenames"]) for each in listed] == [
            (several["id"], ["quince.txt", "broken.pdf"]),
            (one["id"], ["tool.exe"]),
        ]
        page.goto(f"{site.server.base}/#documents")
        page.reload()
        expect(page.locator(".upload .name")).to_have_text(["tool.exe", "2 files"])
        expect(page.locator("body")).to_have_class(re.compile("indexing"))
        second = page.context.new_page()
        second.goto(f"{site.server.base}/#documents")
        expect(second.locator(".upload")).to_have_count(2)
        assert faults(page) == []
    for tab in (page, second):
        expect(tab.locator(".upload.partly")).to_contain_text("1 added; left out:")
        expect(tab.locator(".upload.partly .faults li")).to_contain_text("broken.pdf: ")
        expect(tab.locator(".upload.failed .status")).to_contain_text("cannot read .exe; supported are .csv")
        expect(tab.locator("tbody tr")).to_have_count(4)
        expect(tab.locator("#said")).to_contain_text("tool.exe: cannot read")
    assert faults(page) == []
    assert site.server.client.get("/v1/documents/jobs").json()["data"] == []
    # What one tab removes while the other shows it is said there, and the focus goes on.
    second.get_by_role("button", name="quince.txt", exact=True).click()
    expect(second.locator("#reader .passages")).to_contain_text("hard and sour")
    page.get_by_role("button", name="Remove quince.txt").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Remove", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(3)
    expect(page.get_by_role("button", name="Remove printing-press.pdf")).to_be_focused()
    second.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(second.locator("#reader .notice")).to_contain_text("This document has been removed.")
    expect(second.locator("tbody tr")).to_have_count(3)
    assert faults(second) == []
    page.get_by_role("button", name="Clear tool.exe").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Clear 2 files")).to_be_focused()


def test_a_job_outlasts_a_server_that_stops(site: Site) -> None:
    def again(job: str) -> dict[str, Any]:
        return {"id": job, "object": "clara.indexing_job", "status": "queued", "files": 1, "error": None}

    context = site.browser.new_context()
    page = context.new_page()
    asked: list[str] = []

    def first_ends(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) > 1:
            route.continue_()
            return
        told = json.dumps(again(asked[0].split("/")[-2]))
        route.fulfill(content_type="text/event-stream", body=f"event: queued\ndata: {told}\n\n")

    page.route("**/jobs/*/events", first_ends)
    page.goto(f"{site.server.base}/#documents")
    expect(page.locator("tbody tr")).to_have_count(3)
    page.set_input_files("#files", {"name": "fig.txt", "mimeType": "text/plain", "buffer": b"A fig is a soft fruit."})
    expect(page.locator(".upload .status")).to_contain_text("goes on when it is back")
    expect(page.locator(".upload.done")).to_contain_text("added, 1 passage")
    assert len(asked) == 2
    page.get_by_role("button", name="Remove fig.txt").click()
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(page.locator("tbody tr")).to_have_count(3)
    context.close()


def test_a_file_that_is_being_sent_is_not_lost_unasked(page: Page) -> None:
    held: list[Route] = []
    leaving = "!dispatchEvent(new Event('beforeunload', {cancelable: true}))"

    def hold(route: Route) -> None:
        if route.request.method == "POST":
            held.append(route)
        else:
            route.continue_()

    page.get_by_role("link", name="Documents", exact=True).click()
    expect(page.locator("tbody tr")).to_have_count(3)
    assert not page.evaluate(leaving)
    page.route("**/v1/documents?*", hold)
    page.set_input_files("#files", {"name": "fig.txt", "mimeType": "text/plain", "buffer": b"A fig is a soft fruit."})
    until(lambda: bool(held), pause=lambda: page.wait_for_timeout(50), seconds=WAIT)
    assert page.evaluate(leaving)
    held[0].abort()
    expect(page.locator(".upload.failed")).to_contain_text("The connection broke off")
    page.unroute("**/v1/documents?*")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".upload.done")).to_contain_text("added, 1 passage")
    assert not page.evaluate(leaving)
    page.get_by_role("button", name="Remove fig.txt").click()
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(page.locator("tbody tr")).to_have_count(3)


def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(page: Page) -> None:
    told = {"choices": [{"index": 0, "delta": {"content": "The tower is 3"}, "finish_reason": None}], "object": "x"}
    broken = f"data: {json.dumps(told)}\n\n"
    page.route("**/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=broken))
    turn = ask(page, HEIGHT)
    expect(turn.locator(".notice.bad")).to_contain_text("The answer broke off.")
    expect(turn.locator(".said")).to_have_text("The tower is 3")
    page.unroute("**/chat/completions")
    turn.get_by_role("button", name="Ask again").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".question")).to_be_focused()
    expect(page.locator(".turn .said")).to_contain_text(METRES)
    expect(page.locator(".turn")).to_have_count(1)
    page.route("**/v1/compare", lambda route: route.fulfill(content_type="text/event-stream", body=""))
    page.locator(".compare").click()
    expect(page.locator(".notice.bad")).to_contain_text("could not be reached")
    expect(page.locator(".compare")).to_be_focused()


def test_a_file_too_large_is_refused_with_what_to_do(site: Site) -> None:
    with serving({site.path: site.rag}, limits=Limits(file_bytes=2**20)) as server:
        context = site.browser.new_context()
        page = context.new_page()
        page.goto(f"{server.base}/#documents")
        expect(page.locator("#drop-hint")).to_contain_text("1.0 MiB")
        page.set_input_files("#files", {"name": "long.txt", "mimeType": "text/plain", "buffer": b"x" * (3 << 19)})
        expect(page.locator(".upload.failed")).to_contain_text("1.5 MiB is more than the 1.0 MiB")
        expect(page.locator(".upload.failed")).to_contain_text("Split the file")
        assert faults(page) == []
        context.close()


def test_an_answer_stands_above_the_composer(page: Page) -> None:
    ask(page, HEIGHT)
    turn = ask(page, "Which tax rate does Peru have?")
    guess = turn.get_by_role("button", name="Show the best guess")
    expect(turn.locator(".chips li").first).to_be_visible()
    page.wait_for_timeout(300)
    top, bottom = page.locator("#banner").bounding_box(), page.locator(".composer-box").bounding_box()
    asked, offered = turn.locator(".question").bounding_box(), guess.bounding_box()
    assert top is not None
    assert bottom is not None
    assert asked is not None
    assert offered is not None
    assert top["y"] <= asked["y"]
    assert offered["y"] + offered["height"] <= bottom["y"]


def test_the_content_is_skipped_to_in_every_view(page: Page) -> None:
    page.get_by_role("link", name="Documents", exact=True).click()
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#view-documents")).to_be_visible()
    assert page.evaluate("document.activeElement.id") == "main"
    expect(page.locator("[aria-current]")).to_have_text("Documents")


def test_a_document_stays_beside_the_page_when_the_window_changes(page: Page) -> None:
    turn = ask(page, HEIGHT)
    turn.locator(".source").first.click()
    expect(page.locator("#reader mark")).to_be_visible()
    for width in (800, 1280):
        page.set_viewport_size({"width": width, "height": 850})
        expect(page.locator("#reader:modal")).to_have_count(1 if width == 800 else 0)
    page.wait_for_timeout(300)
    assert page.evaluate("document.body.classList.contains('reading')")


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    expect(page.locator("#question")).to_be_focused()
    page.locator("body").press("Tab")
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type(HEIGHT)
    page.keyboard.press("Enter")
    expect(page.locator(".cite").first).to_be_visible()
    page.evaluate("document.activeElement.blur()")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "cite":
            break
    expect(page.locator(".cite").first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#reader-title")).to_be_focused()
    expect(page.locator("#reader mark")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#reader")).to_be_hidden()
    expect(page.locator(".cite").first).to_be_focused()


def test_the_map_places_a_question_and_opens_a_passage(page: Page) -> None:
    page.get_by_role("link", name="Map", exact=True).click()
    expect(page.locator(".point")).not_to_have_count(0)
    page.locator("#map-query").fill("What do bees make?")
    page.keyboard.press("Enter")
    expect(page.locator(".found-list li").first).to_contain_text("honey-bee.txt")
    expect(page.locator(".question-mark .core")).to_be_visible()
    assert faults(page) == []
    point = page.locator(".point").first.bounding_box()
    assert point is not None
    page.mouse.click(point["x"] - 8, point["y"] + point["height"] / 2)  # beside it, as a finger may be
    expect(page.locator("#reader-title")).not_to_be_empty()
    page.keyboard.press("Escape")
    page.get_by_role("listbox").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#reader-title")).not_to_be_empty()
    expect(page.locator("#reader .passages")).to_be_visible()


def test_a_later_question_on_the_map_is_not_overtaken(page: Page) -> None:
    page.get_by_role("link", name="Map", exact=True).click()
    expect(page.locator(".point")).not_to_have_count(0)
    held: list[Route] = []
    page.route("**/map/question?*", lambda route: route.continue_() if held else held.append(route))
    for question in (HEIGHT, "What do bees make?"):
        page.locator("#map-query").fill(question)
        page.keyboard.press("Enter")
        until(lambda: bool(held), pause=lambda: page.wait_for_timeout(50), seconds=WAIT)
    expect(page.locator(".found-list li").first).to_contain_text("honey-bee.txt")
    with page.expect_response("**/map/question?*"):
        held[0].continue_()
    page.wait_for_timeout(300)
    expect(page.locator(".found-list li").first).to_contain_text("honey-bee.txt", timeout=1000)


def test_a_phone_shows_everything_in_light_and_dark(site: Site) -> None:
    context = site.browser.new_context(
        viewport={"width": 375, "height": 760}, color_scheme="light", reduced_motion="reduce", has_touch=True
    )
    page = context.new_page()
    page.goto(site.server.base)
    seen: list[str] = []
    widths: set[int] = set()
    papers: list[int] = []

    def look() -> None:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            seen.extend(f"{scheme} {each}" for each in faults(page))
            papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] * 1"))
        widths.add(page.evaluate("document.documentElement.scrollWidth"))

    ask(page, HEIGHT)
    look()
    page.locator(".source").first.click()
    expect(page.locator("#reader mark")).to_be_in_viewport()
    assert page.locator("#reader:modal").count() == 1
    look()
    page.get_by_role("button", name="Close the document").click()
    for view, sign in (("Documents", "tbody tr"), ("Map", ".point")):
        page.get_by_role("link", name=view, exact=True).click()
        expect(page.locator(sign).first).to_be_visible()
        look()
    heights = page.locator(".map-label").evaluate_all("all => all.map(each => each.getBoundingClientRect().height)")
    moving = page.evaluate("document.getAnimations().filter(each => each.playState === 'running').length")
    page.set_viewport_size({"width": 320, "height": 560})
    page.get_by_role("link", name="Ask", exact=True).click()
    cut = page.evaluate("""[...document.querySelectorAll('button, select, textarea, a')].filter(each => {
      const box = each.getBoundingClientRect();
      return box.width && !each.classList.contains('skip') && (box.left < 0 || box.right > 320);
    }).map(each => each.outerHTML)""")
    context.close()
    assert seen == []
    assert widths == {375}
    assert [paper > 128 for paper in papers] == [True, False] * 4
    assert moving == 0
    assert min(heights) >= 12  # pixels
    assert cut == []


def test_a_server_that_goes_away_is_said_and_comes_back(page: Page) -> None:
    expect(page.locator("#welcome-text")).to_contain_text("3 documents")
    page.context.set_offline(True)
    turn = ask(page, HEIGHT)
    expect(turn.locator(".notice.bad")).to_contain_text("could not be reached")
    expect(page.locator("#banner")).to_contain_text("cannot be reached")
    assert faults(page) == []
    page.context.set_offline(False)
    expect(page.locator("#banner")).to_be_empty()
    turn.get_by_role("button", name="Ask again").click()
    expect(page.locator(".turn").last.locator(".said")).to_contain_text(METRES)


def test_a_busy_server_is_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    search, free = site.rag.search, threading.Event()

    def slow(*args: Any, **options: Any) -> list[Hit]:  # noqa: ANN401 - as it is called
        assert free.wait(WAIT)
        return search(*args, **options)

    with serving({site.path: site.rag}, limits=Limits(waiting=1)) as server:
        context = site.browser.new_context()
        page = context.new_page()
        page.goto(server.base)
        expect(page.locator("#welcome-text")).to_contain_text("3 documents")
        monkeypatch.setattr(site.rag, "search", slow)
        other = threading.Thread(target=server.client.get, args=("/search",), kwargs={"params": {"query": "bees"}})
        other.start()
        while not server.app.state.server.queue.waiting:
            assert other.is_alive(), "the search ended, and was to wait"
            time.sleep(0.01)
        page.locator("#question").fill(HEIGHT)
        page.keyboard.press("Enter")
        expect(page.locator(".notice.wait")).to_contain_text("Asks again in")
        free.set()
        expect(page.locator(".said")).to_contain_text(METRES)
        other.join()
        context.close()


def test_a_key_is_asked_for_kept_in_the_tab_and_sent(site: Site) -> None:
    keys = (
        KeyEntry(key=KEY, name="reader", stores=["samples"], rights=["read"]),
        KeyEntry(key="a-key-of-another", name="other", stores=["empty"], rights=["read", "write"]),
    )
    empty = site.path.with_name("empty")
    with (
        Clara.open(empty, model=site.rag.model) as other,
        serving({site.path: site.rag, empty: other}, keys=keys) as server,
    ):
        context = site.browser.new_context()
        page = context.new_page()
        page.goto(server.base)
        expect(page.locator("#key-dialog")).to_be_visible()
        assert faults(page) == []
        page.keyboard.press("Escape")
        expect(page.locator("#banner")).to_contain_text("This server needs an API key.")
        page.get_by_role("button", name="Enter the key").click()
        page.locator("#key").fill("not-the-right-key")
        page.keyboard.press("Enter")
        expect(page.locator("#key-problem")).to_contain_text("does not know this key")
        page.locator("#key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#welcome-text")).to_contain_text("3 documents in samples")
        expect(page.locator("#banner")).to_be_empty()
        expect(page.locator("#store-picker")).to_be_hidden()
        turn = ask(page, HEIGHT)
        turn.locator(".cite").first.click()
        expect(page.locator("#reader mark")).to_have_text(METRES)
        page.get_by_role("link", name="Documents", exact=True).click()
        expect(page.locator("#documents-lead")).to_contain_text("your key may not add or remove any")
        expect(page.locator("#drop")).to_be_hidden()
        assert page.evaluate("[...Object.values(localStorage), document.cookie].join()") == ""
        page.reload()
        expect(page.locator("tbody tr")).to_have_count(3)
        fresh = context.new_page()
        fresh.goto(server.base)
        expect(fresh.locator("#key-dialog")).to_be_visible()
        context.close()


def test_a_server_of_several_stores_lets_one_choose(site: Site) -> None:
    empty = site.path.with_name("nothing")
    with Clara.open(empty, model=site.rag.model) as other, serving({site.path: site.rag, empty: other}) as server:
        context = site.browser.new_context()
        page = context.new_page()
        page.goto(server.base)
        page.locator("#store").select_option("nothing")
        expect(page.locator("#welcome-text")).to_contain_text("There are no documents in nothing yet")
        assert faults(page) == []
        turn = ask(page, HEIGHT)
        expect(turn.locator(".notice")).to_contain_text("nothing to search yet")
        page.reload()
        expect(turn.locator(".question")).to_have_text(HEIGHT)
        expect(page.locator("#store")).to_have_value("nothing")
        page.locator("#store").select_option("samples")
        expect(page.locator(".turn")).to_have_count(0)
        page.reload()
        expect(page.locator("#welcome-text")).to_contain_text("3 documents")
        expect(page.locator(".turn")).to_have_count(0)
        page.locator("#store").select_option("nothing")
        page.get_by_role("link", name="Map", exact=True).click()
        expect(page.locator(".notice").last).to_contain_text("no map yet")
        page.get_by_role("link", name="Documents", exact=True).click()
        page.set_input_files("#files", {"name": "fig.txt", "mimeType": "text/plain", "buffer": b"A fig is soft."})
        expect(page.locator(".upload.done")).to_be_visible()
        page.locator("#store").select_option("samples")
        expect(page.locator("tbody tr")).to_have_count(3)
        expect(page.locator(".upload")).to_be_hidden()  # it went to the other store
        context.close()
