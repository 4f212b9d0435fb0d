"""``clara eval --bed``: the test bed. Options into a run, and its table; what is right is ``clara.evaluate.bed``'s."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clara.cli.evaluation import origin_of
from clara.cli.options import ModelChoice
from clara.cli.session import load_model, make_folder, resolved
from clara.cli.terminal import bar, console, note, print_json, table

if TYPE_CHECKING:
    from clara.evaluate.bed import BedScore

_DEFAULT_BED = Path("benchmarks/manuals")


@dataclass(frozen=True, slots=True)
class BedChoice:
    """What the user said about the test bed."""

    bed: Annotated[
        bool, typer.Option("--bed", help="Index a test bed's documents and ask its questions: --data is its folder.")
    ] = False
    bed_docs: Annotated[
        Path, typer.Option(metavar="DIR", help="Of --bed: the documents that its fetch.py brought.")
    ] = Path(".bed")
    bed_system: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Of --bed: default, memory, text, bm25-plain, closed-book; may be given again. All by default.",
        ),
    ] = None
    half: Annotated[
        Literal["tuning", "reporting", "all"], typer.Option(help="Of --bed: which half of the questions.")
    ] = "reporting"


def ask_bed(asked: BedChoice, data: str | None, *, out: Path | None, choice: ModelChoice, as_json: bool) -> None:
    """Ask a bed's questions and print how many answers are right.

    Args:
        asked: which questions, of whom.
        data: the folder with the questions; None for the product's own.
        out: folder for ``bed.json``, ``rows.jsonl`` (a line an answer, as they come) and the stores, which the next
            run then need not fill; None keeps nothing.
        choice: the model.
        as_json: print one JSON object instead of a table.

    Raises:
        ClaraError: something the user gave cannot be used.
    """
    from clara.evaluate.bed import SYSTEMS, read_bed, run_bed, score_bed  # noqa: PLC0415
    from clara.evaluate.report import write_whole  # noqa: PLC0415

    half = asked.half
    folder = Path(data) if data is not None else _DEFAULT_BED
    collections = read_bed(folder, asked.bed_docs, half=None if half == "all" else half)
    if out is not None:
        make_folder(out)
    choice = resolved(choice)
    model = load_model(choice)
    with _folder(out) as kept, (kept / "rows.jsonl").open("w", encoding="utf-8") as file, bar("answers") as show:
        rows = []
        stores = kept / "stores"
        for row in run_bed(collections, model, stores, asked.bed_system or tuple(SYSTEMS), on_progress=show):
            rows.append(row)
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
            file.flush()  # a run of an hour that is stopped keeps what it has
    scores = score_bed(rows)
    origin = origin_of(model, choice.device)
    value = {
        "half": half,
        "model": model.name,
        "provenance": origin.to_json(),
        "scores": [asdict(score) for score in scores],
    }
    if out is not None:
        write_whole(out / "bed.json", json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        note(f"answers: {out / 'rows.jsonl'}")
    if as_json:
        print_json(value)
    else:
        _show(scores)


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="clara-bed-") as scratch:
        yield Path(scratch)


def _show(scores: Sequence[BedScore]) -> None:
    counted = ["right", "wrong", "abstained", "of", "exact", "anywhere", "refused", "of"]
    shown = table("system", "collection", *counted, "found 1/3/5", "tokens", "seconds", words=2)
    for score in scores:
        counts = (score.right, score.wrong, score.abstained, score.answerable, score.exact, score.anywhere)
        shown.add_row(
            score.system,
            score.collection,
            *map(str, (*counts, score.refused, score.unanswerable)),
            "" if score.found is None else "/".join(map(str, score.found)),
            f"{score.prompt_tokens:,.0f}",
            f"{score.seconds:.1f}",
            end_section=score.collection == "total",
        )
    console().print(shown)
