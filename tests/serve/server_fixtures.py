"""Servers over stores that the tiny model filled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from serving import Running, Serve, running

from clara.llm import LLM
from clara.model import ClaraModel
from clara.pipeline import Clara
from clara.samples import sample_folder
from clara.serve.access import KeyEntry, Limits
from clara.serve.app import create_app
from clara.serve.library import ServedStore

DOCUMENTS = ("chess.txt", "eiffel-tower.md", "coffee.html")


@pytest.fixture(scope="session")
def filled(tiny_model: ClaraModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three documents, filled once."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "docs").mkdir()
    for name in DOCUMENTS:
        shutil.copy(sample_folder() / name, folder / "docs" / name)
    with Clara.open(folder / "store", model=tiny_model) as rag:
        rag.add(folder / "docs")
    return folder / "store"


@pytest.fixture
def serve(tiny_model: ClaraModel, filled: Path, tmp_path: Path) -> Iterator[Serve]:
    """Starts servers over stores of the given names: copies of the filled one, or empty ones."""
    opened: list[Any] = []

    def start(
        *names: str,
        empty: Sequence[str] = (),
        keys: Sequence[KeyEntry] = (),
        limits: Limits | None = None,
        llm: LLM | None = None,
        **options: Any,  # noqa: ANN401 - of create_app
    ) -> Running:
        stores = []
        for name in (*names, *empty):
            path = tmp_path / name
            if name not in empty and not path.exists():
                shutil.copytree(filled, path)
            rag = Clara.open(path, model=tiny_model)
            rag.llm = llm
            opened.append(rag.close)
            stores.append(ServedStore(name, rag, tmp_path / f"{name}-uploads", 1))
        context = running(create_app(stores, keys=keys, limits=limits, **options))
        server = context.__enter__()
        opened.append(lambda: context.__exit__(None, None, None))
        return server

    yield start
    for close in reversed(opened):
        close()


@pytest.fixture(scope="session")
def shared(tiny_model: ClaraModel, filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server over the store ``docs``, for tests that change nothing."""
    with Clara.open(filled, model=tiny_model) as rag:
        store = ServedStore("docs", rag, tmp_path_factory.mktemp("uploads"), 1)
        with running(create_app([store])) as server:
            yield server
