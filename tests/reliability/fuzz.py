"""Damaged input for every reader: of documents, of data sets, of checkpoints. Each says what is wrong, or reads.

    python tests/reliability/fuzz.py --executions 1000000 --seconds 1500 --corpus .fuzz

An input is a real file of the format with some of its bytes changed, cut out, doubled or replaced by ones that formats
treat specially; of packages (DOCX and its like) often a part inside. A reader may give a text or raise one of the
package's own errors. Anything else is a finding: the input is kept in the corpus folder, and is run first next time.
Knows nothing of limits of time and memory: a file that takes longer than ten seconds counts as slow and is kept, too.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import random
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import rooms
from odt_files import make_odt
from official_folders import content
from pdf_files import make_drawn_pdf, make_pdf
from tiny_base import make as make_base  # type: ignore[import-not-found]  # scripts, which mypy is not given

from clara.config import CompressionConfig, LoraSettings
from clara.data import read_questions, read_records
from clara.errors import ClaraError
from clara.ingest import read_file
from clara.model import checkpoint
from clara.model.apple import format as official
from clara.model.backbone import read_tensors
from clara.samples import sample_folder

SLOW_SECONDS = 10
SPECIAL = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"<", b">", b"</", b"&#x0;", b"&#99999999;", b"<![CDATA[", b"<!DOCTYPE a [",
    b'"', b"'", b"[" * 5000, b"{" * 500, b"]", b"}", b"\\ud800", b"1e999", b"-1", b"NaN", b"4294967295", b"\r",
    b"\xe2\x80\xa8", b"=" * 70, b"| a |", b"---\n", b"\x1b[31m", b"/Encrypt", b"endstream", b"PK\x03\x04", b"%PDF-",
)  # fmt: skip


@dataclass
class Target:
    """A reader.

    Attributes:
        read: reads bytes.
        seeds: whole inputs.
        package: whether inputs are ZIP files, whose parts are changed as often as the file.
    """

    read: Callable[[bytes], object]
    seeds: list[bytes]
    package: bool = False


@dataclass
class Tally:
    """What a target's executions gave.

    Attributes:
        executions: all of them.
        refused: those that ended with one of the package's errors.
        found: others by kind of fault, and how many.
    """

    executions: int = 0
    refused: int = 0
    found: dict[str, int] = field(default_factory=dict)


class SlowError(BaseException):
    """An input took too long."""


def document_targets() -> Iterator[tuple[str, Target]]:
    """The readers of documents by suffix; what has no sample file is made here."""
    seeds: dict[str, list[bytes]] = {}
    for path in sorted([*sample_folder().iterdir(), *(rooms.TESTS.parent / "docs").glob("*.md")]):
        seeds.setdefault(path.suffix, []).append(path.read_bytes())
    html = b"<!DOCTYPE html><meta charset=utf-8><title>T</title><nav>menu</nav><h1>A</h1><p>Text <sup>2</sup><table>"
    html += b"<tr><td>1<td>2</table><ul><li>x<ol start=3><li>y</ol></ul><pre>a  b</pre><math><mfrac><mn>1</mn><mn>2"
    seeds |= {
        ".pdf": [make_pdf([["Bees fly.", "They hum."], ["Page two"]]), make_drawn_pdf(["BT /F1 12 Tf (x) Tj ET"])],
        ".odt": [make_odt("<text:p>Bees <text:span>fly</text:span></text:p><text:h>Head</text:h>", title="T")],
        ".html": [html, b"<p>" + html],
        ".xhtml": [
            b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><body><p>A<br/>b</p></body></html>'
        ],
        ".rst": [b"Title\n=====\n\n.. note:: x\n\n+---+---+\n| a | b |\n+---+---+\n\n* item\n\n:doc:`x`\n"],
        ".csv": [b'name,height\nAda,3\n"a,b",4\n'],
        ".tsv": [b"name\theight\nAda\t3\n"],
        ".eml": [b"Subject: x\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/html\n\n<p>x\n--b"],
        ".py": [b"def f():\n    return 1\n"],
        "": [html, b"plain text", make_pdf([["x"]])],
        **{suffix: [data] for suffix, data in _packages().items()},
    }
    for suffix, files in seeds.items():
        package = files[0].startswith(b"PK")
        yield suffix or "no suffix", Target(_in_file(f"x{suffix}", lambda path: list(read_file(path))), files, package)


def _packages() -> dict[str, bytes]:
    """Small files of the formats that a library writes."""
    import docx  # noqa: PLC0415 - libraries of single formats
    import openpyxl  # noqa: PLC0415
    import pptx  # noqa: PLC0415

    made: dict[str, bytes] = {}
    letter = docx.Document()
    letter.add_heading("Bees")
    letter.add_paragraph("They fly.", style="List Number")
    letter.add_table(2, 2).cell(0, 0).text = "cell"
    book = openpyxl.Workbook()
    book.active.append(["name", 3, True])
    show = pptx.Presentation()
    show.slides.add_slide(show.slide_layouts[0]).shapes.title.text = "Bees"
    for suffix, saved in ((".docx", letter), (".xlsx", book), (".pptx", show)):
        data = io.BytesIO()
        saved.save(data)
        made[suffix] = data.getvalue()
    made[".epub"] = packed(
        {
            "mimetype": b"application/epub+zip",
            "META-INF/container.xml": b'<container><rootfiles><rootfile full-path="a.opf"/></rootfiles></container>',
            "a.opf": b'<package><metadata><title>T</title></metadata><manifest><item id="c" href="c.xhtml" media-type='
            b'"application/xhtml+xml"/></manifest><spine><itemref idref="c"/></spine></package>',
            "c.xhtml": b"<html><body><h1>Bees</h1><p>They fly.</p></body></html>",
        }
    )
    return made


def data_targets() -> Iterator[tuple[str, Target]]:
    """The readers of data sets by the name of a file in their format."""
    for path in sorted((rooms.TESTS / "data" / "fixtures" / "formats").iterdir()):
        if path.is_file():
            seeds = [path.read_bytes()]
            yield f"questions {path.name}", Target(_in_file(path.name, read_questions), seeds)
    for name in ("passage_qa.jsonl", "multi_hop.jsonl"):
        seeds = [(rooms.TESTS / "data" / "fixtures" / name).read_bytes()]
        yield f"records {name}", Target(_in_file(name, lambda path: read_records(path, plain_passages=True)), seeds)


def checkpoint_targets(folder: Path) -> Iterator[tuple[str, Target]]:
    """The readers of both kinds of checkpoint by their files."""
    make_base(folder / "base")
    apple = content(folder / "base").write(folder / "apple")
    for name in (official.CONFIG, official.ADAPTERS, official.LAYERS):
        yield f"official {name}", Target(_in_copy(apple, name, official.read), [(apple / name).read_bytes()])
    manifest = checkpoint.Manifest(
        base_model="x",
        base_identity="0" * 16,
        hidden_size=32,
        compression=CompressionConfig(window_tokens=32, rates=(4,)),
        lora=LoraSettings(),
        roles=("compressor", "generator"),
    )
    text = manifest.model_dump_json(indent=2).encode()
    yield (
        "native clara.json",
        Target(_in_file(checkpoint.MANIFEST, lambda path: checkpoint.read_manifest(path.parent)), [text]),
    )
    tensors = next((folder / "base").glob("*.safetensors")).read_bytes()
    yield "native safetensors", Target(_in_file("x.safetensors", read_tensors), [tensors])


def _in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))

    def run(data: bytes) -> object:
        (folder / name).write_bytes(data)
        return read(folder / name)

    return run


def _in_copy(whole: Path, name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())

    def run(data: bytes) -> object:
        (folder / name).write_bytes(data)
        return read(folder)

    return run


def packed(parts: dict[str, bytes]) -> bytes:
    """A ZIP file."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content_ in parts.items():
            archive.writestr(name, content_)
    return data.getvalue()


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, cut out, doubled, or replaced by special ones."""
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        place = draw.randrange(len(made) + 1)
        length = min(draw.choice((1, 1, 2, 8, 64, 1024)), len(made) - place)
        kind = draw.randrange(5)
        if kind == 0:
            made[place : place + length] = draw.randbytes(length)
        elif kind == 1:
            del made[place : place + length]
        elif kind == 2:
            made[place:place] = made[place : place + length]
        elif kind == 3:
            made[place : place + draw.choice((0, length))] = draw.choice(SPECIAL)
        else:
            del made[place + length * 8 :]
    return bytes(made)


def damaged_package(data: bytes, draw: random.Random) -> bytes:
    """A package with one of its parts damaged; the package itself stays whole."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = draw.choice([name for name, part in parts.items() if part])
    parts[name] = damaged(parts[name], draw)
    return packed(parts)


