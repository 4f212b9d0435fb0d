"""Requests to the language model and its replies: prompts, the replies' contract, and their records.

Prompts are files, ``prompts/*.txt``, each named by its hash in every record; a folder of files of the same names can
replace them.

The contract: ``{"pairs": [{"question", "answer"}]}`` for both kinds of questions, ``{"paraphrase"}``, and for the
judge ``{"consistent": bool, "covered": bool, "missing": [str], "wrong": [str]}``. Tolerated: prose, code fences and
reasoning around the object (the last object of the shape counts: earlier ones are drafts and echoes of the prompt),
further keys, spare commas, Python's spelling, a list of pairs without its wrapper, a reply cut off after some whole
pairs. Reasons counted: ``reply_empty``, ``reply_not_json``, ``reply_truncated``, ``reply_wrong_shape``.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import string
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from clara.errors import ConfigError

Kind = Literal["simple_qa", "complex_qa", "paraphrase"]

_SLOTS = {
    "system": frozenset[str](),
    "simple_qa": frozenset({"title", "passage"}),
    "complex_qa": frozenset({"title", "passage"}),
    "paraphrase": frozenset({"title", "passage"}),
    "judge": frozenset({"title", "passage", "items"}),
    "again_pairs": frozenset({"kept", "rejected", "missing"}),
    "again_paraphrase": frozenset({"rejected"}),
}
_NOTHING = "(none)"
_SHOWN_REJECTIONS = 12  # the latest; a longer list buries the passage

# Some chat templates open the reasoning in the prompt, so that only its end is in the reply.
_REASONING = re.compile(r"\A.*</think(?:ing)?>|<think(?:ing)?>.*\Z", re.DOTALL)
_OPENING = re.compile(r"[{\[]")
_SPARE_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])', re.DOTALL)
_MOST_FAILURES = 256  # a degenerate reply ("[[[[[…") would take time that grows with its square
_MOST_LITERAL = 50_000  # characters; what Python's own parser is given
_NO_REMARK = frozenset({"", "none", "nothing", "n/a"})  # how models fill a list that should be empty


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_STRING, _BOOLEAN = {"type": "string"}, {"type": "boolean"}
_PAIRS = _object({"pairs": _list(_object({"question": _STRING, "answer": _STRING}))})
SCHEMAS: Mapping[str, dict[str, Any]] = {
    "simple_qa": _PAIRS,
    "complex_qa": _PAIRS,
    "paraphrase": _object({"paraphrase": _STRING}),
    "verdict": _object(
        {"consistent": _BOOLEAN, "covered": _BOOLEAN, "missing": _list(_STRING), "wrong": _list(_STRING)}
    ),
}
"""JSON schemas of replies by kind of request."""


@dataclass(frozen=True, slots=True)
class SourcePassage:
    """A passage to write questions about; its id, unique within a run, names the record written.

    The title is its document's, or empty; ``document`` is shared by neighbours, and empty where it stands alone.
    """

    id: str
    source: str
    title: str
    text: str
    document: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A question with its answer."""

    question: str
    answer: str

    def __str__(self) -> str:
        return f"Question: {self.question} Answer: {self.answer}"


@dataclass(frozen=True, slots=True)
class DraftFault:
    """A reason for rejecting an item: a short name that is counted, and words that the language model can act on."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """A rejected item of a reply, as shown to the language model when it is asked again; empty for a whole reply.

    ``kind`` is that of the request, ``judge`` for the judge's own reply.
    """

    kind: Kind | Literal["judge"]
    item: str
    fault: DraftFault


@dataclass(frozen=True, slots=True)
class Draft:
    """The accepted items of a passage."""

    simple: tuple[Pair, ...] = ()
    complex: tuple[Pair, ...] = ()
    paraphrase: str = ""

    def items(self) -> dict[str, str]:
        """The items as the judge sees them, by label: ``S1`` … ``C1`` … ``P``."""
        items = {f"S{i}": str(pair) for i, pair in enumerate(self.simple, start=1)}
        items |= {f"C{i}": str(pair) for i, pair in enumerate(self.complex, start=1)}
        return items | ({"P": self.paraphrase} if self.paraphrase else {})

    def without(self, labels: AbstractSet[str]) -> Draft:
        """The draft without some items."""
        return Draft(
            tuple(pair for place, pair in enumerate(self.simple, start=1) if f"S{place}" not in labels),
            tuple(pair for place, pair in enumerate(self.complex, start=1) if f"C{place}" not in labels),
            "" if "P" in labels else self.paraphrase,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's opinion of a draft: the passage states all of it, and no salient fact of the passage is without a pair.

    ``wrong`` items begin with their labels (``S1``, ``C2``, ``P``).
    """

    consistent: bool
    covered: bool
    missing: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    @property
    def passes(self) -> bool:
        """The draft can be written as it is."""
        return self.consistent and self.covered and not (self.missing or self.wrong)


