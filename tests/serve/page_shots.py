"""Screenshots of the page in its states, for somebody to look at: ``make page-shots`` writes them to ``runs/page``.

python tests/serve/page_shots.py [FOLDER]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from browsing import MODEL, NO_BROWSER, ask, browser, fill, find_browser, serving
from playwright.sync_api import Browser, FilePayload, Page, expect
from serving import Running

from clara.model import ClaraModel
from clara.pipeline import Clara
from clara.samples import sample_folder

SIZES = {"wide": (1440, 900), "phone": (375, 760)}
Shot = Callable[[str], None]
HEIGHT = "How high is the Eiffel Tower?"


def main(folder: Path) -> None:
    """Take them all."""
    path = find_browser()
    if path is None:
        sys.exit(NO_BROWSER)
    folder.mkdir(parents=True, exist_ok=True)
    model = ClaraModel.load(MODEL)
    with TemporaryDirectory() as place, Clara.open(Path(place) / "new", model=model) as new:
        store = Path(place) / "samples"
        names = sorted(each.name for each in sample_folder().iterdir())
        with (
            fill(store, model, *names) as rag,
            serving({store: rag, Path(place) / "new": new}) as server,
            browser(path) as launched,
        ):
            for size in SIZES:
                for scheme in ("light", "dark"):
                    _series(launched, server, folder, size, scheme)


def _series(launched: Browser, server: Running, folder: Path, size: str, scheme: Literal["light", "dark"]) -> None:
    width, height = SIZES[size]
    context = launched.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(server.base)

    def shot(name: str) -> None:
        page.wait_for_timeout(500)  # what moves comes to rest
        page.screenshot(path=folder / f"{name}-{size}-{scheme}.png")

    page.locator("#store").select_option("new")
    expect(page.locator("#welcome-text")).to_contain_text("no documents in new yet")
    shot("empty")
    page.locator("#store").select_option("samples")
    expect(page.locator("#welcome-text")).to_contain_text("10 documents")
    shot("welcome")
    _asked(page, shot)
    _others(page, shot)
    context.close()


def _asked(page: Page, shot: Shot) -> None:
    turn = ask(page, HEIGHT)
    expect(turn.locator(".chips li").first).to_be_visible()
    shot("answer")
    turn.locator(".source").first.click()
    expect(page.locator("#reader mark")).to_be_in_viewport()
    shot("reader")
    page.keyboard.press("Escape")
    turn.locator(".compare").click()
    expect(turn.locator(".card dl")).to_have_count(3)
    shot("compared")
    ask(page, "Which tax rate does Peru have?")
    shot("not-found")


def _others(page: Page, shot: Shot) -> None:
    page.get_by_role("link", name="Documents", exact=True).click()
    expect(page.locator("tbody tr")).to_have_count(10)
    shot("documents")
    fig = FilePayload(name="fig.txt", mimeType="text/plain", buffer=b"The fig is a soft fruit.")
    page.set_input_files("#files", [fig, FilePayload(name="tool.exe", mimeType="", buffer=b"MZ")])
    expect(page.locator(".upload.done, .upload.failed")).to_have_count(2)
    shot("uploads")
    page.get_by_role("button", name="Remove fig.txt").click()
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(page.locator("tbody tr")).to_have_count(10)
    page.get_by_role("link", name="Map", exact=True).click()
    page.locator("#map-query").fill(HEIGHT)
    page.locator("#map-form button").click()
    expect(page.locator(".found-list li").first).to_be_visible()
    shot("map")
    page.context.set_offline(True)
    page.get_by_role("link", name="Ask", exact=True).click()
    ask(page, "Who drank the coffee?")
    shot("offline")
    page.context.set_offline(False)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/page"))
