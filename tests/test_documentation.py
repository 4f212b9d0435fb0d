"""The code and the commands of README.md and docs/ work as they stand there, with the embedded model."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from clara.cli import application, main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "cli.md")]
_BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """Bodies of a page's fenced blocks in one language."""
    return [
        found["body"] for found in _BLOCK.finditer(page.read_text(encoding="utf-8")) if found["language"] == language
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds what a clone holds, and no store."""
    shutil.copytree(ROOT / "src" / "clara" / "samples", tmp_path / "src" / "clara" / "samples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
@pytest.mark.usefixtures("folder")
def test_python(page: str) -> None:
    """Blocks run one after another; the printed lines are those that comments announce, but for a score at the end."""
    code = "\n".join(blocks(ROOT / page, "python"))
    names: dict[str, object] = {"__name__": "documentation"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, page, "exec"), names)  # noqa: S102 - our own pages
    lines = iter(printed.getvalue().splitlines())
    announced = re.findall(r"^ *print\(.*\)  # (.+)$", code, re.MULTILINE)
    assert announced
    for wanted in announced:
        assert any(re.sub(r" 0\.\d+$", "", line) == wanted for line in lines), (wanted, printed.getvalue())


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_first_commands_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    """Each ends well and prints the lines that stand below it."""
    block = blocks(ROOT / "README.md", "console")[0]
    commands = re.findall(r"^\$ clara (.+)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    assert len(commands) >= 4
    for command, shown in commands:
        capsys.readouterr()
        assert main(shlex.split(command)) == 0, command
        printed = " ".join(capsys.readouterr().out.split())
        for line in shown.splitlines():
            assert " ".join(line.split()) in printed, (command, printed)


def commands_of(page: Path) -> Iterator[list[str]]:
    """Words of every ``clara`` command in a page's blocks, fenced or indented, and in its inline code."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^ *(?:\$ )?(clara [a-z].*)$", text, re.MULTILINE)
    inline = re.findall(r"`(clara [a-z][^`]*)`", " ".join(text.split()))
    for line in [*lines, *inline]:
        if re.match(r"clara [a-z-]+( |$)", line):
            yield line.split("#")[0].replace("…", " ").replace("'", "").replace('"', "").split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    root = typer.main.get_command(application())
    unknown = []
    for words in commands_of(page):
        command = root
        rest = words[1:]
        while rest and hasattr(command, "commands"):
            alternatives = rest[0].split("|")
            if any(name not in command.commands for name in alternatives):
                unknown.append(" ".join(words))
                break
            command, rest = command.commands[alternatives[0]], rest[1:]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        given = [word.split("=")[0] for word in rest if word.startswith("--")]
        unknown += [f"{' '.join(words[:3])} {option}" for option in given if option not in known]
    assert not unknown


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []
    paths = re.findall(r"`((?:src|docs|recipes|scripts|examples|benchmarks|tests)/[\w./-]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
