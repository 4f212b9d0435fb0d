"""A real Chromium on the page of a real server with the embedded model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from serving import Running, running

from clara.model import ClaraModel
from clara.pipeline import Clara
from clara.samples import sample_folder
from clara.serve.access import KeyEntry, Limits
from clara.serve.app import create_app
from clara.serve.library import ServedStore

MODEL = "smollm2-135m"
PATIENCE = 180_000  # ms that a busy machine may take for an answer
NO_BROWSER = "there is no Chromium here; apt-get install chromium, or name one in CLARA_CHROMIUM"

expect.set_options(timeout=PATIENCE)


def find_browser() -> str | None:
    """The Chromium to drive: ``CLARA_CHROMIUM``, else what is installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("CLARA_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def browser(path: str) -> Iterator[Browser]:
    """Chromium without a window; it has no sandbox of its own, because tests run as root."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


def fill(store: Path, model: ClaraModel, *documents: str) -> Clara:
    """A store of sample documents, copied beside it as uploads are."""
    rag = Clara.open(store, model=model)
    folder = store.with_name(f"{store.name}-uploads")
    folder.mkdir()
    for name in documents:
        shutil.copy(sample_folder() / name, folder / name)
    rag.add(folder)
    return rag


@contextmanager
def serving(
    stores: Mapping[Path, Clara], *, keys: Sequence[KeyEntry] = (), limits: Limits | None = None
) -> Iterator[Running]:
    """A server over stores by folder; each is called as its folder is."""
    served = [ServedStore(path.name, rag, path.with_name(f"{path.name}-uploads"), 1) for path, rag in stores.items()]
    with running(create_app(served, keys=keys, limits=limits)) as server:
        yield server


def ask(page: Page, question: str) -> Locator:
    """Ask by keyboard, and wait for the end; the turn of the conversation."""
    page.locator("#question").fill(question)
    page.keyboard.press("Enter")
    turn = page.locator(".turn").last
    expect(turn.locator(".question")).to_have_text(question)
    expect(turn.locator(".answer")).not_to_have_attribute("aria-busy", "true")
    return turn
