"""The rounds of a passage: ask, check, judge, and ask again for the open parts, until it is accepted or dropped.

``Drafter`` asks the language model, for drafts and for its judgement, and sorts the replies; ``_Work`` is a passage's
state, and its feedback to the language model. A judge names items by label (``S2: …``) or quotes them; a remark that
does neither leaves nothing that can be trusted.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from clara.synth.checks import (
    OFF_PASSAGE,
    LexicalJudge,
    check_duplicate,
    check_pair,
    check_paraphrase,
    share_found,
    words,
)
from clara.synth.client import ChatClient
from clara.synth.drafts import (
    Draft,
    DraftFault,
    Feedback,
    Kind,
    Pair,
    Rejection,
    SourcePassage,
    Templates,
    Verdict,
    parse_pairs,
    parse_paraphrase,
    parse_verdict,
)
from clara.synth.settings import SynthSettings

_FEWEST_OFF = 3  # pairs about something else
_MOST_OFF = 2 / 3  # of a reply's pairs; beyond that the others only happen to share words with the passage
_NOT_COVERED_REASON = "judge_not_covered"
_UNNAMED = ("some important facts of the passage",)
_LABEL = re.compile(r"\W*(?:item\s+)?([SC]\d+|P)\b[\s.:;,)\]–—-]*", re.IGNORECASE)
_SAME_ITEM = 0.8  # share of an item's words that a remark without its label must repeat to mean it
_FRAME = frozenset({"question", "answer"})  # words that a printed pair adds
_KINDS: Mapping[str, Kind] = {"S": "simple_qa", "C": "complex_qa", "P": "paraphrase"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a passage: its accepted draft, or the last one with the reason why it is dropped."""

    draft: Draft
    rounds: int
    rejections: Mapping[str, int]
    dropped: str = ""


@dataclass(frozen=True, slots=True)
class _Drafted:
    """The items of a reply; ``answered``: it kept to the contract, however good its content."""

    pairs: tuple[Pair, ...]
    paraphrase: str
    rejections: tuple[Rejection, ...]
    answered: bool


