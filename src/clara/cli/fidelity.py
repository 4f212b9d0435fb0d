"""``clara analyse fidelity``: passages restated from their memories. Measures are in ``clara.analysis.fidelity``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from clara.cli.evaluation import origin_of
from clara.cli.options import ModelChoice
from clara.cli.session import load_model, make_folder, resolved
from clara.cli.terminal import bar, console, note, print_json, table
from clara.errors import InputError

if TYPE_CHECKING:
    from clara.analysis.fidelity import Fidelity, TokenVectors


def measure(
    data: Path,
    rates: Sequence[int],
    *,
    limit: int | None,
    encoder: Path | None,
    out: Path | None,
    choice: ModelChoice,
    as_json: bool,
) -> None:
    """Measure how much of each passage its memory keeps, at each rate.

    Args:
        data: passages (our records or plain ones), or questions, whose gold documents are then the passages.
        rates: compression rates; empty is the model's default.
        limit: only the first passages.
        encoder: folder of an encoder for BERTScore, or None.
        out: folder for ``fidelity.json`` and ``fidelity.jsonl``.
        choice: the model.
        as_json: print one JSON object instead of a table.

    Raises:
        ClaraError: something the user gave cannot be used.
    """
    from clara.analysis.fidelity import measure_fidelity  # noqa: PLC0415
    from clara.analysis.harness import first_windows  # noqa: PLC0415
    from clara.data import read_records, write_jsonl  # noqa: PLC0415
    from clara.evaluate.report import write_whole  # noqa: PLC0415

    if out is None:
        raise InputError("--fidelity needs --out DIR for the restatements")
    reading = read_records(data, plain_passages=True)
    note(reading.summary())
    make_folder(out)
    choice = resolved(choice)
    model = load_model(choice)
    for served in rates:
        model.memory_tokens(served)  # refuses what the model does not serve, before the first rate is measured
    passages = first_windows(reading.records, model, limit)
    vectors = _vectors(encoder, choice.device) if encoder is not None else None
    results: list[Fidelity] = []
    for rate in rates or (None,):
        with bar("passages") as show:
            found = measure_fidelity(
                model, passages, rate=rate, vectors=vectors, on_progress=lambda done, total: show(done, total, "")
            )
        results.append(found)
    origin = origin_of(model, choice.device)
    subject = {"data": str(data), "data_sha256": reading.sha256, "model": model.name, "checkpoint": model.fingerprint}
    value = {**subject, "provenance": origin.to_json(), "results": [result.to_json() for result in results]}
    rows = ({"rate": result.rate, **asdict(row)} for result in results for row in result.rows)
    write_jsonl(out / "fidelity.jsonl", rows)
    write_whole(out / "fidelity.json", json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    if as_json:
        print_json(value)
    else:
        _show(results)


def _vectors(folder: Path, device: str) -> TokenVectors:
    from clara.analysis.fidelity import token_vectors  # noqa: PLC0415

    return token_vectors(folder, device=device)


def _show(results: Sequence[Fidelity]) -> None:
    shown = table("rate", "passages", "errors", "ROUGE-1", "ROUGE-L", "entities", "BERTScore")
    for result in results:
        shown.add_row(
            f"{result.rate}x" if result.rate is not None else "default",
            f"{result.n:,}",
            f"{result.errors:,}",
            f"{result.rouge1:.3f}",
            f"{result.rouge_l:.3f}",
            f"{result.entities:.3f}" if result.entities is not None else "",
            f"{result.bert_score:.3f}" if result.bert_score is not None else "",
        )
    console().print(shown)
