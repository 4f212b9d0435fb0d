"""A reader: the backbone with one LoRA that answers from full text, or closed-book. No memory anywhere.

The baseline of compressed answers, and the teacher that they are distilled from. Its folder is a PEFT adapter folder
with ``reader.json`` and a card in it; prompts and decoding are those of ``ClaraModel``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from clara.config import LoraSettings, Settings
from clara.errors import CheckpointError, InputError
from clara.model import checkpoint
from clara.model.adapters import Adapters, load_adapter, save_adapter
from clara.model.backbone import ADAPTER, BaseModel, load_base, read_settings
from clara.model.clara_model import find_checkpoint
from clara.model.decoder import AdapterName, RoleWeights
from clara.model.generator import DecodeLoop, Generator, sampling
from clara.model.hub.base import EMBEDDED, Progress
from clara.model.placement import DTYPES, natural_dtype
from clara.model.prompting import Prompter
from clara.records import Generation, GenerationRequest

_FORMAT_VERSION = 1
MANIFEST = "reader.json"

ReaderContext = Literal["text", "none"]
"""A reader's training context: the passages' full text, or nothing (closed book)."""


class ReaderManifest(Settings):
    """The content of ``reader.json``, as ``checkpoint.Manifest``; ``context`` is its training context."""

    format_version: Literal[1] = 1
    base_model: str
    base_identity: str
    context: ReaderContext
    lora: LoraSettings
    refuses: bool = False
    judges: bool = False
    trained: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> ReaderManifest:
        """Read and check ``reader.json``.

        Raises:
            CheckpointError: it is missing, not JSON, or has a key that is unknown, missing or wrong.
        """
        checkpoint.settle(folder)
        missing = f"{folder} has no {MANIFEST}; expected the folder that clara train reader wrote (DIR/reader)"
        return read_settings(folder / MANIFEST, cls, version=_FORMAT_VERSION, missing=missing)

    def fingerprint(self, adapters: Adapters, name: AdapterName) -> str:
        """A hash of everything that decides a reader's answers, 16 hex digits; ``name``: its adapter."""
        facts = {"base": self.base_identity, "context": self.context}
        digest = hashlib.sha256(json.dumps([facts, self.lora.model_dump()], sort_keys=True).encode())
        for part in checkpoint.hashed_parts(adapters.tensors(name)):
            digest.update(part)
        return digest.hexdigest()[:16]


def find_reader(name: str | Path) -> tuple[ReaderManifest, Path]:
    """Manifest and adapter file of a reader: a folder that ``clara train reader`` wrote, or a checkpoint's text reader.

    Raises:
        CheckpointError: there is none, or its manifest is damaged.
    """
    folder = Path(name).expanduser()
    if str(name) not in EMBEDDED and not checkpoint.is_checkpoint(folder):
        return ReaderManifest.read(folder), folder / ADAPTER
    folder = find_checkpoint(str(name))
    whole = checkpoint.read_manifest(folder)
    if "text_reader" not in whole.roles:
        raise CheckpointError(f"{name} has no text reader; name a checkpoint that has one, or a reader's folder")
    manifest = ReaderManifest(
        base_model=whole.base_model,
        base_identity=whole.base_identity,
        context="text",
        lora=whole.lora,
        refuses=whole.refuses,
        judges=whole.judges,
    )
    return manifest, folder / "adapters" / "text_reader" / ADAPTER


class TextReader:
    """A loaded reader, by its folder's name; ``fingerprint`` is of base, context and weights, 16 hex digits."""

    def __init__(self, name: str, manifest: ReaderManifest, base: BaseModel, adapters: Adapters) -> None:
        self.name = name
        self.manifest = manifest
        self.fingerprint = manifest.fingerprint(adapters, "generator")
        self._decoder = DecodeLoop(partial(RoleWeights(adapters).acting_as, "generator"))
        prompter = Prompter(base.tokenizer, refuses=manifest.refuses)
        self._generator = Generator(base.tokenizer, prompter, judges=lambda _: manifest.judges)
        adapters.peft_model.eval()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        cache: Path,
        base: str | None = None,
        device: str = "cpu",
        dtype: Literal["auto", "bf16", "fp32"] = "auto",
        progress: Progress | None = None,
    ) -> TextReader:
        """Load the output of ``clara train reader``.

        ``base``: where the base model is, if not where the reader says; ``dtype`` ``auto`` is bf16 where the device
        multiplies it faster, else fp32.

        Raises:
            CheckpointError: there is no reader, it is damaged, or the base model is another one.
            BaseModelError: its base model cannot be had.
        """
        path = Path(folder).expanduser()
        manifest = ReaderManifest.read(path)
        held = DTYPES[dtype] if dtype != "auto" else natural_dtype(device)
        loaded = load_base(base or manifest.base_model, cache, dtype=held, device=device, progress=progress)
        loaded.check_trained_on(path, manifest.base_model, manifest.base_identity)
        adapters = Adapters.fresh(loaded.model, manifest.lora, dtype=held, roles=("generator",))
        load_adapter(adapters.peft_model, path / ADAPTER, "generator")
        return cls(str(folder), manifest, loaded, adapters)

    @property
    def context(self) -> ReaderContext:
        """Its training context, ``text`` or ``none``."""
        return self.manifest.context

    def generate_many(self, requests: Sequence[GenerationRequest], *, max_new_tokens: int = 32) -> list[Generation]:
        """Greedy answers to several requests at once, with the prompts of ``ClaraModel`` for text or closed book.

        Requests hold texts or nothing; their field ``reader`` is ignored: there is one set of weights here.

        Raises:
            InputError: a question is empty, a request holds what this reader cannot read, or a prompt is longer than
                the model's context.
        """
        for request in requests:
            self._check(request)
        return self._generator.generate(self._decoder, requests, sampling(max_new_tokens=max_new_tokens))

    def _check(self, request: GenerationRequest) -> None:
        if not request.question.strip():
            raise InputError("the question is empty")
        if request.memories:
            raise InputError(f"{self.name} reads text, not memories; give it the passages' texts")
        if request.texts and self.context == "none":
            raise InputError(
                f"{self.name} was trained without context (closed book), the request has {len(request.texts)} texts; "
                'ask it without them, or train a reader with reader_context = "text"'
            )


def save_reader(adapters: Adapters, manifest: ReaderManifest, folder: Path, *, card: str) -> None:
    """Write the generator of ``adapters`` as a reader, whole or not at all; replaces a reader.

    Raises:
        CheckpointError: the folder exists and is not a reader, or a value is not finite.
    """
    checkpoint.check_replaceable(folder, manifest=MANIFEST, kind="a reader")
    with checkpoint.replacing(folder) as scratch:
        save_adapter(adapters.peft_model, "generator", scratch)
        checkpoint.describe(scratch, manifest, card, name=MANIFEST)
