"""A run's settings against its stage, its data and the folders it names, before anything is loaded.

All faults are found at once. What is wrong within the settings alone ``config`` has refused already; what is read
here of a checkpoint or a reader is the small file that says what it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clara.data import DataRecord
from clara.errors import ClaraError, ConfigError
from clara.model import checkpoint
from clara.model.checkpoint import Manifest
from clara.model.clara_model import find_checkpoint
from clara.model.reader import read_reader_manifest
from clara.train.config import SELECTING, Stage, TrainConfig

_COMPRESSING: tuple[Stage, ...] = ("scp", "instruct")

READ_BY: dict[str, tuple[Stage, ...]] = {
    "start": ("scp", "instruct", "end_to_end", "retriever"),
    "rate_weights": ("scp", "instruct", "end_to_end", "retriever"),
    "mse_weight": _COMPRESSING,
    "near_distractors": ("instruct", "reader"),
    "candidates": SELECTING,
    "temperature": SELECTING,
    "reasoner_start": SELECTING,
    "query_read_out": SELECTING,
    "query_projection": SELECTING,
    "late_interaction": SELECTING,
    "projection_learning_rate": SELECTING,
    "top_k": ("end_to_end",),
    "train_compressor": ("end_to_end",),
    "freeze_compressor": _COMPRESSING,
    "quoted_weight": (*_COMPRESSING, "reader"),
    "reader_context": ("reader",),
    "reader_examples": ("reader",),
    "targets": _COMPRESSING,
    "teacher": _COMPRESSING,
    "kl_weight": _COMPRESSING,
}
"""Settings that only some stages read; to set one for another stage is a mistake about what will happen."""


def check_run(stage: Stage, records: Sequence[DataRecord], config: TrainConfig) -> None:
    """Refuse a run that cannot do what its settings say.

    Args:
        stage: the stage.
        records: all records that were read.
        config: as it was given, so that what was set can be told from defaults.

    Raises:
        ConfigError: names every fault.
    """
    faults = [*_unread(stage, config), *_without_effect(stage, config), *_against_each_other(stage, config)]
    faults += _against_data(records, config)
    started = _start_faults(stage, config)
    faults += [*started, *_teacher_faults(config)]
    if faults:
        raise ConfigError(f"stage {stage}: {len(faults)} fault(s): " + "; ".join(faults))


def settings_read(stage: Stage, config: TrainConfig) -> dict[str, Any]:
    """The settings that a stage reads, as plain values, for its card."""
    unread = {name for name, stages in READ_BY.items() if stage not in stages}
    return config.model_dump(mode="json", exclude=unread)


def _unread(stage: Stage, config: TrainConfig) -> list[str]:
    return [
        f"{name} is set, but only stage {' and '.join(stages)} reads it"
        for name, stages in READ_BY.items()
        if name in config.model_fields_set and stage not in stages and getattr(config, name) != _default(name)
    ]


def _default(name: str) -> object:
    return TrainConfig.model_fields[name].get_default()


def _against_each_other(stage: Stage, config: TrainConfig) -> list[str]:
    faults = []
    if stage in SELECTING and config.start is None:
        faults.append(f'stage {stage} starts from a checkpoint: set start = "DIR" (of stage scp or instruct)')
    if stage == "end_to_end" and config.top_k > config.candidates:
        faults.append(f"top_k is {config.top_k}, a question has only {config.candidates} candidates")
    if config.targets != "gold" and config.teacher is None:
        faults.append(f'targets is "{config.targets}", but no teacher is named: set teacher = "DIR" of a reader')
    if config.targets == "gold" and config.teacher is not None:
        faults.append('a teacher is named, but targets is "gold": set targets = "teacher" or "both"')
    if config.targets == "both" and config.kl_weight == 0:
        faults.append('targets is "both" and kl_weight is 0, which is the same as "gold"')
    if config.rate_weights and (min(config.rate_weights) < 0 or sum(config.rate_weights) <= 0):
        faults.append(f"rate_weights must not be negative and not all 0, got {config.rate_weights}")
    return faults


def _without_effect(stage: Stage, config: TrainConfig) -> list[str]:
    """Settings that another one makes idle."""
    faults = []
    if stage == "reader" and config.reader_context == "none" and config.quoted_weight:
        faults.append("quoted_weight is set, but a reader without context has nothing to quote from")
    if config.late_interaction and not config.query_projection:
        faults.append("late_interaction compares projected memory tokens; set query_projection = true")
    if config.near_distractors and stage == "reader" and config.reader_examples == "scp":
        faults.append("near_distractors is set, but the examples of stage scp have no distractors")
    if config.freeze_compressor:
        faults += [
            f"{name} is set, but freeze_compressor leaves it nothing to train"
            for name in ("mse_weight", "table_learning_rate")
            if getattr(config, name) != _default(name)
        ]
    return faults


def _against_data(records: Sequence[DataRecord], config: TrainConfig) -> list[str]:
    faults = []
    known = {record.source for record in records}
    # A weight of 0 keeps a source out; that it is not there at all is no fault.
    unknown = sorted({name for name, weight in config.mix.items() if weight > 0} - known)
    if unknown:
        listed = ", ".join(sorted(known))
        faults.append(f"mix names {', '.join(unknown)}, which no record has as its source (sources: {listed})")
    if config.held_out >= len(records) > 0:
        faults.append(f"held_out is {config.held_out}, which leaves nothing of {len(records)} records to train on")
    return faults


def _start_faults(stage: Stage, config: TrainConfig) -> list[str]:
    if config.start is None or stage == "reader":
        return []
    try:
        folder = find_checkpoint(config.start)
        manifest = checkpoint.read_manifest(folder) if checkpoint.is_checkpoint(folder) else None
    except ClaraError as error:
        return [f"start: {error}"]
    if manifest is None:
        return [
            f"start: {config.start} is in Apple's format, which can be used but not trained here; start from a native "
            "checkpoint or from a base model"
        ]
    return _manifest_faults(stage, config, manifest)


def _manifest_faults(stage: Stage, config: TrainConfig, manifest: Manifest) -> list[str]:
    faults = [
        f"{name} is {given!r}, but {config.start} has {own!r}, which a run goes on with; leave it out"
        for name, given, own in _of_the_start(config, manifest)
        if given != own
    ]
    rates = manifest.compression.rates
    if manifest.compression.input_format == "official":
        faults.append(
            f"start: {config.start} came in Apple's format, which can be used but not trained here; start from a "
            "checkpoint that was trained here, or from a base model"
        )
    if config.rate_weights and len(config.rate_weights) != len(rates):
        faults.append(f"rate_weights needs one weight for each rate of {config.start}: {rates}")
    own = "query_reasoner" in manifest.roles
    if stage in SELECTING and config.reasoner_start == "checkpoint" and not own:
        faults.append(
            f'reasoner_start is "checkpoint", but {config.start} has no query reasoner of its own; set "compressor" or '
            '"random"'
        )
    return faults


def _of_the_start(config: TrainConfig, manifest: Manifest) -> Iterator[tuple[str, object, object]]:
    """What was set although the checkpoint to start from decides it: name, value set, the checkpoint's own."""
    if "base" in config.model_fields_set:
        yield "base", config.base, manifest.base_model
    for part in ("compression", "lora"):
        given, own = getattr(config, part), getattr(manifest, part)
        for name in sorted(given.model_fields_set if part in config.model_fields_set else ()):
            yield f"{part}.{name}", getattr(given, name), getattr(own, name)


def _teacher_faults(config: TrainConfig) -> list[str]:
    if config.teacher is None:
        return []
    try:
        manifest = read_reader_manifest(Path(config.teacher).expanduser())
    except ClaraError as error:
        return [f"teacher: {error}"]
    if manifest.context != "text":
        return [f"teacher: {config.teacher} was trained without context; a teacher reads full text"]
    return []
