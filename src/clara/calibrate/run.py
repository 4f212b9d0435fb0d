"""``clara calibrate``: from a checkpoint and records to a checkpoint with a record of its measurements.

Weights first, made without a training step: a mean of adapters, a text reader, spans, the query side. Each of their
functions reads a checkpoint's folder and writes another; settings measured with the old weights are kept and named in
``trained.not_remeasured``. Then retrieval and reading (``decoding``). Other settings stay as they were.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file

from clara.calibrate.decoding import Bench, Sample, draw, measure, right_answers_needed
from clara.data import DataRecord
from clara.errors import CheckpointError, InputError
from clara.model import ClaraModel, checkpoint
from clara.model.backbone import ADAPTER, plain_ids, read_tensors
from clara.model.checkpoint import Manifest
from clara.model.clara_model import find_checkpoint
from clara.model.create import Loaded, from_checkpoint
from clara.model.hub.base import Progress
from clara.model.placement import Placement, natural_dtype
from clara.model.reader import ReaderManifest
from clara.train.data import Window, within_window
from clara.train.start import WHITENING_DOCUMENTS, WHITENING_QUESTIONS, whiten_anew, whitening_needs

_ADAPTER_FILES = ("adapter_config.json", ADAPTER)

Part = Literal["spans", "queries", "latent-weight", "rerank", "contrast", "wording", "reading", "evidence"]
"""Parts that can be calibrated, in this order."""
_DECODING: frozenset[Part] = frozenset({"latent-weight", "rerank", "contrast", "wording", "reading", "evidence"})

_SECTION = "## Calibrated"


@dataclass(frozen=True, slots=True)
class CheckpointLoader:
    """Loads checkpoints; ``base`` is their base model, where their own entries do not lead to it.

    ``cache`` is the folder for base weights and for memories of documents.
    """

    cache: Path
    base: str | None = None
    device: str = "cpu"
    progress: Progress | None = None

    def load(self, folder: Path) -> Loaded:
        """A checkpoint's network, its adapters in float32."""
        return from_checkpoint(
            folder,
            self.cache,
            Placement(self.device, natural_dtype(self.device)),
            base_name=self.base,
            adapter_dtype=torch.float32,
            progress=self.progress,
        )


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """The parts to calibrate.

    Attributes:
        only: parts; None for all that the checkpoint supports: decoding, and a query side where it has none. Spans are
            cut anew only where they are named.
        share: weight of ``other`` in the mean of the adapters.
        late: compare questions by late interaction; None as the checkpoint does, by late interaction where it has no
            query side.
        keep: share of right answers that evidence keeps.
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
class _Calibrated:
    """The checkpoint written, if one was asked for, and its record (``trained["calibrated"]``) of this run's parts."""

    folder: Path | None
    measured: Mapping[str, Any]


