"""Stage ``reader``: a LoRA on the backbone that answers from full text, or from nothing; no compression.

It takes the examples of stage ``scp`` or ``instruct``, so that compressed answers are compared with a reader that was
trained on the same records in the same order. Passages are cut to the compressor's window, which is all that the
compressor sees of them. Without context there is nothing to restate, so only questions are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from clara import prompts
from clara.model.prompting import Prompter
from clara.model.reader import ReaderContext, ReaderManifest
from clara.train.batch import REPLY_TOKENS, Batch, Collator
from clara.train.config import TrainConfig
from clara.train.examples import Example


class ReaderCollator:
    """Builds the batches of stage ``reader``: decoder sequences that are the prompts of ``model.reader``."""

    def __init__(
        self,
        prompter: Prompter,
        *,
        window_tokens: int,
        context: ReaderContext,
        quoted: bool = False,
        reply_tokens: int = REPLY_TOKENS,
    ) -> None:
        self._collator = Collator(prompter, window_tokens=window_tokens, reply_tokens=reply_tokens)
        self._context, self._quoted = context, quoted

    def __call__(self, examples: Sequence[Example], *, rate: int, asked: Sequence[int] | None = None) -> Batch:
        """Make a batch; ``rate`` is noted and changes nothing."""
        taken = examples if asked is None else [examples[i] for i in asked]
        make = self._collator.of_texts if self._context == "text" else self._collator.closed_book
        quotable = self._collator.quotable(taken) if self._quoted else None
        return replace(make(taken), rate=rate, quotable=quotable)


def readable(example: Example | None, config: TrainConfig) -> Example | None:
    """What of an example a reader can be asked; None if nothing."""
    if example is None or config.reader_context == "text":
        return example
    targets = tuple(t for t in example.targets if t.instruction.startswith(prompts.QUESTION))
    return replace(example, targets=targets) if targets else None


def reader_card(manifest: ReaderManifest, rejected: Mapping[str, int]) -> str:
    """Text of a reader's ``README.md``: what it is, what it was trained on, and how."""
    trained = manifest.trained
    given = "the full text of passages" if manifest.context == "text" else "nothing but the question (closed book)"
    rows = "\n".join(f"| {name} | {count} |" for name, count in trained["records"].items())
    dropped = "\n".join(f"- {count} x {reason}" for reason, count in rejected.items()) or "- none"
    settings = "\n".join(f"| {name} | `{value}` |" for name, value in trained["config"].items())
    return f"""---
library_name: peft
base_model: {manifest.base_model}
---
# Reader on {manifest.base_model}

A LoRA that answers questions from {given}: what compressed answers are compared with, and a teacher for them.
{trained["steps"]} steps, {trained["examples"]} examples. Use it with `clara eval --reader FOLDER` or, in training, with
`teacher = "FOLDER"`.

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
