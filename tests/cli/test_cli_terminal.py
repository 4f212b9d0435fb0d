"""What reaches a terminal: no control sequence of others, whatever width it has; and outputs that take nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from calling import Called, Clara, on_a_terminal

from clara.cli import main
from clara.cli.terminal import bar, write_emphasised
from clara.index import LanceStore

pytest_plugins = ["cli_fixtures"]

STEERING = "\x1b]0;owned\x07\x1b[2J\x1b[31m\r\x08\x7f\x9b2J\x85\u202e"
SAID = r"\x1b]0;owned\x07\x1b[2J\x1b[31m"
# More than a control character in a hundred would make it binary data, which is not read.
ORDINARY = "Readers of ordinary documents look at them in ordinary ways and see what they look at. " * 16
TEXT = f"Colour test zqescx {STEERING} red text that clears the screen of its reader. {ORDINARY}"
NAME = "na\x1b[31mme\nx\x9by\u202etxt.txt"
_FOREIGN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
OWN = ("\x1b[1m", "\x1b[0m")
"""What an answer's quotation is shown with."""


@pytest.fixture(scope="module")
def steering(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of documents whose texts, titles and names would steer a terminal, and a file that is skipped."""
    folder = tmp_path_factory.mktemp("steering")
    (folder / "docs").mkdir()
    (folder / "docs" / NAME).write_text(TEXT, encoding="utf-8")
    (folder / "docs" / f"{NAME}.html").write_text(
        f"<title>Title {STEERING}</title><h1>Head {STEERING}</h1><p>{TEXT}</p>", encoding="utf-8"
    )
    (folder / "docs" / f"photo{NAME}.png").write_bytes(b"\x89PNG")
    assert main(["index", str(folder / "docs"), "--store", str(folder / "s"), "--model", str(tiny_checkpoint)]) == 0
    with LanceStore.open(folder / "s", None) as store:
        assert len(store.documents()) == 2
    return folder


def harmless(text: str) -> bool:
    for sequence in OWN:
        text = text.replace(sequence, "")
    return not _FOREIGN.search(text)


COMMANDS = pytest.mark.parametrize(
    "arguments",
    [
        ("index", "docs"),
        ("info", "--documents"),
        ("search", "zqescx", "--mode", "text"),
        ("search", f"zqescx {STEERING}"),
        ("ask", "zqescx", "--context", "text", "--wording", "quoted", "--max-new-tokens", "24"),
        ("ask", f"zqescx {STEERING}", "--wording", "free", "--max-new-tokens", "24"),
        ("remove", f"no such thing {STEERING}"),
        ("doctor",),
    ],
    ids=lambda arguments: " ".join(arguments[:2]).encode("ascii", "backslashreplace").decode()[:24],
)


@COMMANDS
def test_foreign_text_cannot_steer_the_terminal(
    clara: Clara, steering: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(steering)
    piped = clara(*arguments, "--store", "s")
    live = on_a_terminal(monkeypatch, "stdout", *arguments, "--store", "s")
    for called in (piped, live):
        assert harmless(called.out), ascii(called.out)
        assert harmless(called.err), ascii(called.err)


def test_what_is_escaped_can_be_seen(clara: Clara, steering: Path) -> None:
    shown = clara("search", "zqescx", "--store", steering / "s", "--mode", "text").out
    assert "Colour test zqescx" in shown, "its text was cleaned when it was read"
    assert r"na\x1b[31mme\nx\x9by\u202etxt.txt" in shown
    listed = clara("info", "--store", steering / "s", "--documents").out
    assert len(listed.splitlines()) == 7 + 1 + 2, "a name with a line break is one line"


def test_json_stays_exact_and_is_harmless_too(clara: Clara, steering: Path) -> None:
    called = clara("search", "zqescx", "--store", steering / "s", "--mode", "text", "--json")
    assert harmless(called.out)
    texts = {Path(hit["document"]).name: hit["text"] for hit in called.json()}
    assert texts[NAME].startswith("Colour test zqescx")
    assert "\x1b" not in texts[NAME], "its text was cleaned when it was read; its name is exact"


def test_a_question_looked_at_cannot_steer_the_terminal(clara: Clara, tiny_checkpoint: Path) -> None:
    called = clara("inspect", "--text", f"zqescx {STEERING}", "--model", tiny_checkpoint)
    assert called.code == 0
    assert harmless(called.out)
    assert SAID in called.out


def test_bars_show_foreign_words_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich's own sequences move the bar; those of a file name are only seen."""

    def drawn(*_: object) -> int:
        with bar("files") as show:
            assert show is not None
            show(1, 2, "\x1b]0;owned\x07")
        return 0

    monkeypatch.setattr("calling.main", drawn)
    live = on_a_terminal(monkeypatch, "stderr")
    assert "\x1b]0" not in live.out


def test_a_quotation_is_bold_on_a_terminal_and_marked_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "It was \x1b[2Jbuilt in 1889 by him."
    write_emphasised(text, 11, 24)
    assert "\x1b" not in capsys.readouterr().out.replace("\\x1b", "")
    monkeypatch.setattr("clara.cli.store.open_store", lambda _: write_emphasised(text, text.index("built"), len(text)))
    monkeypatch.delenv("NO_COLOR", raising=False)
    live = on_a_terminal(monkeypatch, "stdout", "info")
    assert live.out.startswith("    It was \\x1b[2J\x1b[1mbuilt in 1889 by him.\x1b[0m")


@pytest.mark.parametrize("columns", ["0", "1", "-5", "many"])
def test_a_width_that_cannot_be_is_no_reason_to_show_nothing(
    clara: Clara, store: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    called: tuple[Called, ...] = (
        clara("info", "--store", store),
        on_a_terminal(monkeypatch, "stdout", "info", "--store", store),
    )
    for shown in called:
        assert shown.code == 0
        assert "documents" in shown.out
        assert "unfinished" not in shown.out


def test_where_nobody_looks_a_name_stays_on_one_line(
    clara: Clara, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    name = "a-rather-long-name-of-a-file-" * 6 + ".txt"
    (tmp_path / name).write_text("The turbine of the mill was repaired in spring. " * 12, encoding="utf-8")
    clara("index", tmp_path / name, "--store", tmp_path / "s", "--model", tiny_checkpoint)
    lines = clara("search", "turbine", "--store", tmp_path / "s", "--mode", "text", "--k", 1).out.splitlines()
    assert len(lines) == 2
    assert name in lines[1]
    assert len(lines[1].rstrip()) > 160
    assert str(tmp_path / "s") in clara("info", "--store", tmp_path / "s").out.splitlines()[0]


@pytest.mark.parametrize("options", [(), ("--json",), ("--documents",)])
def test_a_full_output_is_one_line_and_no_bug(
    clara: Clara, store: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        called = clara("info", "--store", store, *options)
    assert (called.code, called.err) == (2, "clara: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        (">&-", 2, "clara: the output cannot be written: stdout is closed; give it a file, or /dev/null\n"),
        (">/dev/full", 2, "clara: the output cannot be written: No space left on device\n"),
        ("2>&-", 0, ""),
        ("<&-", 0, ""),
        ("2>/dev/full", 0, ""),
        ("| true; exit ${PIPESTATUS[0]}", 1, ""),
    ],
)
def test_streams_that_are_closed_or_full_or_unread(store: Path, redirected: str, code: int, said: str) -> None:
    """In a process of its own: what Python says at its very end counts too."""
    line = f'"{sys.executable}" -m clara.cli info --documents --store "{store}" {redirected}'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)  # noqa: S607
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["", "--help", "--version", "info --help", "train scp --help", "doctor --json"])
def test_help_to_a_full_output_is_an_error_too(arguments: str, unbuffered: str) -> None:
    """The library that writes the help first tries the stream, and passes over what that raises."""
    line = f'PYTHONUNBUFFERED={unbuffered} "{sys.executable}" -m clara.cli {arguments} >/dev/full'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)  # noqa: S607
    assert (done.returncode, done.stderr) == (2, "clara: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize("mode", ["text", "latent", "hybrid"])
def test_more_passages_than_there_are_is_all_of_them(clara: Clara, store: Path, mode: str) -> None:
    passages = clara("info", "--store", store, "--json").json()["passages"]
    for k in (268_435_456, 1_073_741_824, 2**70):
        found = clara("search", "chess", "--store", store, "--mode", mode, "--k", k, "--json").json()
        assert len(found) == (passages if mode != "text" else len(found))
        assert found