def calibrate(
    name: str,
    records: Sequence[DataRecord],
    options: CalibrationOptions,
    source: CheckpointLoader,
    *,
    out: Path | None = None,
    data: Sequence[str] = (),
    on_progress: Progress = lambda *_: None,
    on_notice: Callable[[str], None] = lambda _: None,
) -> _Calibrated:
    """Calibrate a native checkpoint of this name, as ``ClaraModel.load`` takes it.

    Records are questions and passages, ``data`` the names of their files, to be recorded; a mean or a reader alone
    needs none. The result is written to ``out``, whole or not at all; None only measures. Notices are for the user.

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
        run = _Calibration(start, records, options, source, Path(scratch), on_progress, on_notice)
        folder, parts = run.weights()
        manifest = run.decoding(folder, parts)
        date = datetime.now(UTC).date().isoformat()
        facts = {"date": date, "data": list(data), "records": len(records), "seed": options.seed}
        entries = {part: facts | entry for part, entry in run.entries.items()}
        manifest = _recorded(manifest, entries)
        if out is not None:
            with checkpoint.copying(folder, out, manifest, card=_card(start, manifest)):
                pass
    return _Calibrated(out, entries)


@dataclass(slots=True)
class _Calibration:
    """A call of ``calibrate``; ``entries`` is its record."""

    start: Path
    records: Sequence[DataRecord]
    options: CalibrationOptions
    source: CheckpointLoader
    scratch: Path
    on_progress: Progress
    on_notice: Callable[[str], None]
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def weights(self) -> tuple[Path, frozenset[Part]]:
        """The folder with the new weights, and the parts to calibrate with them."""
        parts = self._parts()
        if parts and not self.records:
            raise InputError(f"{', '.join(sorted(parts))} take records to measure on: give --data FILE")
        folder = self._combined()
        compressor = Path("adapters") / "compressor" / ADAPTER
        changed = "spans" in parts or not _equal(folder / compressor, self.start / compressor)
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
        if not (manifest.query_projection and _derives_queries(folder)):
            self.on_notice(
                "the query reasoner was trained with other memories: train stage end-to-end or retriever next"
            )
            return frozenset()
        if not self.records:
            raise InputError("the mean has another compressor, so its query side is made anew: give --data FILE")
        return frozenset({"queries"})

    def _parts(self) -> frozenset[Part]:
        if self.options.only is not None:
            return self.options.only
        if not self.records and (self.options.other or self.options.reader):
            return frozenset()
        manifest = checkpoint.read_manifest(self.start)
        own = manifest.query_projection or "query_reasoner" in manifest.roles
        return _DECODING if own else _DECODING | {"queries"}

    def _combined(self) -> Path:
        """With the mean and the reader that were asked for."""
        folder = self.start
        if self.options.other is not None:
            other, made = find_checkpoint(self.options.other, progress=self.source.progress), self.scratch / "mean"
            _average(folder, other, self.options.share, made)
            self.entries["mean"] = {"from": self.options.other, "share": self.options.share}
            folder = made
        if self.options.reader is not None:
            _attach_reader(folder, self.options.reader, self.scratch / "reader")
            self.entries["text_reader"] = {"from": str(self.options.reader)}
            folder = self.scratch / "reader"
        return folder

    def _texts(self) -> list[str]:
        return list(dict.fromkeys(text for record in self.records for text in record.passages))

    def _cut(self, folder: Path) -> Path:
        """With spans of equal information instead of equal length."""
        texts, made, loaded = self._texts(), self.scratch / "spans", self.source.load(folder)
        vocabulary = len(loaded.base.model.get_input_embeddings().weight)
        loaded.network.table.count((plain_ids(loaded.base.tokenizer, text) for text in texts), vocabulary)
        compression = loaded.manifest.compression.model_copy(update={"spans": "information"})
        manifest = loaded.manifest.unmeasured(compression=compression)
        checkpoint.save(loaded.network, manifest, made, card="")
        self.entries["spans"] = {"value": "information", "passages": len(texts)}
        self.on_notice(
            "memories change with their spans: documents must be indexed again, and the weights want training"
        )
        return made

    def _queried(self, folder: Path) -> Path:
        """With an untrained query side: the compressor's weights and a whitened projection."""
        manifest, made = checkpoint.read_manifest(folder), self.scratch / "queries"
        texts = self._texts()[:WHITENING_DOCUMENTS]
        asked = [pair.question.strip() for record in self.records for pair in record.all_pairs[:1]]
        asked = random.Random(self.options.seed).sample(asked, min(len(asked), WHITENING_QUESTIONS))
        if not asked:
            raise InputError(
                "the records hold no question, which a query side is made from; give records that have some"
            )
        late = self.options.late
        late = (manifest.late_interaction or not manifest.query_projection) if late is None else late
        needed = whitening_needs(manifest.hidden_size, late=late)
        if min(len(texts), len(asked)) < needed:
            self.on_notice(
                f"to whiten questions well takes {needed} passages and as many questions; "
                f"the records have {len(texts)} and {len(asked)}"
            )
        loaded = self.source.load(folder)
        network = loaded.network.eval()
        network.adapters.reset_query_reasoner(seed=None)
        network.table.share_query_read_out()
        whiten_anew(loaded, texts, asked, self.source.cache, late=late)
        checkpoint.save(network, loaded.manifest.unmeasured(), made, card="")
        compared = "late interaction" if late else "mean"
        self.entries["queries"] = {"value": compared, "passages": len(texts), "questions": len(asked)}
        self.on_notice("the checkpoint has another fingerprint: stores that it filled must be indexed again")
        return made

    def decoding(self, folder: Path, parts: frozenset[Part]) -> Manifest:
        """The manifest with retrieval and reading as measured."""
        manifest = checkpoint.read_manifest(folder)
        measured = parts & _DECODING
        if "contrast" in measured and not manifest.late_interaction:
            if self.options.only is not None:
                raise InputError("contrast needs late interaction, which the checkpoint has not: calibrate queries too")
            measured -= {"contrast"}
        if not measured:
            return manifest
        source, sample = self.source, self._sample(manifest)
        if len(sample.questions) < 2:
            raise InputError(f"the records hold {len(sample.questions)} usable questions, at least 2 are needed")
        model = ClaraModel.load(
            folder, base=source.base, device=source.device, cache=source.cache, progress=source.progress
        )
        bench = Bench(model, sample, self.scratch, self.on_progress)
        try:
            self._measure(bench, measured)
        finally:
            bench.close()
        return bench.model.manifest

    def _sample(self, manifest: Manifest) -> Sample:
        """Questions with their passages cut to the window; no more records are cut than needed."""
        compression, source, limit = manifest.compression, self.source, self.options.limit
        window = Window(source.base or manifest.base_model, compression.window_tokens, compression.rates)
        order = random.Random(self.options.seed).sample(self.records, len(self.records))
        kept: list[DataRecord] = []
        sample = draw(kept, limit, self.options.seed)
        for start in range(0, len(order), limit):
            kept += within_window(order[start : start + limit], window, source.cache, source.progress).records
            sample = draw(kept, limit, self.options.seed)
            if len(sample.questions) == limit:
                break
        return sample

    def _measure(self, bench: Bench, parts: frozenset[Part]) -> None:
        for part in (one for one in get_args(Part) if one in parts):
            measurements = measure(bench, part, self.options.keep)
            if not measurements:
                self.on_notice(f"{part} could not be measured: {_UNMEASURED[part]}; it stays as it was")
                continue
            entries = {name: one.entry() for name, one in measurements.items()}
            self.entries[part] = {"passages": len(bench.sample.passages), **entries.get(part, entries)}
            needed = right_answers_needed(self.options.keep) if part == "evidence" else 0
            for name, one in measurements.items():
                if one.questions < needed:  # a single right answer is more than may be lost
                    self.on_notice(
                        f"{name} stands on {one.questions} right answers, to keep {self.options.keep:g} of them takes "
                        f"at least {needed}: ask more questions (--limit), or keep a smaller share (--keep)"
                    )


