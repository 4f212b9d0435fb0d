"""The shapes of the language model's replies: JSON schemas to ask with, and a parser that forgives the wrapping.

The contract: ``{"pairs": [{"question", "answer"}]}`` for both kinds of questions, ``{"paraphrase"}``, and for the
judge ``{"consistent": bool, "covered": bool, "missing": [str], "wrong": [str]}``. Forgiven: prose, code fences and
reasoning around the object (the last object of the shape counts: what comes before it are drafts and echoes of the
prompt), further keys, commas too many, Python's spelling, a list of pairs without its wrapper, a reply that was cut
off after some whole pairs. Whether the content is any good is not asked here (see ``checks`` and ``judges``).

Reasons counted: ``reply_empty``, ``reply_not_json``, ``reply_truncated``, ``reply_wrong_shape``.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from clara.synth.drafts import DraftFault, Pair, Verdict

# Some chat templates open the reasoning in the prompt, so that only its end is in the reply.
_REASONING = re.compile(r"\A.*</think(?:ing)?>|<think(?:ing)?>.*\Z", re.DOTALL)
_OPENING = re.compile(r"[{\[]")
_SPARE_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])', re.DOTALL)
_MOST_FAILURES = 256  # a degenerate reply ("[[[[[…") would take time that grows with its square
_MOST_LITERAL = 50_000  # characters; what Python's own parser is given
_NO_REMARK = frozenset({"", "none", "nothing", "n/a"})  # how models fill a list that should be empty
_PAIR = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
    "additionalProperties": False,
}
_STRINGS = {"type": "array", "items": {"type": "string"}}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


PAIRS_SCHEMA = _object({"pairs": {"type": "array", "items": _PAIR}})
PARAPHRASE_SCHEMA = _object({"paraphrase": {"type": "string"}})
VERDICT_SCHEMA = _object(
    {"consistent": {"type": "boolean"}, "covered": {"type": "boolean"}, "missing": _STRINGS, "wrong": _STRINGS}
)


@dataclass(frozen=True, slots=True)
class PairsReply:
    """The pairs of a reply, and what of it could not be used."""

    pairs: tuple[Pair, ...]
    faults: tuple[DraftFault, ...] = ()


def parse_pairs(text: str, *, truncated: bool = False) -> PairsReply:
    """Read a reply of question-answer pairs.

    Args:
        text: the reply.
        truncated: the server cut it off at its length limit; whole pairs before the cut are kept.

    Returns:
        The usable pairs, with a fault for each unusable one and for the reply if it broke the contract.
    """
    found = _find(text, "pairs")
    if found is not None:
        return _pairs(found, ())
    values = list(_values(text))
    bare = next((value for value in reversed(values) if _is_list_of_objects(value)), None)
    if bare is not None:
        return _pairs(bare, ())
    whole = [value for value in values if isinstance(value, dict) and "question" in value]
    if not whole:
        return PairsReply((), (_bad(text, '{"pairs": [{"question", "answer"}]}', truncated=truncated),))
    if truncated:
        return _pairs(whole, (DraftFault("reply_truncated", "the reply was cut off; write fewer or shorter pairs"),))
    return _pairs(whole, (DraftFault("reply_not_json", "the reply as a whole was not valid JSON"),))


def parse_paraphrase(text: str, *, truncated: bool = False) -> str | DraftFault:
    """Read a reply that holds a paraphrase."""
    found = _find(text, "paraphrase")
    if found is None:
        return _bad(text, '{"paraphrase": "…"}', truncated=truncated)
    if not isinstance(found, str) or not found.strip():
        return DraftFault("reply_wrong_shape", f'"paraphrase" must be a text, got {_shown(found)}')
    return _clean(found)


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


def _pairs(items: object, faults: tuple[DraftFault, ...]) -> PairsReply:
    if not isinstance(items, list):
        return PairsReply((), (DraftFault("reply_wrong_shape", f'"pairs" must be a list, got {_shown(items)}'),))
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
    return PairsReply(tuple(pairs), tuple(bad))


def _find(text: str, key: str) -> object | None:
    """The value under ``key`` of the last JSON object in ``text`` that has it."""
    found = _last_object(text, key)
    return None if found is None else found[key]


def _last_object(text: str, *keys: str) -> dict[str, Any] | None:
    """The last object in ``text`` that has all ``keys``; one that is not quite JSON only where there is no other."""
    for values in (_values(text), _nearly_json(text)):
        found = [value for value in values if isinstance(value, dict) and all(key in value for key in keys)]
        if found:
            return found[-1]
    return None


def _values(text: str) -> Iterator[Any]:
    """The JSON objects and lists in ``text``, outermost first; a bracket that opens nothing valid is stepped over."""
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
    """What small models write for JSON: objects with a comma after the last item, or spelled as Python does."""
    text = _REASONING.sub("", text)
    yield from _values(_SPARE_COMMA.sub(lambda match: match.group(1) or "", text))
    literal = text[text.find("{") : text.rfind("}") + 1]
    if len(literal) <= _MOST_LITERAL:
        try:
            with warnings.catch_warnings(action="ignore"):  # of odd escapes; nobody here wrote them
                yield ast.literal_eval(literal)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _bad(text: str, expected: str, *, truncated: bool) -> DraftFault:
    stripped = _REASONING.sub("", text).strip()
    if not stripped:
        return DraftFault("reply_empty", f"expected {expected}, got an empty reply")
    if truncated:
        return DraftFault("reply_truncated", f"expected {expected}; the reply was cut off at its length limit")
    if next(_values(stripped), None) is not None:
        return DraftFault("reply_wrong_shape", f"expected {expected}, got {_shown(stripped)}")
    return DraftFault("reply_not_json", f"expected {expected}, got {_shown(stripped)}")


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
    """Without control characters, half characters (lone surrogates) and outer white space."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(char for char in text if char.isprintable() or char in "\n\t").strip()


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return repr(text[:120] + ("…" if len(text) > 120 else ""))