class Drafter:
    """Asks for drafts and checks each item, by the lexical judge too unless ``settings.judge`` leaves it out."""

    def __init__(self, client: ChatClient, templates: Templates, settings: SynthSettings) -> None:
        self._client = client
        self._templates = templates
        self._settings = settings
        self._lexical = None if settings.judge == "llm" else LexicalJudge(settings.lexical)

    async def work_out(self, passage: SourcePassage) -> Outcome:
        """Draft a passage until its judge accepts it, or ``settings.max_rounds`` are used up.

        Raises:
            LLMError: the server gives no reply (see ``ChatClient.ask``); the passage is not finished.
            BudgetSpentError: the same.
        """
        work = _Work(self._settings)
        for attempt in range(1, self._settings.max_rounds + 1):
            await self._ask_open(work, passage, attempt)
            if not work.ready:
                continue
            verdict = await self._judge(passage, work.draft, attempt)
            if isinstance(verdict, DraftFault):
                work.note(Rejection("judge", "", verdict))
            elif verdict.passes:
                return Outcome(work.draft, attempt, dict(work.counted))
            else:
                work.apply(verdict)
        return Outcome(work.draft, self._settings.max_rounds, dict(work.counted), work.shortcoming)

    async def _ask_open(self, work: _Work, passage: SourcePassage, attempt: int) -> None:
        """Ask for all open kinds at once."""
        kinds = work.open_kinds()
        replies = await asyncio.gather(
            *(self._draft(kind, passage, work.feedback(kind), work.pairs, attempt) for kind in kinds),
            return_exceptions=True,  # one fails: the others' replies are paid for, let them come in and be kept
        )
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        for kind, reply in zip(kinds, replies, strict=True):
            if not isinstance(reply, BaseException):
                work.take(kind, reply)

    async def _draft(
        self, kind: Kind, passage: SourcePassage, feedback: Feedback, taken: Sequence[Pair], attempt: int
    ) -> _Drafted:
        messages = self._templates.draft(kind, passage, feedback)
        temperature = self._settings.sampling.temperature
        reply = await self._client.ask(kind, messages, temperature=temperature, attempt=attempt)
        truncated = reply.finish_reason == "length"
        if kind == "paraphrase":
            return self._sort_paraphrase(reply.text, passage, truncated=truncated)
        return self._sort_pairs(kind, reply.text, passage, taken, truncated=truncated)

    async def _judge(self, passage: SourcePassage, draft: Draft, attempt: int) -> Verdict | DraftFault:
        """The verdict on a whole draft, or the fault of the judge's reply."""
        if self._lexical is not None and self._settings.judge == "lexical":
            return self._lexical.judge(passage, draft)
        messages = self._templates.judge(passage, draft)
        temperature = self._settings.sampling.judge_temperature
        reply = await self._client.ask("verdict", messages, temperature=temperature, attempt=attempt)
        return parse_verdict(reply.text, truncated=reply.finish_reason == "length")

    def _sort_pairs(
        self, kind: Kind, text: str, passage: SourcePassage, taken: Sequence[Pair], *, truncated: bool
    ) -> _Drafted:
        reply = parse_pairs(text, truncated=truncated)
        rejections = [Rejection(kind, "", fault) for fault in reply.faults]
        # What joins facts may compute its answer; whether rightly, only a language model can tell.
        inferred = kind == "complex_qa" and self._settings.judge != "lexical"
        accepted: list[Pair] = []
        for pair in reply.pairs:
            fault = check_pair(pair, passage, [*taken, *accepted], self._settings.checks, inferred=inferred)
            if fault is None and self._lexical:
                fault = self._lexical.check_pair(pair, passage, inferred=inferred)
            if fault is None and len(accepted) >= self._settings.max_pairs:
                fault = DraftFault("too_many_pairs", f"{self._settings.max_pairs} pairs are enough")
            if fault is None:
                accepted.append(pair)
            else:
                rejections.append(Rejection(kind, str(pair), fault))
        if self._lexical and _is_off_passage(rejections, len(accepted)):
            fault = DraftFault("reply_off_passage", "nearly all pairs of the reply are about something else")
            rejections += [Rejection(kind, str(pair), fault) for pair in accepted]
            accepted = []
        return _Drafted(tuple(accepted), "", tuple(rejections), answered=bool(reply.pairs) or not reply.faults)

    def _sort_paraphrase(self, text: str, passage: SourcePassage, *, truncated: bool) -> _Drafted:
        paraphrase = parse_paraphrase(text, truncated=truncated)
        if isinstance(paraphrase, DraftFault):
            return _Drafted((), "", (Rejection("paraphrase", "", paraphrase),), answered=False)
        fault = check_paraphrase(paraphrase, passage, self._settings.checks)
        if fault is None and self._lexical:
            fault = self._lexical.check_paraphrase(paraphrase, passage)
        if fault is None:
            return _Drafted((), paraphrase, (), answered=True)
        return _Drafted((), "", (Rejection("paraphrase", paraphrase, fault),), answered=True)


def _is_off_passage(rejections: Sequence[Rejection], accepted: int) -> bool:
    """So much of a reply is about something else that the rest is not to be trusted."""
    off = sum(rejection.fault.reason in OFF_PASSAGE for rejection in rejections)
    return off >= _FEWEST_OFF and off > _MOST_OFF * (off + accepted)