def _average(folder: Path, other: Path, share: float, out: Path) -> None:
    """Average a checkpoint's adapters with those of another, usually the one that its run started from.

    The mean loses less of the start's abilities after a last stage on new data, and is less noisy (Wortsman et al.,
    Model soups, arXiv 2203.05482; LOG.md, 2026-11-28). LoRA factors are averaged as they are: runs from one start stay
    near enough for that.

    Raises:
        CheckpointError: the two differ in more than adapters, or one cannot be read.
        InputError: the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise InputError(f"the share of {other} must lie between 0 and 1, got {share}")
    manifest, given = checkpoint.read_manifest(folder), checkpoint.read_manifest(other)
    if differing := _differing(manifest, given):
        raise CheckpointError(
            f"{folder} and {other} differ in {differing}; name a checkpoint and the one that its run started from"
        )
    if not _equal(folder / checkpoint.MEMORY, other / checkpoint.MEMORY):
        raise CheckpointError(
            f"expected equal memory tables ({checkpoint.MEMORY}) in {folder} and {other}; only adapters are averaged"
        )
    weights = {"kept": "average", "start": str(other), "share": share}
    made = manifest.unmeasured(trained={**manifest.trained, "weights": weights})
    with checkpoint.copying(folder, out, made, card="") as scratch:
        for role in manifest.roles:
            place = Path("adapters") / role / ADAPTER
            left, right = read_tensors(folder / place), read_tensors(other / place)
            if {name: t.shape for name, t in left.items()} != {name: t.shape for name, t in right.items()}:
                raise CheckpointError(f"the adapters {role} of {folder} and {other} have other tensors")
            mean = {name: ((1 - share) * left[name].float() + share * right[name].float()) for name in left}
            stored = {name: tensor.to(left[name].dtype) for name, tensor in mean.items()}
            save_file(stored, scratch / place, metadata={"format": "pt"})


def _differing(one: Manifest, other: Manifest) -> str:
    """The settings that have to be equal for a mean of adapters, where two checkpoints differ; empty if nowhere."""
    left, right = (
        {
            "base_identity": manifest.base_identity,
            **manifest.compression.model_dump(),
            "lora.rank": manifest.lora.rank,
            "lora.alpha": manifest.lora.alpha,
            "roles": " + ".join(manifest.roles),
        }
        for manifest in (one, other)
    )
    return ", ".join(f"{name} ({left[name]} and {right[name]})" for name in left if left[name] != right[name])


def _equal(first: Path, second: Path) -> bool:
    left, right = read_tensors(first), read_tensors(second)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def _attach_reader(folder: Path, reader: Path, out: Path) -> None:
    """Give a checkpoint a text reader (``clara train reader``), which answers from passages' text.

    Raises:
        CheckpointError: the reader cannot be read, was trained without context, or does not fit the checkpoint.
    """
    manifest, own = checkpoint.read_manifest(folder), ReaderManifest.read(reader)
    if own.context != "text":
        raise CheckpointError(f'{reader} was trained without context (closed book); reader_context = "text" is needed')
    if own.base_identity != manifest.base_identity:
        raise CheckpointError(
            f"{reader} was trained on {own.base_model} ({own.base_identity}), {folder} on "
            f"{manifest.base_model} ({manifest.base_identity}); train a reader on the same base model"
        )
    if (own.lora.rank, own.lora.alpha) != (manifest.lora.rank, manifest.lora.alpha):
        raise CheckpointError(
            f"{reader} has LoRA rank {own.lora.rank} and alpha {own.lora.alpha}, {folder} has "
            f"{manifest.lora.rank} and {manifest.lora.alpha}; train a reader with the checkpoint's"
        )
    roles = tuple(role for role in manifest.roles if role != "text_reader")
    refuses = manifest.refuses or own.refuses
    made = manifest.unmeasured(roles=(*roles, "text_reader"), refuses=refuses, judges=own.judges)
    with checkpoint.copying(folder, out, made, card="") as scratch:
        place = scratch / "adapters" / "text_reader"
        place.mkdir(exist_ok=True)
        for name in _ADAPTER_FILES:
            if not (reader / name).is_file():
                raise CheckpointError(f"{reader} has no {name}")
            shutil.copyfile(reader / name, place / name)


def _derives_queries(folder: Path) -> bool:
    """A checkpoint's questions go through the compressor itself, so that no trained reasoner would be lost."""
    manifest = checkpoint.read_manifest(folder)
    if manifest.query_read_out:
        return False
    if "query_reasoner" not in manifest.roles:
        return True
    adapters = folder / "adapters"
    return _equal(adapters / "compressor" / ADAPTER, adapters / "query_reasoner" / ADAPTER)


_UNMEASURED: Mapping[Part, str] = {
    "latent-weight": "of no question a gold passage is known",
    "rerank": "of no question a gold passage is known",
    "evidence": "no answer that is a quotation was right",
}


def _recorded(manifest: Manifest, entries: Mapping[str, Any]) -> Manifest:
    """With the record, and without the marks of settings that were measured again."""
    fields = {part.replace("-", "_") for part in entries}
    rule = manifest.reading
    if rule is not None and "evidence" not in entries and (rule.text_evidence, rule.memory_evidence) != (None, None):
        fields -= {"reading"}  # half of it is as it was
    trained = manifest.trained | {"calibrated": manifest.trained.get("calibrated", {}) | dict(entries)}
    left = [name for name in trained.pop("not_remeasured", ()) if name not in fields]
    return manifest.model_copy(update={"trained": trained | ({"not_remeasured": left} if left else {})})


def _card(start: Path, manifest: Manifest) -> str:
    """The card of the checkpoint calibrated, if it has one, with a section on the calibration."""
    card = start / "README.md"
    before, _, rest = (card.read_text(encoding="utf-8") if card.is_file() else "").partition(f"{_SECTION}\n")
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
