"""The model card that is written beside a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clara.model.checkpoint import Manifest


def model_card(manifest: Manifest, rejected: Mapping[str, int]) -> str:
    """Text of a checkpoint's ``README.md``: what it is, what it was trained on, and how.

    Args:
        manifest: of the checkpoint, ``trained`` filled in.
        rejected: training records that were not used, counted by reason.
    """
    trained, compression = manifest.trained, manifest.compression
    rates = ", ".join(f"{rate}x" for rate in compression.rates)
    rows = "\n".join(f"| {name} | {count} |" for name, count in trained["records"].items())
    dropped = "\n".join(f"- {count} x {reason}" for reason, count in rejected.items()) or "- none"
    settings = "\n".join(f"| {name} | `{value}` |" for name, value in trained["config"].items())
    return f"""---
library_name: clara-rag
base_model: {manifest.base_model}
---
# CLaRa checkpoint on {manifest.base_model}

Compresses passages of up to {compression.window_tokens} tokens into memory tokens at {rates}, and answers questions
from them. Stage `{manifest.stage}`: {trained["steps"]} steps, {trained["examples"]} examples.
{_started(trained)}{_kept(trained.get("weights", {}))}
Read it with `clara.ClaraModel.load("FOLDER")` or `--model FOLDER`.

## Data

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


def _started(trained: Mapping[str, Any]) -> str:
    """What a run started from; nothing for a fresh start."""
    start = trained.get("start")
    if start is None:
        return ""
    reasoner = trained["config"].get("reasoner_start")
    began = "" if reasoner is None else f", the query reasoner from: {reasoner}"
    return f"Started from `{start['checkpoint']}` (stage `{start['stage']}`){began}.\n"


def _kept(weights: Mapping[str, Any]) -> str:
    """Which step's weights a checkpoint holds."""
    if weights.get("kept") != "best":
        return "The weights are those after the last step."
    quality = weights["quality"]
    scored = "" if quality is None else f" and scored {quality:.3f} on held-out questions"
    return (
        f"The weights are the best of the run: after step {weights['step']} they had a held-out loss of "
        f"{weights['loss']:.3f} nats a label token{scored}."
    )
