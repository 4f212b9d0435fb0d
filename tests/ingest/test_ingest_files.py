"""Finding files: order, hidden ones, links, kinds."""

from __future__ import annotations

import inspect
import os
import socket
import sys
from pathlib import Path

import pytest

from clara.errors import InputError
from clara.ingest import Reader, find_files


def _make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("Some text.", encoding="utf-8")


def _names(paths: tuple[Path, ...], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def test_finds_supported_files_in_order_and_names_the_others(tmp_path: Path) -> None:
    _make(tmp_path, "b/z.TXT", "b/a.md", "a.html", "c.htm", "d.pdf", "e.docx", "f.jsonl", "g.txt", "b.png", "Makefile")
    listing = find_files([tmp_path])
    assert _names(listing.files, tmp_path) == [
        "Makefile",
        "a.html",
        "b/a.md",
        "b/z.TXT",
        "c.htm",
        "d.pdf",
        "e.docx",
        "f.jsonl",
        "g.txt",
    ]
    assert _names(listing.unsupported, tmp_path) == ["b.png"]
    assert listing.hidden == 0
    assert listing.skipped == ()


def test_hidden_entries_are_counted_unless_given(tmp_path: Path) -> None:
    _make(tmp_path, ".git/a.txt", ".git/b.txt", ".notes.md", "a.txt")
    listing = find_files([tmp_path])
    assert _names(listing.files, tmp_path) == ["a.txt"]
    assert listing.hidden == 2
    given = find_files([tmp_path / ".notes.md", tmp_path / ".git"])
    assert _names(given.files, tmp_path) == [".notes.md", ".git/a.txt", ".git/b.txt"]


def test_a_file_is_listed_once(tmp_path: Path) -> None:
    _make(tmp_path, "d/a.txt", "d/b.txt")
    (tmp_path / "d" / "c.txt").symlink_to(tmp_path / "d" / "a.txt")
    listing = find_files([tmp_path / "d" / "b.txt", tmp_path / "d", tmp_path])
    assert _names(listing.files, tmp_path) == ["d/b.txt", "d/a.txt"]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    _make(tmp_path, "docs/a.txt", "else/b.txt")
    (tmp_path / "docs" / "loop").symlink_to(tmp_path / "docs")
    (tmp_path / "docs" / "more").symlink_to(tmp_path / "else")
    (tmp_path / "docs" / "self.txt").symlink_to(tmp_path / "docs" / "self.txt")
    (tmp_path / "docs" / "gone.txt").symlink_to(tmp_path / "nowhere")
    listing = find_files([tmp_path / "docs"])
    assert _names(listing.files, tmp_path) == ["docs/a.txt", "docs/more/b.txt"]
    assert [skipped.reason for skipped in listing.skipped] == ["unreadable", "unreadable"]
    assert [Path(skipped.uri).name for skipped in listing.skipped] == ["gone.txt", "self.txt"]


def test_a_link_is_read_by_its_own_suffix(tmp_path: Path) -> None:
    (tmp_path / ".blobs").mkdir()
    (tmp_path / ".blobs" / "1f3a").write_text("Some text.", encoding="utf-8")
    (tmp_path / "a.txt").symlink_to(tmp_path / ".blobs" / "1f3a")
    (document,) = Reader(find_files([tmp_path])).documents()
    assert document.uri == (tmp_path / ".blobs" / "1f3a").resolve().as_posix()


def test_pipes_devices_and_sockets_are_skipped_as_such_and_never_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.md"))
        listing = find_files([tmp_path, Path(os.devnull)])
    assert [Path(skipped.uri).name for skipped in listing.skipped] == ["pipe.txt", "socket.md", "null"]
    for skipped in listing.skipped:
        assert skipped.reason == "unreadable"
        assert "is a pipe, a device or a socket, not a regular file" in skipped.message
    assert listing.files == listing.unsupported == ()


def test_missing_paths_are_all_named(tmp_path: Path) -> None:
    _make(tmp_path, "a.txt")
    with pytest.raises(InputError, match=r"no such file or folder: .*b\.txt, .*c; check"):
        find_files([tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c"])
    with pytest.raises(InputError, match="no such file or folder: "):
        find_files([tmp_path / ("long" * 100)])  # the system refuses to look


def test_folder_without_permission_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make(tmp_path, "a.txt", "locked/b.txt")
    listdir = os.listdir

    def denied(folder: Path) -> list[str]:
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied")
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", denied)  # the tests may run as root, whom no mode keeps out
    listing = find_files([tmp_path])
    assert _names(listing.files, tmp_path) == ["a.txt"]
    assert [skipped.message.partition(": ")[2] for skipped in listing.skipped] == [
        "cannot be looked at: Permission denied"
    ]


def test_deep_folders(tmp_path: Path) -> None:
    """The walk does not recurse: with a stack shorter than the folders are deep, it still gets to the bottom."""
    _make(tmp_path, "d/" * 150 + "a.txt")
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 60)
    try:
        listing = find_files([tmp_path])
    finally:
        sys.setrecursionlimit(usual)
    assert len(listing.files) == 1


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make(tmp_path, "docs/a.txt")
    monkeypatch.chdir(tmp_path)
    assert find_files([Path("docs")]).files == (tmp_path / "docs" / "a.txt",)
