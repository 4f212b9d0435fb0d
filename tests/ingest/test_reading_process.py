"""Reading in a process of its own: what a file may take, and that no file takes the program along."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import docx
import psutil
import pytest
from pdf_files import make_form_bomb, make_pdf

from clara.errors import ConfigError
from clara.ingest import IngestReport, Reader, ReadLimits, document_uri, find_files
from clara.ingest.process import _OVER_MEMORY

_ROOMY = ReadLimits(memory_mb=8192, seconds=100)


@pytest.fixture
def bomb(tmp_path: Path) -> Path:
    """Far beyond any limit, with a readable file behind it."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.pdf").write_bytes(make_form_bomb(9))
    (tmp_path / "docs" / "b.pdf").write_bytes(make_pdf([["Bees fly."]]))
    return tmp_path / "docs"


def _read(folder: Path, limits: ReadLimits) -> tuple[list[str], IngestReport]:
    with Reader(find_files([folder]), limits=limits) as reader:
        texts = [document.text for document in reader.documents()]
        return texts, reader.report()


def _child() -> psutil.Process:
    (child,) = psutil.Process().children()
    return child


def _gone(pid: int, *, within: float = 20) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("limits", "reason", "message"),
    [
        (ReadLimits(memory_mb=256), "too large", "needs more than the 256 MiB of memory"),
        (
            ReadLimits(memory_mb=8192, seconds=1),
            "too slow",
            "takes longer than 1 s to read; split it, or raise the limit (clara index --max-seconds)",
        ),
    ],
)
def test_a_bomb_is_skipped_and_named_and_the_run_goes_on(
    bomb: Path, limits: ReadLimits, reason: str, message: str
) -> None:
    texts, report = _read(bomb, limits)
    assert texts == ["Bees fly."]
    (skipped,) = report.skipped
    assert (skipped.uri, skipped.reason) == (document_uri(bomb / "a.pdf"), reason)
    assert message in skipped.message
    assert psutil.Process().children() == []


def test_a_parser_that_crashes_takes_one_file_along(bomb: Path) -> None:
    reader = Reader(find_files([bomb]), limits=_ROOMY)
    documents = reader.documents()

    def crash() -> None:
        while not psutil.Process().children():
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(_child().pid, signal.SIGSEGV)

    thread = threading.Thread(target=crash)
    thread.start()
    assert [document.text for document in documents] == ["Bees fly."]
    thread.join()
    reader.close()
    (skipped,) = reader.report().skipped
    assert (skipped.reason, "its parser crashed (SIGSEGV)" in skipped.message) == ("broken", True)