class _Work:
    """The state of one passage between rounds: the draft accepted so far, and rejections ``counted`` by reason."""

    def __init__(self, settings: SynthSettings) -> None:
        self.draft = Draft()
        self.counted: Counter[str] = Counter()
        self._settings = settings
        self._rejected: dict[Kind, list[Rejection]] = {kind: [] for kind in _KINDS.values()}
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
        """There is enough to be judged."""
        enough = len(self.draft.simple) >= self._settings.min_pairs and bool(self.draft.paraphrase)
        return enough and not self._wants_complex()

    @property
    def shortcoming(self) -> str:
        """The reason for dropping the passage now."""
        if len(self.draft.simple) < self._settings.min_pairs:
            return "too_few_pairs"
        return self._judge_fault if self.draft.paraphrase and self._judge_fault else "no_paraphrase"

    def open_kinds(self) -> list[Kind]:
        """The kinds to ask for next."""
        few = len(self.draft.simple) < self._settings.min_pairs
        is_open: dict[Kind, bool] = {
            "simple_qa": few or bool(self._missing) or "simple_qa" in self._reopened,
            "complex_qa": self._wants_complex(),
            "paraphrase": not self.draft.paraphrase,
        }
        return [kind for kind in _KINDS.values() if is_open[kind]]

    def feedback(self, kind: Kind) -> Feedback:
        """Feedback on earlier attempts at ``kind``; empty at the first."""
        missing = self._missing if kind == "simple_qa" else ()
        kept = () if kind == "paraphrase" else tuple(pair.question for pair in self.pairs)
        feedback = Feedback(kept, tuple(self._rejected[kind]), missing)
        return feedback if feedback.rejected or feedback.missing else Feedback()

    def take(self, kind: Kind, drafted: _Drafted) -> None:
        """Add the items of a reply."""
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
        """Remove the items that a verdict rejects, remember the facts it misses."""
        wrong = _wrong_items(verdict, self.draft)
        for rejection in wrong.values():
            self.note(rejection)
            self._judge_fault = rejection.fault.reason
            if rejection.kind != "judge":
                self._reopened.add(rejection.kind)
        self.draft = self.draft.without(wrong.keys())
        self._missing = verdict.missing or (() if verdict.covered else _UNNAMED)
        if self._missing:
            self.counted[_NOT_COVERED_REASON] += 1
            self._judge_fault = _NOT_COVERED_REASON

    def _wants_complex(self) -> bool:
        lacking = not self.draft.complex or "complex_qa" in self._reopened
        return lacking and not self._no_complex and self._complex_tries < self._settings.complex_rounds

    def _unrepeated(self, kind: Kind, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
        """The pairs without those that the other kind brought in the same round."""
        new: list[Pair] = []
        for pair in pairs:
            fault = check_duplicate(pair, self.pairs)
            if fault is None:
                new.append(pair)
            else:
                self.note(Rejection(kind, f"Question: {pair.question}", fault))
        return tuple(new)


def _wrong_items(verdict: Verdict, draft: Draft) -> dict[str, Rejection]:
    """The items that a verdict rejects, by label; all of them if it does not say which are wrong."""
    items = draft.items()
    if verdict.consistent and not verdict.wrong:
        return {}
    faults: dict[str, DraftFault] = {}
    unclear: list[str] = []
    for remark in verdict.wrong:
        match = _LABEL.match(remark)
        label = match.group(1).upper() if match else _quoted(remark, items)
        if label in items:
            why = remark[match.end() :].strip() if match else remark
            faults[label] = DraftFault("judge_wrong", why or "this is wrong")
        else:
            unclear.append(remark)
    if unclear or not faults:
        why = "; ".join(unclear) or "something here is not what the passage says"
        faults |= dict.fromkeys(items.keys() - faults.keys(), DraftFault("judge_inconsistent", why))
    return {label: Rejection(_KINDS[label[0]], items[label], fault) for label, fault in faults.items()}


def _quoted(remark: str, items: Mapping[str, str]) -> str:
    """The label of the item that a remark repeats, or the empty string."""
    said = set(words(remark))
    for label, text in items.items():
        repeated = [word for word in words(text) if word not in _FRAME]
        if share_found(repeated, said) >= _SAME_ITEM:
            return label
    return ""
