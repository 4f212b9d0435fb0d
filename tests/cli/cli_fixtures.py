"""What the tests of the command line share: the caller, a folder of documents, and a store of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from calling import Clara, caller

from clara.cli import main
from clara.samples import sample_folder

DOCUMENTS = ("chess.txt", "eiffel-tower.md", "coffee.html")


@pytest.fixture
def clara(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clara:
    """Runs the command line, untouched by the caller's environment and with no store in the working folder."""
    for name in ("CLARA_STORE", "CLARA_MODEL", "CLARA_CACHE", "CLARA_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return caller(capsys)


@pytest.fixture(scope="session")
def filled(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``docs`` and ``store``, filled once by ``clara index``; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("filled")
    (folder / "docs").mkdir()
    for name in DOCUMENTS:
        shutil.copy(sample_folder() / name, folder / "docs" / name)
    code = main(["index", str(folder / "docs"), "--store", str(folder / "store"), "--model", str(tiny_checkpoint)])
    assert code == 0
    return folder


@pytest.fixture
def store(filled: Path) -> Path:
    """The filled store, to read."""
    return filled / "store"
