"""Measure the verifier of ``clara synth`` on pairs that people wrote: the table in docs/synth.md.

    python scripts/verify_bench.py DATA.jsonl[.gz] ...

Each file is a data set of ``passage_qa`` records. No model, no network.
"""

from __future__ import annotations

import sys
from pathlib import Path

from clara.data import read_records
from clara.errors import ClaraError
from clara.synth.bench import VerifierScore, score_verifier
from clara.synth.settings import CheckSettings, LexicalSettings

POOLED = ("squad", "nq_qed", "nq_open", "clara_scp")


def main(paths: list[Path]) -> None:
    """Write one row a file, and one over the files of the pooled target."""
    if not paths:
        sys.exit(__doc__)
    columns = ("data set", "passages", "pairs", "own accepted", "other rejected", "precision", "similar rejected")
    show(f"| {' | '.join(columns)} | most rejected for |")
    show(f"|---|{'---:|' * (len(columns) - 1)}---|")
    pooled: VerifierScore | None = None
    for path in paths:
        records = read_records(path).passage_qa
        if len(records) < 2 or not any(record.pairs for record in records):
            sys.exit(f"{path} holds {len(records)} passages; expected at least two, with questions")
        score = score_verifier(records, CheckSettings(), LexicalSettings())
        name = path.name.removesuffix(".gz").removesuffix(".jsonl")
        show(row(name, score))
        if name in POOLED:
            pooled = score if pooled is None else pooled + score
    if pooled is not None:
        show(row(f"pooled: {', '.join(POOLED)}", pooled))


def show(line: str) -> None:
    """One line to the terminal, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def row(name: str, score: VerifierScore) -> str:
    """One row of the table."""
    reasons = sorted(score.reasons.items(), key=lambda item: -item[1])[:2]
    shares = ", ".join(f"{reason} {count / score.pairs:.1%}" for reason, count in reasons)
    return (
        f"| {name} | {score.passages:,} | {score.pairs:,} | {score.recall:.1%} | {score.rejection:.1%} "
        f"| {score.precision:.1%} | {score.similar_rejection:.1%} | {shares} |"
    )


if __name__ == "__main__":
    try:
        main([Path(argument) for argument in sys.argv[1:]])
    except ClaraError as error:
        sys.exit(str(error))
