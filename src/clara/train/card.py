"""Model cards, written beside a checkpoint or reader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clara.model.checkpoint import Manifest
from clara.model.reader import ReaderManifest


def model_card(manifest: Manifest, rejected: Mapping[str, int]) -> str:
    """A checkpoint's ``README.md``, with unused records by reason."""
    trained, compression = manifest.trained, manifest.compression
    rates = ", ".join(f"{rate}x" for rate in compression.rates)
    return f"""---
library_name: clara-rag
base_model: {manifest.base_model}
---
# CLaRa checkpoint on {manifest.base_model}

Compresses passages of up to {compression.window_tokens} tokens into memory tokens at {rates}, and answers questions
from them. Stage `{manifest.stage}`: {trained["steps"]} steps, {trained["examples"]} examples.
{_started(trained)}{_kept(trained.get("weights", {}))}
Read it with `clara.ClaraModel.load("FOLDER")` or `--model FOLDER`.

{_run(trained, rejected)}"""


def _started(trained: Mapping[str, Any]) -> str:
    """The start checkpoint and what of it is stale; empty for a fresh start."""
    start = trained.get("start")
    if start is None:
        return ""
    reasoner = trained["config"].get("reasoner_start")
    began = "" if reasoner is None else f", the query reasoner from: {reasoner}"
    notices = "".join(f"\n- {notice}" for notice in trained.get("carried", ()))
    return f"Started from `{start['checkpoint']}` (stage `{start['stage']}`){began}.\n{notices and notices + chr(10)}"


def _kept(weights: Mapping[str, Any]) -> str:
    if weights.get("kept") != "best":
        return "The weights are those after the last step."
    quality = weights["quality"]
    scored = "" if quality is None else f" and scored {quality:.3f} on held-out questions"
    return (
        f"The weights are the best of the run: after step {weights['step']} they had a held-out loss of "
        f"{weights['loss']:.3f} nats a label token{scored}."
    )


def reader_card(manifest: ReaderManifest, rejected: Mapping[str, int]) -> str:
    """A reader's ``README.md``."""
    trained = manifest.trained
    given = "the full text of passages" if manifest.context == "text" else "nothing but the question (closed book)"
    return f"""---
library_name: peft
base_model: {manifest.base_model}
---
# Reader on {manifest.base_model}

A LoRA that answers questions from {given}: what compressed answers are compared with, and a teacher for them.
{trained["steps"]} steps, {trained["examples"]} examples. Use it with `clara eval --reader FOLDER` or, in training, with
`teacher = "FOLDER"`.

{_run(trained, rejected)}"""


def _run(trained: Mapping[str, Any], rejected: Mapping[str, int]) -> str:
    rows = "\n".join(f"| {name} | {count} |" for name, count in trained["records"].items())
    dropped = "\n".join(f"- {count} x {reason}" for reason, count in rejected.items()) or "- none"
    settings = "\n".join(f"| {name} | `{value}` |" for name, value in trained["config"].items())
    return f"""## Data

| source | records |
|---|---|
{rows}

Not used:
{dropped}

## Settings

| setting | value |
|---|---|
{settings}
"""
