"""Records as the compressor will see them: a passage ends where the window does, and so does what is asked of it.

A question whose answer stands further on would teach the generator to guess, a paraphrase to invent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clara.data import DataRecord, DocText, MultiHop
from clara.metrics import normalize_answer
from clara.model.backbone import Tokenizer, load_tokenizer
from clara.model.checkpoint import read_manifest
from clara.model.clara_model import find_checkpoint
from clara.model.hub import Progress
from clara.prompts import passage_text
from clara.train.candidates import holds_answer
from clara.train.config import TrainConfig

_RECORDS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Cut:
    """Records within the window.

    Attributes:
        records: in their order, without those of which nothing is left.
        left_out: what is not in them, counted by reason.
    """

    records: list[DataRecord]
    left_out: Mapping[str, int]


def within_window(records: Sequence[DataRecord], config: TrainConfig, cache: Path, progress: Progress | None) -> Cut:
    """Cut every passage to what the run's compressor takes of it.

    Args:
        records: all of a run.
        config: names the checkpoint or the base model that the run starts from.
        cache: folder for base weights.
        progress: told about downloads.
    """
    window, base = config.compression.window_tokens, config.base
    if config.start is not None:
        manifest = read_manifest(find_checkpoint(config.start))
        window, base = manifest.compression.window_tokens, manifest.base_model
    tokenizer = load_tokenizer(base, cache, progress=progress)
    left_out: Counter[str] = Counter()
    kept: list[DataRecord] = []
    for start in range(0, len(records), _RECORDS_AT_ONCE):
        part = records[start : start + _RECORDS_AT_ONCE]
        cut = iter(_cut([doc for record in part for doc in _docs(record)], tokenizer, window))
        for record in part:
            found = _with(record, [next(cut) for _ in _docs(record)], left_out, window)
            if found is not None:
                kept.append(found)
    return Cut(kept, left_out)


def _docs(record: DataRecord) -> Sequence[DocText]:
    return record.docs if isinstance(record, MultiHop) else [DocText(record.title, record.text)]


def _cut(docs: Sequence[DocText], tokenizer: Tokenizer, window: int) -> list[DocText]:
    """The documents with as much of their texts as a window holds beside the title."""
    texts = [passage_text(doc.title, doc.text) for doc in docs]
    made = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False)
    found = []
    for doc, text, encoding in zip(docs, texts, made.encodings, strict=True):
        end = encoding.offsets[window - 1][1] if len(encoding) > window else len(text)
        found.append(replace(doc, text=doc.text[: max(0, len(doc.text) - (len(text) - end))]))
    return found


def _with(record: DataRecord, docs: Sequence[DocText], left_out: Counter[str], window: int) -> DataRecord | None:
    """A record with its documents cut; None if nothing can be asked any more."""
    whole = _docs(record)
    shorter = sum(len(one.text) < len(other.text) for one, other in zip(docs, whole, strict=True))
    if not shorter:
        return record
    left_out[f"text beyond the window of {window} tokens"] += shorter
    gold = record.gold if isinstance(record, MultiHop) else (0,)
    before, after = ("\n".join(texts[i].text for i in gold) for texts in (whole, docs))

    def told(answers: Sequence[str]) -> bool:
        normal = [normalize_answer(answer) for answer in answers]
        if not holds_answer(before, normal) or holds_answer(after, normal):
            return True
        left_out[f"question whose answer stands beyond the window of {window} tokens"] += 1
        return False

    if isinstance(record, MultiHop):
        return replace(record, docs=tuple(docs)) if told(record.answers) else None
    if not docs[0].text.strip():
        return None
    if record.paraphrase is not None:
        left_out[f"paraphrase of a text longer than the window of {window} tokens"] += 1
    return replace(
        record,
        text=docs[0].text,
        pairs=tuple(pair for pair in record.pairs if told(pair.answers)),
        complex_pairs=tuple(pair for pair in record.complex_pairs if told(pair.answers)),
        paraphrase=None,
    )
