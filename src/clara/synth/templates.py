"""The prompts, as files: loaded, filled in, and named by their hash so that a record tells which it was made with.

The wording is in ``prompts/*.txt``; a folder of files of the same names can take its place.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from clara.errors import ConfigError
from clara.synth.drafts import Draft, Kind, Pair, Rejection, SourcePassage

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


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a further attempt is told.

    Attributes:
        kept: questions that are already accepted.
        rejected: what was not accepted, oldest first.
        missing: facts of the passage that no pair covers.
    """

    kept: tuple[str, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether this is a first attempt."""
        return not (self.kept or self.rejected or self.missing)


@dataclass(frozen=True, slots=True)
class Templates:
    """The prompt templates.

    Attributes:
        texts: template text by name.
    """

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
                wanted = ", ".join(sorted(f"${{{slot}}}" for slot in slots)) or "none"
                faults.append(f"{name}.txt: expected the slots {wanted}, got {sorted(template.get_identifiers())}")
        if faults:
            raise ConfigError("prompt templates: " + "; ".join(faults))

    @property
    def hashes(self) -> dict[str, str]:
        """First 16 hex digits of each template's SHA-256."""
        return {name: hashlib.sha256(self.texts[name].encode()).hexdigest()[:16] for name in sorted(_SLOTS)}

    def draft(self, kind: Kind, passage: SourcePassage, feedback: Feedback) -> list[dict[str, str]]:
        """Chat messages that ask for one kind of draft."""
        prompt = self._fill(kind, title=passage.title or _NOTHING, passage=passage.text)
        if not feedback.empty:
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
        items = "\n".join(f"{label}. {text}" for label, text in labelled(draft).items())
        return self._messages(self._fill("judge", title=passage.title or _NOTHING, passage=passage.text, items=items))

    def _messages(self, prompt: str) -> list[dict[str, str]]:
        system = self._fill("system").strip()
        return [{"role": "system", "content": system}, {"role": "user", "content": prompt.strip()}]

    def _fill(self, name: str, **slots: str) -> str:
        return string.Template(self.texts[name]).substitute(slots)


@lru_cache(maxsize=1)
def packaged_templates() -> Templates:
    """The templates that come with the package."""
    folder = resources.files("clara.synth") / "prompts"
    return Templates(MappingProxyType({name: (folder / f"{name}.txt").read_text("utf-8") for name in _SLOTS}))


def read_templates(folder: Path) -> Templates:
    """Templates from a folder; the packaged text stands in for a file that it does not hold.

    Raises:
        ConfigError: the folder or one of its files cannot be read, or a slot is missing or unknown.
    """
    if not folder.is_dir():
        raise ConfigError(f"no folder of prompt templates at {folder}")
    texts = dict(packaged_templates().texts)
    for name in _SLOTS:
        path = folder / f"{name}.txt"
        try:
            if path.exists():
                texts[name] = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"prompt template {path} cannot be read: {error}") from None
    return Templates(MappingProxyType(texts))


def labelled(draft: Draft) -> dict[str, str]:
    """The items of a draft as the judge sees them, by label: ``S1`` … ``C1`` … ``P``."""
    items = {f"S{i}": _shown(pair) for i, pair in enumerate(draft.simple, start=1)}
    items |= {f"C{i}": _shown(pair) for i, pair in enumerate(draft.complex, start=1)}
    if draft.paraphrase:
        items["P"] = draft.paraphrase
    return items


def _shown(pair: Pair) -> str:
    return f"Question: {pair.question} Answer: {pair.answer}"


def _listed(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items) or _NOTHING
