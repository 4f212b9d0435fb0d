"""Settings of a training run, checked whole before anything is loaded. Recipes (TOML files) hold these fields."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from clara.config import CompressionConfig, LoraSettings, Settings

Stage = Literal["scp", "instruct", "end_to_end", "retriever", "reader"]
STAGES: dict[str, Stage] = {
    "scp": "scp",
    "instruct": "instruct",
    "end-to-end": "end_to_end",
    "retriever": "retriever",
    "reader": "reader",
}
"""The stages by their names on the command line."""

SELECTING: tuple[Stage, ...] = ("end_to_end", "retriever")
"""Stages whose questions choose among candidate memories."""


class RestateSettings(Settings):
    """Restating targets beside the questions of a passage.

    Attributes:
        repeat: share of passages with the target "repeat the passage", or its paraphrase where the record has one.
        resume: share of passages with the target "go on after these words", at a random place of the passage.
        tokens: longest such target, in words of the text; a paraphrase is taken whole, up to ``reply_tokens``.
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
        shared_distractors: take those of a passage record from its own batch: each passage is then compressed once
            and stands in several prompts, which makes distractors cheap.
        near_distractors: take those of a passage record from the passages of the run that are nearest its questions in
            words and hold none of its answers, as what a search finds beside the right passage is.
        candidates: passages a question chooses among, in stages ``end_to_end`` and ``retriever``.
        top_k: passages it takes, in stage ``end_to_end``.
        temperature: tau of clara.md section 5.
        reasoner_start: where the query reasoner's weights come from: a copy of the ``compressor``'s, ``random`` (no
            effect yet, as LoRA starts), or the reasoner of the ``checkpoint`` that the run starts from.
        reader_context: what stage ``reader`` answers from: the passages' full ``text``, or nothing (``none``).
        reader_examples: whose examples it takes: with the same seed it sees the same records, passages and targets as
            that stage.
        query_read_out: whether the query reasoner is trained with an affine read-out of its own, where the compressor
            has one (``gain``); it starts as a copy.
        query_projection: whether questions are compared through a matrix of their own that starts at the inverse
            covariance of the run's texts (``MemoryTable.whiten_queries``) and is trained; by their mean, or by
        late_interaction: memory token by memory token (``similarity.late_interaction``); needs ``query_projection``.
        projection_learning_rate: peak, of that matrix.
        train_compressor: let the gradients of stage ``end_to_end`` reach the compressor and the memory table too;
            candidates are then encoded at each step. Else both are frozen and each document is encoded once.
        freeze_compressor: in stages ``scp`` and ``instruct`` train the generator alone: compressor and memory table
            stay as they are, and each passage is compressed once.
        quoted_weight: in the same stages and in stage ``reader`` with text, of the CE among the tokens that a
            quotation allows, beside the CE over the whole vocabulary; for answers that can be quoted
            (``clara.model.quoting``). 0 leaves it out.
        targets: what the answers of the training questions are. ``gold``: the records' own. ``teacher``: what the
            teacher answers to the question over the same passages, in their place. ``both``: the records' own, with
            the teacher's distribution beside them. With ``teacher`` and with ``both`` the loss is CE of those answers
            plus ``kl_weight`` times KL(teacher || student), a mean over the answers' tokens (``distil``).
        teacher: folder of a reader that was trained on full text, on the same base model.
        kl_weight: of the KL term; 0 leaves it out.
        restate: stage ``scp``.
        reply_tokens: longest reply, in tokens; what is longer is cut there and has no end.
        mix: weight of each source in the data; a source that is not named has weight 1.
        held_out: examples kept back for the validation loss.
        held_out_answers: most questions of the held-out records that are answered at each validation, greedily.
        best_by: what makes weights the best so far: ``f1`` of those answers (Recall@5 in stage ``retriever``; a tie
            is decided by the loss, and so is all of it where nothing is answered), or the ``loss`` alone.
        keep: what the run's final checkpoint holds: the ``best`` weights or the ``last``. Where nothing is held out
            there is no best, and the last are kept.
        report_to: services that are told about each step, beside the log.
        seed: of everything random.
        save_every: steps between checkpoints to resume from.
        evaluate_every: steps between validations; the last step is always validated.
        dtype: of the frozen base and of matrix products; ``auto`` is bf16 where the device multiplies it faster,
            else fp32. Trained weights and their optimiser state stay fp32.
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
    shared_distractors: bool = False
    near_distractors: bool = False
    candidates: int = Field(default=20, ge=2)
    top_k: int = Field(default=5, ge=1)
    temperature: float = Field(default=0.02, gt=0)
    reasoner_start: Literal["compressor", "random", "checkpoint"] = "compressor"
    query_read_out: bool = True
    query_projection: bool = False
    late_interaction: bool = False
    projection_learning_rate: float = Field(default=1e-5, gt=0)
    train_compressor: bool = False
    freeze_compressor: bool = False
    quoted_weight: float = Field(default=0.0, ge=0)
    reader_context: Literal["text", "none"] = "text"
    reader_examples: Literal["scp", "instruct"] = "instruct"
    targets: Literal["gold", "teacher", "both"] = "gold"
    teacher: str | None = None
    kl_weight: float = Field(default=1.0, ge=0)
    restate: RestateSettings = RestateSettings()
    reply_tokens: int = Field(default=96, ge=2)
    mix: dict[str, float] = Field(default_factory=dict)
    held_out: int = Field(default=64, ge=0)
    held_out_answers: int = Field(default=32, ge=0)
    best_by: Literal["f1", "loss"] = "f1"
    keep: Literal["best", "last"] = "best"
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    seed: int = Field(default=0, ge=0)
    save_every: int = Field(default=50, ge=1)
    evaluate_every: int = Field(default=200, ge=1)
    dtype: Literal["auto", "bf16", "fp32"] = "auto"

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulation {self.accumulation}")
        if self.shared_distractors and self.near_distractors:
            raise ValueError("shared_distractors and near_distractors exclude each other; set one of them")
        fresh = self.start is None  # else the rates are the checkpoint's, and ``stage`` compares them
        if fresh and self.rate_weights and len(self.rate_weights) != len(self.compression.rates):
            raise ValueError(f"rate_weights needs one weight for each of the rates {self.compression.rates}")
        return self