def execute(target: Target, data: bytes, tally: Tally) -> str:
    """One execution; the kind of fault, or the empty string."""
    tally.executions += 1
    signal.setitimer(signal.ITIMER_REAL, SLOW_SECONDS)
    try:
        target.read(data)
    except ClaraError:
        tally.refused += 1
        return ""
    except SlowError:
        kind = "slow"
    except BaseException as error:  # the findings
        if isinstance(error, KeyboardInterrupt):
            raise
        kind = f"{type(error).__name__}: {str(error)[:80]}"
    else:
        return ""
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    tally.found[kind] = tally.found.get(kind, 0) + 1
    return kind


def fuzz(name: str, target: Target, *, executions: int, seconds: float, seed: int, corpus: Path | None) -> Tally:
    """Run a target: first what was kept of earlier findings, then new inputs."""
    tally, draw, deadline = Tally(), random.Random(f"{seed} {name}"), time.monotonic() + seconds
    own = corpus / name.replace(" ", "-").strip(".") if corpus is not None else None
    for path in sorted(own.iterdir()) if own is not None and own.is_dir() else ():
        execute(target, path.read_bytes(), tally)
    for seed_data in target.seeds:
        execute(target, seed_data, tally)
    while tally.executions < executions and time.monotonic() < deadline:
        data = draw.choice(target.seeds)
        inside = target.package and draw.random() < 0.7
        data = damaged_package(data, draw) if inside else damaged(data, draw)
        kind = execute(target, data, tally)
        if kind and own is not None and tally.found[kind] == 1:
            own.mkdir(parents=True, exist_ok=True)
            (own / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    return tally


def _too_slow(_signal: int, _frame: FrameType | None) -> None:
    raise SlowError


def run(executions: int, seconds: float, seed: int, corpus: Path | None) -> dict[str, Tally]:
    """All targets, each with its part of the executions and of the time."""
    signal.signal(signal.SIGALRM, _too_slow)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        targets = dict([*document_targets(), *data_targets(), *checkpoint_targets(Path(scratch))])
        each = -(-executions // len(targets))
        return {
            name: fuzz(name, target, executions=each, seconds=seconds / len(targets), seed=seed, corpus=corpus)
            for name, target in targets.items()
        }


def main() -> int:
    """Run the targets and print what they gave."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=1500.0, help="stop after this long, with what was run by then")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, default=None, help="folder of findings")
    given = parser.parse_args()
    tallies = run(given.executions, given.seconds, given.seed, given.corpus)
    for name, tally in tallies.items():
        print(f"{name}: {tally.executions} executions, {tally.refused} refused", *tally.found.items())  # noqa: T201
    total = sum(tally.executions for tally in tallies.values())
    found = sum(sum(tally.found.values()) for tally in tallies.values())
    print(f"all: {len(tallies)} readers, {total} executions, {found} findings")  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
