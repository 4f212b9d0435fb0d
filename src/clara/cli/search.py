"""``clara search``: the best passages for a question, without an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from clara.cli.light import import_libraries
from clara.cli.options import DEFAULT_K, DEFAULT_STORE, FittingModel, JsonOption, KOption, ModeOption, StoreOption
from clara.cli.session import check_question, open_filled, without_model
from clara.cli.terminal import console, print_json, shown, snippet, write
from clara.records import Citation

_OF_AN_ANSWER = frozenset({"read_as", "tokens"})


def search(
    question: Annotated[str, typer.Argument(help="The question, in quotes.")],
    *,
    store: StoreOption = DEFAULT_STORE,
    choice: FittingModel,
    k: KOption = None,
    mode: ModeOption = "hybrid",
    as_json: JsonOption = False,
) -> None:
    """Find the best passages for a question.

    --mode text loads no model. --json prints a list, best first:

    \b
    [{"passage_id", "document", "start", "end", "score", "text"}]

    Higher scores are better: cosine or late interaction (latent), BM25 (text), reciprocal rank fusion (hybrid).
    """  # noqa: D301 - click keeps the lines of a paragraph that follows this character
    check_question(question)
    plain = mode == "text"
    import_libraries()
    from clara.answering import citation  # noqa: PLC0415

    with without_model(store) if plain else open_filled(store, choice, once=True) as rag:
        hits = rag.search(question, k or (DEFAULT_K if plain else rag.model.default_k), mode=mode)
    found = [citation(hit) for hit in hits]
    if as_json:
        print_json([{name: value for name, value in asdict(one).items() if name not in _OF_AN_ANSWER} for one in found])
    else:
        _show(found)


def _show(found: Sequence[Citation]) -> None:
    if not found:
        write("no passage was found; ask in other words, or use --mode hybrid")
        return
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    table.add_column("#", justify="right")
    table.add_column("score", justify="right")
    table.add_column("passage", overflow="fold")
    table.add_column("text", overflow="fold", ratio=1)
    for number, hit in enumerate(found, start=1):
        place = f"{shown(hit.document)}:{hit.start}-{hit.end}"
        table.add_row(str(number), f"{hit.score:.3f}", place, snippet(hit.text))
    console().print(table)