@dataclass(frozen=True, slots=True)
class Feedback:
    """Feedback for a further attempt, rejections oldest first; ``missing`` facts have no pair. Empty at the first."""

    kept: tuple[str, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Templates:
    """The prompt templates, by name (ConfigError: one is missing, or lacks a slot or has an unknown one)."""

    texts: Mapping[str, str]

    def __post_init__(self) -> None:
        faults = []
        for name, slots in _SLOTS.items():
            if name not in self.texts:
                faults.append(f"{name}.txt is missing")
                continue
            template = string.Template(self.texts[name])
            if not template.is_valid():
                faults.append(f"{name}.txt: a $ that opens no slot must be written $$")
            elif set(template.get_identifiers()) != slots:
                expected = ", ".join(sorted(f"${{{slot}}}" for slot in slots)) or "none"
                faults.append(f"{name}.txt: expected the slots {expected}, got {sorted(template.get_identifiers())}")
        if faults:
            raise ConfigError("prompt templates: " + "; ".join(faults))

    @classmethod
    def packaged(cls) -> Templates:
        """The templates that come with the package."""
        folder = resources.files("clara.synth") / "prompts"
        return cls({name: (folder / f"{name}.txt").read_text("utf-8") for name in _SLOTS})

    @classmethod
    def read(cls, folder: Path) -> Templates:
        """Templates from a folder; packaged ones in place of missing files.

        Raises:
            ConfigError: the folder or one of its files cannot be read, or a slot is missing or unknown.
        """
        if not folder.is_dir():
            raise ConfigError(f"no folder of prompt templates at {folder}")
        texts = dict(cls.packaged().texts)
        for name in _SLOTS:
            path = folder / f"{name}.txt"
            try:
                if path.exists():
                    texts[name] = path.read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"prompt template {path} cannot be read: {error}") from None
        return cls(texts)

    @property
    def hashes(self) -> dict[str, str]:
        """First 16 hex digits of each template's SHA-256."""
        return {name: hashlib.sha256(self.texts[name].encode()).hexdigest()[:16] for name in sorted(_SLOTS)}

    def draft(self, kind: Kind, passage: SourcePassage, feedback: Feedback) -> list[dict[str, str]]:
        """Chat messages that ask for one kind of draft."""
        prompt = self._fill(kind, title=passage.title or _NOTHING, passage=passage.text)
        if feedback != Feedback():
            rejected = [
                f"{item.item}\n  {item.fault.detail}" if item.item else item.fault.detail for item in feedback.rejected
            ]
            slots = {"rejected": _listed(rejected[-_SHOWN_REJECTIONS:])}
            if kind != "paraphrase":
                slots |= {"kept": _listed(feedback.kept), "missing": _listed(feedback.missing)}
            prompt += self._fill("again_paraphrase" if kind == "paraphrase" else "again_pairs", **slots)
        return self._messages(prompt)

    def judge(self, passage: SourcePassage, draft: Draft) -> list[dict[str, str]]:
        """Chat messages that ask for a verdict on a draft."""
        items = "\n".join(f"{label}. {text}" for label, text in draft.items().items())
        return self._messages(self._fill("judge", title=passage.title or _NOTHING, passage=passage.text, items=items))

    def _messages(self, prompt: str) -> list[dict[str, str]]:
        system = self._fill("system").strip()
        return [{"role": "system", "content": system}, {"role": "user", "content": prompt.strip()}]

    def _fill(self, name: str, **slots: str) -> str:
        return string.Template(self.texts[name]).substitute(slots)


@dataclass(frozen=True, slots=True)
class _PairsReply:
    """The usable pairs of a reply, with a fault for each other one, and for a broken contract."""

    pairs: tuple[Pair, ...]
    faults: tuple[DraftFault, ...] = ()


def parse_pairs(text: str, *, truncated: bool = False) -> _PairsReply:
    """Read a reply of pairs; of one that the server cut off (``truncated``) the whole pairs before the cut."""
    listed = (_last_object(text, "pairs") or {}).get("pairs")
    if listed is not None:
        return _pairs(listed, ())
    values = list(_values(text))
    for value in reversed(values):
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return _pairs(value, ())
    whole = [value for value in values if isinstance(value, dict) and "question" in value]
    if not whole:
        return _PairsReply((), (_bad(text, '{"pairs": [{"question", "answer"}]}', truncated=truncated),))
    if truncated:
        return _pairs(whole, (DraftFault("reply_truncated", "the reply was cut off; write fewer or shorter pairs"),))
    return _pairs(whole, (DraftFault("reply_not_json", "the reply as a whole was not valid JSON"),))


