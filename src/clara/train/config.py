"""Settings of a training run, checked whole before anything is loaded. Recipes (TOML files) hold these fields."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from clara.config import CompressionConfig, LoraSettings, Settings

Stage = Literal["scp", "instruct"]


class RestateSettings(Settings):
    """Restating targets beside the questions of a passage.

    Attributes:
        repeat: share of passages with the target "repeat the passage", or its paraphrase where the record has one.
        resume: share of passages with the target "go on after these words", at a random place of the passage.
        tokens: longest such target, in words of the text.
        weight: weight of each of its tokens in the loss, beside 1 for a token of an answer.
    """

    repeat: float = Field(default=0.3, ge=0, le=1)
    resume: float = Field(default=0.0, ge=0, le=1)
    tokens: int = Field(default=64, ge=4)
    weight: float = Field(default=1.0, gt=0)


class TrainConfig(Settings):
    """One training run.

    Attributes:
        base: base model by name, folder or hub id; ignored when ``start`` names a checkpoint.
        start: checkpoint folder to go on from, or None for fresh adapters.
        compression: read-out and rates of a fresh start.
        lora: adapters of a fresh start.
        steps: optimisation steps.
        batch_size: examples a step.
        accumulation: forward passes a step; each takes ``batch_size / accumulation`` examples.
        learning_rate: peak, of the LoRA weights.
        table_learning_rate: peak, of memory-token embeddings and read-out gains.
        warmup: share of the steps with a rising rate; a cosine falls to zero after it.
        weight_decay: AdamW's.
        max_grad_norm: gradients are scaled down to this norm.
        mse_weight: lambda of clara.md section 3.
        rate_weights: how often each rate is drawn, in the order of ``compression.rates``; all equal when empty.
        pairs: most question-answer pairs of a passage in one example.
        documents: most passages a question in stage ``instruct``.
        distractors: most passages beside the gold ones, drawn anew for each example.
        restate: stage ``scp``.
        mix: weight of each source in the data; a source that is not named has weight 1.
        held_out: examples kept back for the validation loss.
        seed: of everything random.
        save_every: steps between checkpoints to resume from.
        evaluate_every: steps between validation losses.
        dtype: of the frozen base and of matrix products; trained weights and their optimiser state stay fp32.
    """

    base: str = "smollm2-135m"
    start: str | None = None
    compression: CompressionConfig = CompressionConfig()
    lora: LoraSettings = LoraSettings()
    steps: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=16, ge=1)
    accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    table_learning_rate: float = Field(default=1e-4, gt=0)
    warmup: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    mse_weight: float = Field(default=0.1, ge=0)
    rate_weights: tuple[float, ...] = ()
    pairs: int = Field(default=4, ge=1)
    documents: int = Field(default=5, ge=1)
    distractors: int = Field(default=3, ge=0)
    restate: RestateSettings = RestateSettings()
    mix: dict[str, float] = Field(default_factory=dict)
    held_out: int = Field(default=64, ge=0)
    seed: int = Field(default=0, ge=0)
    save_every: int = Field(default=50, ge=1)
    evaluate_every: int = Field(default=200, ge=1)
    dtype: Literal["bf16", "fp32"] = "bf16"

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulation {self.accumulation}")
        fresh = self.start is None  # else the rates are the checkpoint's, and ``stage`` compares them
        if fresh and self.rate_weights and len(self.rate_weights) != len(self.compression.rates):
            raise ValueError(f"rate_weights needs one weight for each of the rates {self.compression.rates}")
        return self
