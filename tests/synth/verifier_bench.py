"""How good the verifier without a language model is, on pairs that people wrote: the table in docs/synth.md.

    python tests/synth/verifier_bench.py DATA.jsonl[.gz] ...

Each file is a data set of ``passage_qa`` records. No model, no network. Each pair is shown to the
deterministic checks and the lexical judge twice: with its own passage (accepting is right) and with a wrong one
(rejecting is right). Two kinds of wrong passage: another one drawn at random, and, much harder, the most similar other
passage of the same data set.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clara.data import PassageQA, read_records
from clara.errors import ClaraError
from clara.synth.checks import LexicalJudge, _content_stems, check_pair
from clara.synth.drafts import DraftFault, Pair, SourcePassage
from clara.synth.settings import CheckSettings, LexicalSettings

POOLED = ("squad", "nq_qed", "nq_open", "clara_scp")
_SHARED_BY = 200  # a stem in more passages than this says nothing about which are alike


@dataclass(frozen=True, slots=True)
class VerifierScore:
    """Counts over pairs.

    Attributes:
        passages: passages used.
        pairs: pairs shown with each kind of passage.
        accepted: pairs accepted with their own passage.
        wrong_rejected: pairs rejected with a random other passage.
        similar_rejected: pairs rejected with the most similar other passage.
        reasons: rejections with their own passage, by reason.
    """

    passages: int
    pairs: int
    accepted: int
    wrong_rejected: int
    similar_rejected: int
    reasons: Mapping[str, int]

    @property
    def recall(self) -> float:
        """Share of right pairs that are accepted."""
        return self.accepted / self.pairs

    @property
    def precision(self) -> float:
        """Share of accepted pairs that are right, when half of the pairs offered are about another passage."""
        return self.accepted / (self.accepted + self.pairs - self.wrong_rejected)

    @property
    def rejection(self) -> float:
        """Share of pairs about another passage that are rejected."""
        return self.wrong_rejected / self.pairs

    @property
    def similar_rejection(self) -> float:
        """Share of pairs about the most similar other passage that are rejected."""
        return self.similar_rejected / self.pairs

    def __add__(self, other: VerifierScore) -> VerifierScore:
        return VerifierScore(
            self.passages + other.passages,
            self.pairs + other.pairs,
            self.accepted + other.accepted,
            self.wrong_rejected + other.wrong_rejected,
            self.similar_rejected + other.similar_rejected,
            Counter(self.reasons) + Counter(other.reasons),
        )


def score_verifier(
    records: Sequence[PassageQA], checks: CheckSettings, lexical: LexicalSettings, *, seed: int = 0
) -> VerifierScore:
    """Show each pair with its own passage and with two wrong ones.

    Args:
        records: at least two passages with pairs; the first answer of a pair is the one shown.
        checks: limits of the deterministic checks.
        lexical: limits of the lexical judge.
        seed: of the draw of wrong passages.
    """
    judge = LexicalJudge(lexical)
    passages = [SourcePassage(record.id, record.source, record.title, record.text) for record in records]
    strangers, neighbours = _strangers(passages, seed), _neighbours(passages)
    pairs = accepted = wrong = similar = 0
    reasons: Counter[str] = Counter()
    for place, record in enumerate(records):
        taken: list[Pair] = []
        for item in record.pairs:
            pair = Pair(item.question, item.answers[0])
            pairs += 1
            fault = verify(pair, passages[place], taken, checks, judge)
            if fault is None:
                taken.append(pair)
                accepted += 1
            else:
                reasons[fault.reason] += 1
            wrong += verify(pair, passages[strangers[place]], (), checks, judge) is not None
            similar += verify(pair, passages[neighbours[place]], (), checks, judge) is not None
    return VerifierScore(len(records), pairs, accepted, wrong, similar, reasons)


def verify(
    pair: Pair, passage: SourcePassage, taken: Sequence[Pair], checks: CheckSettings, judge: LexicalJudge
) -> DraftFault | None:
    """The verifier without a language model, for one pair: checks first, then the judge."""
    return check_pair(pair, passage, taken, checks) or judge.check_pair(pair, passage)


def _strangers(passages: Sequence[SourcePassage], seed: int) -> list[int]:
    """For each passage a random other one, of another title where there are titles."""
    order = list(range(len(passages)))
    random.Random(seed).shuffle(order)
    chosen = [0] * len(order)
    for step, place in enumerate(order):
        for further in range(1, len(order)):
            other = order[(step + further) % len(order)]
            if not passages[place].title or passages[other].title != passages[place].title:
                break
        chosen[place] = other
    return chosen


def _neighbours(passages: Sequence[SourcePassage]) -> list[int]:
    """For each passage the other one that shares most with it: rare content words, weighted by rarity."""
    stems = [set(_content_stems(passage.text)) for passage in passages]
    holders: defaultdict[str, list[int]] = defaultdict(list)
    for place, held in enumerate(stems):
        for stem in held:
            holders[stem].append(place)
    nearest = []
    for place, held in enumerate(stems):
        shared: Counter[int] = Counter()
        for stem in held:
            if 1 < len(holders[stem]) <= _SHARED_BY:
                for other in holders[stem]:
                    shared[other] += 1_000_000 // len(holders[stem])
        del shared[place]
        same_text = [other for other in shared if passages[other].text == passages[place].text]
        for other in same_text:
            del shared[other]
        nearest.append(max(shared, key=lambda other: (shared[other], -other)) if shared else (place + 1) % len(stems))
    return nearest


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