def parse_paraphrase(text: str, *, truncated: bool = False) -> str | DraftFault:
    """Read a reply that holds a paraphrase."""
    paraphrase = (_last_object(text, "paraphrase") or {}).get("paraphrase")
    if paraphrase is None:
        return _bad(text, '{"paraphrase": "…"}', truncated=truncated)
    if not isinstance(paraphrase, str) or not paraphrase.strip():
        return DraftFault("reply_wrong_shape", f'"paraphrase" must be a text, got {_shown(paraphrase)}')
    return _clean(paraphrase)


def parse_verdict(text: str, *, truncated: bool = False) -> Verdict | DraftFault:
    """Read a judge's reply; ``missing`` and ``wrong`` may be left out when empty."""
    shape = '{"consistent": true or false, "covered": true or false, "missing": […], "wrong": […]}'
    value = _last_object(text, "consistent", "covered")
    if value is None:
        return _bad(text, shape, truncated=truncated)
    consistent, covered = (_boolean(value[key]) for key in ("consistent", "covered"))
    missing, wrong = (_remarks(value.get(key)) for key in ("missing", "wrong"))
    if consistent is None or covered is None or missing is None or wrong is None:
        return DraftFault("reply_wrong_shape", f"expected {shape}, got {_shown(value)}")
    return Verdict(consistent, covered, missing, wrong)


def _pairs(items: object, faults: tuple[DraftFault, ...]) -> _PairsReply:
    if not isinstance(items, list):
        return _PairsReply((), (DraftFault("reply_wrong_shape", f'"pairs" must be a list, got {_shown(items)}'),))
    pairs: list[Pair] = []
    bad = list(faults)
    for item in items:
        question = item.get("question") if isinstance(item, dict) else None
        answer = item.get("answer", item.get("answers")) if isinstance(item, dict) else None
        if isinstance(answer, list) and answer:
            answer = answer[0]
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            answer = str(answer)
        if isinstance(question, str) and isinstance(answer, str) and question.strip() and answer.strip():
            pairs.append(Pair(_clean(question), _clean(answer)))
        else:
            bad.append(DraftFault("reply_wrong_shape", f'a pair needs "question" and "answer", got {_shown(item)}'))
    return _PairsReply(tuple(pairs), tuple(bad))


def _last_object(text: str, *keys: str) -> dict[str, Any] | None:
    """The last object in ``text`` that has all ``keys``; one that is not quite JSON only where there is no other."""
    for values in (_values(text), _nearly_json(text)):
        matching = [value for value in values if isinstance(value, dict) and all(key in value for key in keys)]
        if matching:
            return matching[-1]
    return None


def _values(text: str) -> Iterator[Any]:
    """The JSON objects and lists in ``text``, outermost first; a bracket that opens nothing valid is skipped."""
    text = _REASONING.sub("", text)
    decoder = json.JSONDecoder(strict=False)  # raw line breaks inside strings are common
    position = failures = 0
    while failures < _MOST_FAILURES and (match := _OPENING.search(text, position)):
        try:
            value, position = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            position, failures = match.end(), failures + 1
        else:
            yield value


def _nearly_json(text: str) -> Iterator[Any]:
    """Small models' near-JSON: objects with a spare comma, or in Python's spelling."""
    text = _REASONING.sub("", text)
    yield from _values(_SPARE_COMMA.sub(lambda match: match.group(1) or "", text))
    literal = text[text.find("{") : text.rfind("}") + 1]
    if len(literal) <= _MOST_LITERAL:
        try:
            with warnings.catch_warnings(action="ignore"):  # of odd escapes; nobody here wrote them
                yield ast.literal_eval(literal)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return


def _bad(text: str, expected: str, *, truncated: bool) -> DraftFault:
    stripped = _REASONING.sub("", text).strip()
    if not stripped:
        return DraftFault("reply_empty", f"expected {expected}, got an empty reply")
    if truncated:
        return DraftFault("reply_truncated", f"expected {expected}; the reply was cut off at its length limit")
    reason = "reply_not_json" if next(_values(stripped), None) is None else "reply_wrong_shape"
    return DraftFault(reason, f"expected {expected}, got {_shown(stripped)}")


def _boolean(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}.get(value.strip().lower()) if isinstance(value, str) else None


def _remarks(value: object) -> tuple[str, ...] | None:
    """The texts of a list of remarks, or None if it is no such list; a remark in parts is put together."""
    items = value or []
    if not isinstance(items, list):
        return None
    texts: list[str] = []
    for item in items:
        parts: Iterable[object] = (
            item.values() if isinstance(item, dict) else item if isinstance(item, list) else [item]
        )
        texts.append(_clean(": ".join(str(part) for part in parts if part is not None)))
    return tuple(text for text in texts if text.strip(" .").lower() not in _NO_REMARK)


def _clean(text: str) -> str:
    """Without control characters, lone surrogates and outer white space."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(char for char in text if char.isprintable() or char in "\n\t").strip()


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return repr(text[:120] + ("…" if len(text) > 120 else ""))


def _listed(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items) or _NOTHING