@pytest.mark.parametrize("suffix", [".txt", ".md"])
def test_characters_of_a_document(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_text("Bees fly, and then they land.")
    texts, report = _read(tmp_path, ReadLimits(characters=20))
    assert texts == []
    assert report.skipped[0].message.endswith(
        "has 29 characters, the limit is 20; split it, or raise the limit (clara index --max-characters)"
    )


def test_a_text_that_outgrows_its_file(tmp_path: Path) -> None:
    source = docx.Document()
    source.add_paragraph("a" * 5_000_000)
    source.save(str(tmp_path / "a.docx"))
    texts, report = _read(tmp_path, _ROOMY)
    assert texts == []
    assert (report.skipped[0].reason, "characters of" in report.skipped[0].message) == ("too large", True)


def test_a_process_that_was_ended_between_two_files_is_started_again(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("One.")
    with Reader(find_files([tmp_path])) as reader:
        for _ in range(2):
            assert [document.text for document in reader.documents()] == ["One."]
            child = _child()
            child.kill()
            assert _gone(child.pid)
        assert reader.report().skipped == ()


def test_a_reader_that_stops_in_the_middle_of_a_file_reads_the_next(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "One."}\n' * 10_000)
    (tmp_path / "b.md").write_text("Two.")
    listing = find_files([tmp_path])
    with Reader(listing) as reader:
        records = reader.read(listing.files[0])
        assert isinstance(records, Iterator)
        assert next(records).text == "One."
        records.close()  # type: ignore[attr-defined] # a generator
        assert [document.text for document in reader.read(listing.files[1])] == ["Two."]
    assert psutil.Process().children() == []


def test_files_come_in_their_order_whatever_process_reads_them(tmp_path: Path) -> None:
    for number in range(10, 50):
        (tmp_path / f"{number}.md").write_text(f"Text {number}. " * (20_000 if number % 7 == 0 else 1))
    (tmp_path / "20.txt").write_text("Plain.")
    for number in (33, 50):
        (tmp_path / f"{number}.pdf").write_bytes(make_form_bomb(9))
    (tmp_path / "40.pdf").write_bytes(b"no PDF")
    listing = find_files([tmp_path])
    with Reader(listing, limits=ReadLimits(memory_mb=256)) as reader:
        names = [Path(document.uri).name for document in reader.documents()]
        report = reader.report()
    assert names == [path.name for path in listing.files if path.suffix != ".pdf"]
    assert [(Path(item.uri).name, item.reason) for item in report.skipped] == [
        ("33.pdf", "too large"),
        ("40.pdf", "broken"),
        ("50.pdf", "too large"),
    ]
    assert psutil.Process().children() == []


def test_files_may_be_read_in_any_order(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.md").write_text(f"Text {number}.")
    listing = find_files([tmp_path])
    with Reader(listing) as reader:
        for number in (3, 1, 2, 2, 39, 0):
            assert [document.text for document in reader.read(listing.files[number])] == [f"Text {number}."]


def test_ctrl_c_is_the_parents_matter(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("One.")
    with Reader(find_files([tmp_path])) as reader:
        assert len(list(reader.documents())) == 1
        child = _child()
        child.send_signal(signal.SIGINT)
        assert len(list(reader.documents())) == 1
        assert _child().pid == child.pid


def test_a_reader_that_is_let_go_ends_its_process(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("One.")
    assert len(list(Reader(find_files([tmp_path])).documents())) == 1
    assert psutil.Process().children() == []


_PARENT = """
import sys, threading, time
from pathlib import Path
import psutil
from clara.ingest import Reader, ReadLimits, find_files

def tell():
    while not (children := psutil.Process().children()):
        time.sleep(0.01)
    time.sleep(0.5)
    print(children[0].pid, flush=True)

threading.Thread(target=tell, daemon=True).start()
reader = Reader(find_files([Path(sys.argv[1])]), limits=ReadLimits(memory_mb=8192, seconds=100))
list(reader.documents())
"""


def test_the_process_ends_with_a_parent_that_is_killed(bomb: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT, str(bomb)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    assert _gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_process_inherits_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("One.")
    with (tmp_path / "lock").open("w") as lock, Reader(find_files([tmp_path])) as reader:
        os.set_inheritable(lock.fileno(), True)  # noqa: FBT003 - the call's own form
        assert len(list(reader.documents())) == 1
        held = {os.readlink(entry) for entry in Path(f"/proc/{_child().pid}/fd").iterdir()}  # noqa: PTH115 - names of pipes
        assert str(tmp_path / "lock") not in held


def test_a_large_program_has_small_readers(tmp_path: Path) -> None:
    """What the system calls the most memory of a process begins with what its parent holds."""
    held = bytearray(300 * 2**20)
    held[:: resource.getpagesize()] = b"1" * len(held[:: resource.getpagesize()])
    (tmp_path / "a.md").write_text("One.")
    with Reader(find_files([tmp_path]), limits=ReadLimits(memory_mb=256)) as reader:
        assert len(list(reader.documents())) == 1
        child = _child()
        assert len(list(reader.documents())) == 1
        assert _child().pid == child.pid


def test_memory_is_watched_where_the_kernel_does_not_limit_it() -> None:
    program = (
        "from clara.ingest.process import _watch_memory\n"
        "import time\n"
        "_watch_memory(64 * 2**20)\n"
        "kept = [bytearray(2**20) for _ in range(32)]\n"
        "time.sleep(0.3)\n"
        "print('below', flush=True)\n"
        "kept += [bytearray(2**20) for _ in range(256)]\n"
        "time.sleep(30)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (_OVER_MEMORY, b"below\n")


def test_limits_name_all_their_faults() -> None:
    with pytest.raises(ConfigError, match=r"memory_mb must be at least 256, got 1; seconds must be at least 1, got 0"):
        ReadLimits(memory_mb=1, seconds=0)
