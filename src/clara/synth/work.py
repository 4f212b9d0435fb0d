"""What one passage has so far, what it still lacks, and what the language model is to be told about it.

Plain bookkeeping between two rounds: asks nobody (see ``loop``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from clara.synth.checks import duplicates
from clara.synth.draft import Drafted
from clara.synth.drafts import KINDS, Draft, Fault, Kind, Pair, Rejection, Verdict
from clara.synth.settings import SynthSettings
from clara.synth.templates import Feedback
from clara.synth.verdicts import without, wrong_items

NOT_COVERED_REASON = "judge_not_covered"
TOO_FEW_PAIRS = "too_few_pairs"
NO_PARAPHRASE = "no_paraphrase"
_UNNAMED = ("some important facts of the passage",)


class Work:
    """The state of one passage between rounds.

    Attributes:
        draft: what is accepted so far.
        counted: everything that was not taken, by reason.
    """

    def __init__(self, settings: SynthSettings) -> None:
        self.draft = Draft()
        self.counted: Counter[str] = Counter()
        self._settings = settings
        self._rejected: dict[Kind, list[Rejection]] = {kind: [] for kind in KINDS}
        self._reopened: set[Kind] = set()
        self._missing: tuple[str, ...] = ()
        self._judge_fault = ""
        self._complex_tries = 0
        self._no_complex = False  # the language model says that the passage has none

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Accepted pairs of both kinds."""
        return self.draft.simple + self.draft.complex

    @property
    def ready(self) -> bool:
        """Whether there is enough to be judged."""
        enough = len(self.draft.simple) >= self._settings.min_pairs and bool(self.draft.paraphrase)
        return enough and not self._wants_complex()

    @property
    def shortcoming(self) -> str:
        """Why the passage would be dropped now."""
        if len(self.draft.simple) < self._settings.min_pairs:
            return TOO_FEW_PAIRS
        return self._judge_fault if self.draft.paraphrase and self._judge_fault else NO_PARAPHRASE

    def open_kinds(self) -> list[Kind]:
        """What is to be asked for next."""
        wanted: dict[Kind, bool] = {
            "simple_qa": len(self.draft.simple) < self._settings.min_pairs
            or bool(self._missing)
            or "simple_qa" in self._reopened,
            "complex_qa": self._wants_complex(),
            "paraphrase": not self.draft.paraphrase,
        }
        return [kind for kind in KINDS if wanted[kind]]

    def feedback(self, kind: Kind) -> Feedback:
        """What the language model is told about earlier attempts at ``kind``; nothing at the first."""
        missing = self._missing if kind == "simple_qa" else ()
        kept = () if kind == "paraphrase" else tuple(pair.question for pair in self.pairs)
        told = Feedback(kept, tuple(self._rejected[kind]), missing)
        return told if told.rejected or told.missing else Feedback()

    def take(self, kind: Kind, drafted: Drafted) -> None:
        """Add what a reply brought."""
        self._reopened.discard(kind)
        for rejection in drafted.rejections:
            self.note(rejection)
        if kind == "paraphrase":
            self.draft = replace(self.draft, paraphrase=drafted.paraphrase)
            return
        new = self._unrepeated(kind, drafted.pairs)
        if kind == "simple_qa":
            self.draft = replace(self.draft, simple=(self.draft.simple + new)[: self._settings.max_pairs])
            return
        self._complex_tries += 1
        self._no_complex = drafted.answered and not drafted.pairs and not drafted.rejections
        self.draft = replace(self.draft, complex=(self.draft.complex + new)[: self._settings.max_pairs])

    def note(self, rejection: Rejection) -> None:
        """Count a rejection, and remember it for the next attempt."""
        self.counted[rejection.fault.reason] += 1
        if rejection.kind == "judge":
            self._judge_fault = rejection.fault.reason
        else:
            self._rejected[rejection.kind].append(rejection)

    def apply(self, verdict: Verdict) -> None:
        """Take out what a verdict that does not pass calls wrong, remember what it misses."""
        wrong = wrong_items(verdict, self.draft)
        for rejection in wrong.values():
            self.note(rejection)
            self._judge_fault = rejection.fault.reason
            if rejection.kind != "judge":
                self._reopened.add(rejection.kind)
        self.draft = without(self.draft, frozenset(wrong))
        self._missing = verdict.missing or (() if verdict.covered else _UNNAMED)
        if self._missing:
            self.counted[NOT_COVERED_REASON] += 1
            self._judge_fault = NOT_COVERED_REASON

    def _wants_complex(self) -> bool:
        wanted = not self.draft.complex or "complex_qa" in self._reopened
        return wanted and not self._no_complex and self._complex_tries < self._settings.complex_rounds

    def _unrepeated(self, kind: Kind, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
        """The pairs less those that the other kind brought in the same round."""
        new: list[Pair] = []
        for pair in pairs:
            detail = duplicates.check_pair(pair, self.pairs)
            if detail is None:
                new.append(pair)
            else:
                self.note(Rejection(kind, f"Question: {pair.question}", Fault(duplicates.REASON, detail)))
        return tuple(new)
