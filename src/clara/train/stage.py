"""A whole training stage: data and settings in, a native checkpoint out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch

from clara.data import DataRecord
from clara.model import checkpoint
from clara.model.create import Loaded
from clara.model.hub import Progress as HubProgress
from clara.model.prompting import Prompter
from clara.model.reader import ReaderManifest, save_reader
from clara.train.batch import Collator
from clara.train.candidate_batch import CandidateCollator
from clara.train.card import model_card
from clara.train.checks import check_run, settings_read
from clara.train.config import SELECTING, Stage, TrainConfig
from clara.train.curves import add_curves
from clara.train.distil import DistillingCollator, TeacherAnswers, teacher_fingerprint
from clara.train.documents import Documents
from clara.train.examples import Question
from clara.train.loop import Outcome, Run, check_reporters, run
from clara.train.plan import Collate, PlannedBatches, TrainingData, divide, held_out_examples
from clara.train.processes import check_device, joined
from clara.train.reader import ReaderCollator, reader_card
from clara.train.run_folder import claimed
from clara.train.run_log import Progress
from clara.train.start import facts_of, keeps_memories, sample_questions, start, starts_projection, whiten
from clara.train.validation import asked_questions, held_out
from clara.train.weights import load_trained
from clara.train.window import within_window


def train(  # noqa: PLR0913 - each of the last three is told another thing
    stage: Stage,
    records: Sequence[DataRecord],
    config: TrainConfig,
    out: Path,
    *,
    cache: Path,
    device: str = "cpu",
    tell: Callable[[Progress], None] | None = None,
    hub_progress: HubProgress | None = None,
    unused: Callable[[Mapping[str, int]], None] | None = None,
) -> Path:
    """Train a stage and write ``out/checkpoint``, or ``out/reader`` in stage ``reader``.

    Goes on where a run with the same settings and data in ``out`` stopped.

    Args:
        stage: which stage.
        records: training records; those the stage cannot use are counted in the card.
        config: the run.
        out: folder of the run: resumable checkpoints, ``log.jsonl``, ``config.json`` and the final checkpoint.
        cache: folder for base weights.
        device: for the model.
        tell: told after each step.
        hub_progress: told about downloads.
        unused: told before the first step what of the records the stage cannot use, counted by reason.

    Returns:
        The folder of the native checkpoint, or of the reader.

    Raises:
        ConfigError: the settings do not fit the stage, the data or what they name.
        TrainingError: nothing to train on, or ``out`` holds a run with other settings or data, or one that goes on.
    """
    check_device(device)
    check_run(stage, records, config)
    check_reporters(config)
    cut = within_window(records, config, cache, hub_progress)
    data = divide(cut.records, stage, config, left_out=cut.left_out)
    if unused is not None:
        unused(data.rejected)
    with joined(device) as processes, ExitStack() as kept:
        processes.check(config.batch_size, config.accumulation)
        if processes.first:
            kept.enter_context(claimed(out, stage, config, records))
        processes.wait()
        loaded = start(stage, data, config, cache, device, hub_progress)
        facts = facts_of(loaded, config)
        dtype = "bf16" if loaded.base.model.dtype == torch.bfloat16 else "fp32"
        own = {name: getattr(loaded.manifest, name) for name in ("compression", "lora")}
        config = config.model_copy(update={"base": loaded.manifest.base_model, "dtype": dtype, **own})
        documents = Documents(loaded, cache) if keeps_memories(stage, config) else None
        collator = _collator(stage, config, loaded, documents)
        taught = _taught(collator, loaded, config, out / f"teacher-{processes.rank}.jsonl")
        batches = PlannedBatches(data, stage, config, taught, processes=processes)
        fresh = starts_projection(loaded, config)
        wanted = _wanted(batches, data, stage, config) if documents is not None or fresh else {}
        if documents is not None:
            documents.prepare(wanted, hub_progress, share=processes)
            processes.wait()
            documents.prepare(wanted)  # finds what the others computed
        if fresh:
            whiten(loaded, documents or Documents(loaded, cache), wanted, sample_questions(data))
        kept_back = held_out(data, stage, config, collator, loaded.base.tokenizer)
        outcome = run(loaded.network, batches, Run(config, out, processes, kept_back, tell))
        target = out / ("reader" if stage == "reader" else "checkpoint")
        if processes.first:
            if outcome.sharded:  # no process has whole weights to write: make a network that has
                loaded = start(stage, data, config, cache, "cpu", hub_progress)
            _finish(loaded, outcome, stage, config, data, facts, target)
        processes.wait()
    return target


def _finish(
    loaded: Loaded,
    outcome: Outcome,
    stage: Stage,
    config: TrainConfig,
    data: TrainingData,
    facts: Mapping[str, object],
    target: Path,
) -> None:
    """Write the native checkpoint with its card, and the curves beside it."""
    load_trained(loaded.network, outcome.weights)
    trained = {
        "steps": config.steps,
        "examples": config.steps * config.batch_size,
        "records": {name: len(rows) for name, rows in sorted(data.sources.items())},
        **facts,
        "weights": {"kept": "last"} if outcome.best is None else {"kept": "best", **asdict(outcome.best)},
        "config": settings_read(stage, config),
    }
    if stage == "reader":
        _save_reader(loaded, config, trained, data, target)
        return
    manifest = loaded.manifest.unmeasured(stage=stage, trained=trained)
    checkpoint.save(loaded.network, manifest, target, card=model_card(manifest, data.rejected))
    add_curves(target.parent, target)


def _save_reader(
    loaded: Loaded, config: TrainConfig, trained: dict[str, object], data: TrainingData, target: Path
) -> None:
    manifest = ReaderManifest(
        base_model=loaded.manifest.base_model,
        base_identity=loaded.manifest.base_identity,
        context=config.reader_context,
        lora=config.lora,
        trained=trained,
    )
    save_reader(loaded.network.adapters, manifest, target, card=reader_card(manifest, data.rejected))
    add_curves(target.parent, target)


def _collator(stage: Stage, config: TrainConfig, loaded: Loaded, documents: Documents | None) -> Collate:
    prompter, quoted = Prompter(loaded.base.tokenizer), config.quoted_weight > 0
    window, longest = config.compression.window_tokens, config.reply_tokens
    if stage == "reader":
        return ReaderCollator(
            prompter, window_tokens=window, context=config.reader_context, quoted=quoted, reply_tokens=longest
        )
    if stage not in SELECTING:
        return Collator(prompter, window_tokens=window, memories=documents, quoted=quoted, reply_tokens=longest)
    return CandidateCollator(
        prompter,
        window_tokens=window,
        top_k=config.top_k,
        memories=documents,
        answers=stage == "end_to_end",
        reply_tokens=longest,
    )


def _taught(collator: Collate, loaded: Loaded, config: TrainConfig, path: Path) -> Collate:
    """The collator of the training batches: with a teacher it asks for what ``config.targets`` says."""
    if config.teacher is None or not isinstance(collator, Collator):
        return collator
    answers = None
    if config.targets == "teacher":
        window, bf16 = config.compression.window_tokens, config.dtype == "bf16"
        mark = teacher_fingerprint(loaded, Path(config.teacher).expanduser())
        answers = TeacherAnswers(loaded, path, fingerprint=mark, window_tokens=window, bf16=bf16)
    return DistillingCollator(collator, answers=answers, distributions=config.kl_weight > 0)


def _wanted(batches: PlannedBatches, data: TrainingData, stage: Stage, config: TrainConfig) -> dict[int, list[str]]:
    """The passages that a run will need memories of, by rate, each once."""
    texts: dict[int, dict[str, None]] = {rate: {} for rate in config.compression.rates}
    plan = [(batches.rate(index), batches.examples(index)) for index in range(len(batches))]
    asked = (asked.example for asked in asked_questions(data, stage, config))
    kept_back = [*held_out_examples(data, stage, config), *asked]
    for rate, examples in [*plan, *((rate, kept_back) for rate in texts)]:
        for example in examples:
            read = example.candidates if isinstance(example, Question) else example.texts
            texts[rate].update(dict.fromkeys(read))
    return {rate: list(found) for rate, found in texts.items()}
