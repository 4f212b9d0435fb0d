"""``clara calibrate``: from a checkpoint and records to a checkpoint that says what was measured.

Weights first, then how passages are found and read; a setting that was not asked for stays as it was.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from clara.calibrate import decoding, weights
from clara.calibrate.decoding import Bench, Measurement, Told
from clara.calibrate.questions import Sample, draw
from clara.calibrate.weights import CheckpointLoader
from clara.data import DataRecord
from clara.data.neighbours import passages_of
from clara.errors import CheckpointError, InputError
from clara.model import ClaraModel, checkpoint
from clara.model.checkpoint import Manifest
from clara.model.clara_model import find_checkpoint
from clara.train.data import Window, questions_of, within_window
from clara.train.start import TOKENS_A_TEXT, WHITENING_DOCUMENTS, WHITENING_QUESTIONS, WHITENING_SHARE

Part = Literal["spans", "queries", "latent-weight", "rerank", "contrast", "wording", "reading", "evidence"]
"""What can be calibrated, in the order in which it is done."""
_DECODING: frozenset[Part] = frozenset({"latent-weight", "rerank", "contrast", "wording", "reading", "evidence"})

_SECTION = "## Calibrated"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to calibrate.

    Attributes:
        only: parts; None for all that the checkpoint supports: decoding, and a query side where it has none. Spans
            are cut anew only where they are named.
        other: a checkpoint to average adapters with.
        share: of ``other``.
        reader: a text reader to attach.
        late: whether questions are compared by late interaction; None as the checkpoint does, by late interaction
            where it has no query side.
        keep: share of right answers that evidence keeps.
        limit: most questions.
        seed: of the sample.
    """

    only: frozenset[Part] | None = None
    other: str | None = None
    share: float = 0.5
    reader: Path | None = None
    late: bool | None = None
    keep: float = 0.95
    limit: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError(f"keep must be above 0 and at most 1, got {self.keep}")
        if self.limit < 2:
            raise InputError(f"limit must be at least 2 questions, got {self.limit}")


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What came of it.

    Attributes:
        folder: the checkpoint written; None where none was asked for.
        measured: the record in ``trained["calibrated"]`` of this run's parts.
    """

    folder: Path | None
    measured: Mapping[str, Any]


def calibrate(
    name: str,
    records: Sequence[DataRecord],
    wanted: Wanted,
    source: CheckpointLoader,
    *,
    out: Path | None = None,
    data: Sequence[str] = (),
    tell: Told = lambda *_: None,
    notice: Callable[[str], None] = lambda _: None,
) -> Calibrated:
    """Calibrate a checkpoint.

    Args:
        name: of the checkpoint, as ``ClaraModel.load`` takes it; native.
        records: what is asked, and the passages; none is needed where nothing but a mean or a reader is wanted.
        wanted: what to calibrate.
        source: how the checkpoint is loaded.
        out: where the result is written, whole or not at all; None only measures.
        data: names of the records' files, for the record.
        tell: told about progress.
        notice: told what a user should know.

    Raises:
        CheckpointError: a checkpoint or reader that cannot be read or does not fit, or ``out`` cannot be replaced.
        InputError: the records do not hold what is needed.
    """
    start = find_checkpoint(name, progress=source.progress)
    if not checkpoint.is_checkpoint(start):
        raise CheckpointError(f"{name} is in Apple's format; convert it first: clara convert {name} --out DIR")
    if out is not None:
        checkpoint.check_replaceable(out)
    with tempfile.TemporaryDirectory(prefix="clara-calibrate-") as scratch:
        run = _Calibration(start, records, wanted, source, Path(scratch), tell, notice)
        folder, parts = run.weights()
        manifest = run.decoding(folder, parts)
        facts = {
            "date": datetime.now(UTC).date().isoformat(),
            "data": list(data),
            "records": len(records),
            "seed": wanted.seed,
        }
        entries = {part: facts | entry for part, entry in run.entries.items()}
        manifest = _recorded(manifest, entries)
        if out is not None:
            with checkpoint.copying(folder, out, manifest, card=_card(weights.card_of(start), manifest)):
                pass
    return Calibrated(out, entries)


@dataclass(slots=True)
class _Calibration:
    """One call of ``calibrate``; ``entries`` is the record that it makes."""

    start: Path
    records: Sequence[DataRecord]
    wanted: Wanted
    source: CheckpointLoader
    scratch: Path
    tell: Told
    notice: Callable[[str], None]
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def weights(self) -> tuple[Path, frozenset[Part]]:
        """The folder with the weights wanted, and the parts that are to be calibrated with them."""
        parts = self._parts()
        if parts and not self.records:
            raise InputError(f"{', '.join(sorted(parts))} take records to measure on: give --data FILE")
        folder = self._combined()
        changed = "spans" in parts or not weights.same_compressor(folder, self.start)
        if changed and "queries" not in parts:
            parts |= self._stale(folder)
        if "spans" in parts:
            folder = self._cut(folder)
        return (self._queried(folder) if "queries" in parts else folder), parts

    def _stale(self, folder: Path) -> frozenset[Part]:
        """The query side, where other memories make it stale and it can be made anew; a trained one is only named."""
        manifest = checkpoint.read_manifest(folder)
        if not (manifest.query_projection or "query_reasoner" in manifest.roles):
            return frozenset()  # questions go through the compressor as it is
        if not (manifest.query_projection and weights.derives_queries(folder)):
            self.notice("the query reasoner was trained with other memories: train stage end-to-end or retriever next")
            return frozenset()
        if not self.records:
            raise InputError("the mean has another compressor, so its query side is made anew: give --data FILE")
        return frozenset({"queries"})

    def _parts(self) -> frozenset[Part]:
        if self.wanted.only is not None:
            return self.wanted.only
        if not self.records and (self.wanted.other or self.wanted.reader):
            return frozenset()
        manifest = checkpoint.read_manifest(self.start)
        own = manifest.query_projection or "query_reasoner" in manifest.roles
        return _DECODING if own else _DECODING | {"queries"}

    def _combined(self) -> Path:
        """With the mean and the reader that were asked for."""
        folder = self.start
        if self.wanted.other is not None:
            other, made = find_checkpoint(self.wanted.other, progress=self.source.progress), self.scratch / "mean"
            weights.average(folder, other, self.wanted.share, made)
            self.entries["mean"] = {"from": self.wanted.other, "share": self.wanted.share}
            folder = made
        if self.wanted.reader is not None:
            weights.attach_reader(folder, self.wanted.reader, self.scratch / "reader")
            self.entries["text_reader"] = {"from": str(self.wanted.reader)}
            folder = self.scratch / "reader"
        return folder

    def _texts(self) -> list[str]:
        return list(dict.fromkeys(text for record in self.records for text in passages_of(record)))

    def _cut(self, folder: Path) -> Path:
        texts, made = self._texts(), self.scratch / "spans"
        weights.cut_by_information(folder, texts, made, self.source)
        self.entries["spans"] = {"value": "information", "passages": len(texts)}
        self.notice("memories change with their spans: documents must be indexed again, and the weights want training")
        return made

    def _queried(self, folder: Path) -> Path:
        manifest, made = checkpoint.read_manifest(folder), self.scratch / "queries"
        texts = self._texts()[:WHITENING_DOCUMENTS]
        asked = [question.strip() for record in self.records for question in questions_of(record)[:1]]
        asked = random.Random(self.wanted.seed).sample(asked, min(len(asked), WHITENING_QUESTIONS))
        if not asked:
            raise InputError(
                "the records hold no question, which a query side is made from; give records that have some"
            )
        late = self.wanted.late
        late = (manifest.late_interaction or not manifest.query_projection) if late is None else late
        needed = -(-WHITENING_SHARE * manifest.hidden_size // (TOKENS_A_TEXT if late else 1))
        if min(len(texts), len(asked)) < needed:
            self.notice(
                f"to whiten questions well takes {needed} passages and as many questions; "
                f"the records have {len(texts)} and {len(asked)}"
            )
        weights.renew_queries(folder, texts, asked, made, self.source, late=late)
        compared = "late interaction" if late else "mean"
        self.entries["queries"] = {"value": compared, "passages": len(texts), "questions": len(asked)}
        self.notice("the checkpoint has another fingerprint: stores that it filled must be indexed again")
        return made

    def decoding(self, folder: Path, parts: frozenset[Part]) -> Manifest:
        """The manifest with how passages are found and read as measured."""
        manifest = checkpoint.read_manifest(folder)
        chosen = parts & _DECODING
        if "contrast" in chosen and not manifest.late_interaction:
            if self.wanted.only is not None:
                raise InputError("contrast needs late interaction, which the checkpoint has not: calibrate queries too")
            chosen -= {"contrast"}
        if not chosen:
            return manifest
        source, sample = self.source, self._sample(manifest)
        if len(sample.questions) < 2:
            raise InputError(f"the records hold {len(sample.questions)} usable questions, at least 2 are needed")
        model = ClaraModel.load(
            folder, base=source.base, device=source.device, cache=source.cache, progress=source.progress
        )
        bench = Bench(model, sample, self.scratch, self.tell)
        try:
            self._measure(bench, chosen)
        finally:
            bench.close()
        return bench.model.manifest

    def _sample(self, manifest: Manifest) -> Sample:
        """Questions with their passages cut to the window; of many records no more are cut than are asked."""
        compression, source, limit = manifest.compression, self.source, self.wanted.limit
        window = Window(source.base or manifest.base_model, compression.window_tokens, compression.rates)
        order = random.Random(self.wanted.seed).sample(self.records, len(self.records))
        kept: list[DataRecord] = []
        sample = draw(kept, limit, self.wanted.seed)
        for start in range(0, len(order), limit):
            kept += within_window(order[start : start + limit], window, source.cache, source.progress).records
            sample = draw(kept, limit, self.wanted.seed)
            if len(sample.questions) == limit:
                break
        return sample

    def _measure(self, bench: Bench, chosen: frozenset[Part]) -> None:
        measures: dict[Part, Callable[[], Mapping[str, Measurement] | Measurement | None]] = {
            "latent-weight": lambda: decoding.latent_weight(bench),
            "rerank": lambda: decoding.rerank(bench),
            "contrast": lambda: {f"{rate}x": found for rate, found in decoding.contrast(bench).items()},
            "wording": lambda: decoding.wording(bench),
            "reading": lambda: decoding.reading(bench),
            "evidence": lambda: decoding.evidence(bench, self.wanted.keep),
        }
        size = {"passages": len(bench.sample.passages)}
        for part, measure in measures.items():
            if part not in chosen:
                continue
            found = measure()
            if not found:
                self.notice(f"{part} could not be measured: {_UNMEASURED[part]}; it stays as it was")
                continue
            if part == "evidence" and not isinstance(found, Measurement):
                self._say_too_few(found)
            made = found.entry() if isinstance(found, Measurement) else {key: one.entry() for key, one in found.items()}
            self.entries[part] = size | made

    def _say_too_few(self, thresholds: Mapping[str, Measurement]) -> None:
        """Say of thresholds that stand on so few right answers that a single one is more than may be lost."""
        needed = decoding.right_answers_needed(self.wanted.keep)
        for name, found in thresholds.items():
            if found.questions < needed:
                self.notice(
                    f"{name} stands on {found.questions} right answers, to keep {self.wanted.keep:g} of them takes at "
                    f"least {needed}: ask more questions (--limit), or keep a smaller share (--keep)"
                )


_UNMEASURED: Mapping[Part, str] = {
    "latent-weight": "of no question a gold passage is known",
    "rerank": "of no question a gold passage is known",
    "evidence": "no answer that is a quotation was right",
}


def _recorded(manifest: Manifest, entries: Mapping[str, Any]) -> Manifest:
    """With the record, and without the marks of what was measured again."""
    fields = {part.replace("-", "_") for part in entries}
    rule = manifest.reading
    if rule is not None and "evidence" not in entries and (rule.text_evidence, rule.memory_evidence) != (None, None):
        fields -= {"reading"}  # half of it is as it was
    trained = manifest.trained | {"calibrated": manifest.trained.get("calibrated", {}) | dict(entries)}
    left = [name for name in trained.pop("not_remeasured", ()) if name not in fields]
    return manifest.model_copy(update={"trained": trained | ({"not_remeasured": left} if left else {})})


def _card(card: str, manifest: Manifest) -> str:
    """The card with a section that says what was calibrated."""
    before, _, rest = card.partition(f"{_SECTION}\n")
    after = rest[rest.index("\n## ") + 1 :] if "\n## " in rest else ""
    lines = [_SECTION, "", "| what | value | before | measure | of each candidate | questions | date |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for part, entry in manifest.trained["calibrated"].items():
        rows = {part: entry} | {f"{part}, {key}": one for key, one in entry.items() if isinstance(one, dict)}
        lines += [_row(name, row, entry["date"]) for name, row in rows.items() if "value" in row or "from" in row]
    return "\n\n".join(part.strip("\n") for part in (before, "\n".join(lines), after) if part.strip()) + "\n"


def _row(name: str, entry: Mapping[str, Any], date: str) -> str:
    value = entry.get("value", f"{entry.get('from')} {entry.get('share', '')}".strip())
    figures = ", ".join(f"{one}: {figure:.3f}" for one, figure in entry.get("candidates", {}).items())
    cells = (name, value, entry.get("was", ""), entry.get("metric", ""), figures, entry.get("questions", ""), date)
    return f"| {' | '.join(map(str, cells))} |"
