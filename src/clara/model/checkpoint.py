"""The native checkpoint: a folder with ``clara.json``, ``adapters/<role>/``, ``memory.safetensors`` and ``README.md``.

Adapters are in PEFT's own folder format, so PEFT and vLLM load them. Everything is checked against what the base
model and the configuration ask for before a single value is used. Apple's format is ``apple.format``'s matter.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from safetensors.torch import save_file
from torch import Tensor

from clara.config import CompressionConfig, LoraSettings, Settings
from clara.errors import CheckpointError
from clara.model.backbone import ADAPTER, BaseModel, check_finite, checked_tensors, read_settings, read_tensors
from clara.model.decoder import MEMORY_ROLES, Role, StoredAdapters
from clara.model.network import Network, StoredNetwork
from clara.model.table import MemoryTable
from clara.records import Wording

if TYPE_CHECKING:
    from clara.model.apple.vocabulary import Vocabulary

_Fingerprinted = Literal["memories", "documents", "states", "answers"]
_FINGERPRINTED: Mapping[_Fingerprinted, tuple[Role, ...]] = {
    "memories": MEMORY_ROLES,
    "documents": ("compressor",),
    "states": ("compressor",),
    "answers": ("compressor", "generator"),
}
_STATES_TABLE = ("tokens", "information")
"""Tensors of the memory table that hidden states depend on."""

_FORMAT_VERSION = 1
MANIFEST = "clara.json"
MEMORY = "memory.safetensors"


class Origin(Settings):
    """The facts that ``apple.write`` needs to write a checkpoint back in Apple's format.

    Attributes:
        config: its ``config.json``, as it was.
        carriers: whole matrices that came with its adapters, as ``ADAPTER/TENSOR`` by Apple's names; an adapter's name
            alone stands for the embeddings.
        dtypes: of each adapter's tensors, as ``ADAPTER``, and as ``ADAPTER/TENSOR`` where one differs.
    """

    config: dict[str, Any]
    carriers: tuple[str, ...]
    dtypes: dict[str, Literal["float32", "bfloat16", "float16"]]


class ReadingRule(Settings):
    """Settings of reading retrieved passages, as measured for a checkpoint.

    Attributes:
        auto_texts: passages that context ``auto`` reads as text, the best first.
        auto_tries: passages that it reads so one at a time, until one gives an answer that is not withheld.
        memory_k: passages that context ``memory`` reads; None for the checkpoint's default.
        text_k: the same of context ``text``.
        rerank: best passages that are reranked by the question's likelihood given each
            (``ClaraModel.question_likelihoods``); 0 keeps the order of the search.
        coverage_weight: weight in the evidence of the share of a question's words that stand in the passages.
        nearness_weight: weight in the evidence of the share of them that stand near the quotation.
        text_evidence: least evidence (``answering.Reading.evidence``) of a quoted answer from text, else it is
            withheld; None is 0 for a model that learnt to refuse, and no threshold for others.
        memory_evidence: the same for an answer from memories.
        margin: evidence beyond the least with which no further passage is read (``auto_tries``); of several answers
            that of most evidence is given.
    """

    auto_texts: int = Field(default=1, ge=1)
    auto_tries: int = Field(default=1, ge=1)
    memory_k: int | None = Field(default=None, ge=1)
    text_k: int | None = Field(default=None, ge=1)
    rerank: int = Field(default=0, ge=0)
    coverage_weight: float = Field(default=0.4, ge=0)
    nearness_weight: float = Field(default=0.0, ge=0)
    text_evidence: float | None = None
    memory_evidence: float | None = None
    margin: float = Field(default=0.0, ge=0)


_ABSURD = 100  # a table this many times the size of its file is refused before it is made

_DECODING = ("latent_weight", "wording", "contrast", "reading")
"""Measured fields of a manifest."""

_OMITTED = (
    "query_read_out",
    "query_projection",
    "late_interaction",
    "mixed",
    "refuses",
    "judges",
    *_DECODING,
    "official",
)
"""Fields that are not written where they have their default."""


class Manifest(Settings):
    """The content of ``clara.json``.

    Attributes:
        base_model: the base model's name, folder or hub id.
        base_identity: ``hub.base.identity`` of the base weights it was trained on.
        hidden_size: H of the base model.
        roles: roles with an adapter folder of their own.
        query_read_out: the memory table has a read-out of its own for questions.
        query_projection: questions are compared through a projection,
        late_interaction: by MaxSim over memory tokens instead of their mean; needs the projection.
        mixed: the generator was trained to read texts and memories in one prompt.
        refuses: it was trained to reply ``prompts.NO_ANSWER`` where no passage holds the answer.
        judges: its text reader was trained to say of a quoted answer whether it is right (``prompts.RIGHT``).
        latent_weight: weight of a rank by memory in hybrid search, beside 1 for a rank by words. This and the next
            three are set where they were measured for this checkpoint; a training run keeps them, and names them in
            ``trained["not_remeasured"]``.
        contrast: by rate, weight of the null memory's logits in a quoted answer from memories (``generator.Contrast``);
            empty for none. Needs late interaction, whose centre of passages is the null memory.
        stage: the last training stage, or ``untrained``.
        trained: facts of the training run, for the model card.
        official: set if it came in Apple's format; there is a ``vocabulary.safetensors`` then.
    """

    format_version: Literal[1] = 1
    base_model: str
    base_identity: str
    hidden_size: int = Field(ge=1)
    compression: CompressionConfig
    lora: LoraSettings
    roles: tuple[Role, ...]
    query_read_out: bool = False
    query_projection: bool = False
    late_interaction: bool = False
    mixed: bool = False
    refuses: bool = False
    judges: bool = False
    latent_weight: float | None = Field(default=None, ge=0)
    wording: Wording | None = None
    contrast: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = ()
    reading: ReadingRule | None = None
    stage: str = "untrained"
    trained: dict[str, Any] = Field(default_factory=dict)
    official: Origin | None = None

    @model_serializer(mode="wrap")
    def _omit_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A checkpoint without them reads the same to releases older than these fields.
        values: dict[str, Any] = handler(self)
        for name in _OMITTED:
            if getattr(self, name) == type(self).model_fields[name].default:
                del values[name]
        return values

    @model_validator(mode="after")
    def _contrast_fits(self) -> Manifest:
        if self.contrast and len(self.contrast) != len(self.compression.rates):
            raise ValueError(
                f"contrast must hold one number for each of the rates {list(self.compression.rates)}, got "
                f"{list(self.contrast)}"
            )
        if any(self.contrast) and not self.late_interaction:
            raise ValueError("contrast needs late_interaction: the centre of its passages is what it contrasts with")
        return self

    def unmeasured(self, **changed: Any) -> Manifest:  # noqa: ANN401 - any field
        """The manifest with ``changed`` fields, of other weights than it was measured with.

        Measured settings are kept, since dropping them costs more than a value that is a little off; ``trained`` names
        them under ``not_remeasured``.
        """
        made = self.model_copy(update=changed)
        if not made.measured():
            return made
        return made.model_copy(update={"trained": made.trained | {"not_remeasured": list(made.measured())}})

    def measured(self) -> tuple[str, ...]:
        """Names of the measured settings that it has."""
        return tuple(name for name in _DECODING if getattr(self, name))

    def contrast_weight(self, rate: int) -> float:
        """Weight of the null memory in a quoted answer at a rate; 0 for none."""
        return self.contrast[self.compression.rates.index(rate)] if self.contrast else 0.0


def is_checkpoint(folder: Path) -> bool:
    """The folder has a native checkpoint's manifest."""
    settle(folder)
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``clara.json``.

    Raises:
        CheckpointError: it is missing, not JSON, or has a key that is unknown, missing or wrong.
    """
    settle(folder)
    missing = f"{folder} has no {MANIFEST}; it is not a clara checkpoint"
    return read_settings(folder / MANIFEST, Manifest, version=_FORMAT_VERSION, missing=missing)


def save(network: Network, manifest: Manifest, folder: Path, *, card: str, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a checkpoint, whole or not at all; one that is in the folder is replaced.

    Base weights are never written. ``roles`` and query side of the manifest are the network's; ``card`` is the text of
    ``README.md``, ``dtype`` that of the adapters on disk. The memory table stays float32.

    Raises:
        CheckpointError: the folder exists and is not a checkpoint, or a value is not finite.
    """
    check_replaceable(folder)
    table = network.table
    own = {
        "query_read_out": bool(table.read_out_of_queries()),
        "query_projection": bool(table.projection_of_queries()),
        "late_interaction": table.late,
        "contrast": manifest.contrast if table.late else (),  # else there is no null memory
    }
    manifest = manifest.model_copy(update={"roles": network.adapters.roles, **own})
    with replacing(folder) as scratch:
        _write(network, manifest, scratch, card=card, dtype=dtype)


def check_replaceable(folder: Path, *, manifest: str = MANIFEST, kind: str = "a checkpoint") -> None:
    """Refuse to replace the working folder, or one that is neither empty nor has the file ``manifest`` of its ``kind``.

    Raises:
        CheckpointError: says what stands there.
    """
    settle(folder)
    if folder.resolve() == Path.cwd():
        raise CheckpointError(f"{folder} is the working folder, which cannot be replaced whole; name a folder in it")
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file, {kind} is a folder; choose another name")
    if folder.exists() and not (folder / manifest).is_file() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} exists and is not {kind}; choose another folder")
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made (``CheckpointError``), before hours of work for it."""
    above = next(path for path in folder.resolve().parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise CheckpointError(f"{folder} cannot be made: {above} is no folder that you may write to; choose another")


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which replaces ``folder`` at the end: whole, or not at all after an error.

    Where ``folder`` is a symbolic link, its target is replaced.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield scratch
        for path in scratch.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        scratch.chmod(0o755)
        old = _replaced(folder)
        if folder.exists():
            # Only here, with the new one whole: what a killed save left is of no more use.
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        scratch.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _replaced(folder: Path) -> Path:
    """The place of a checkpoint while another replaces it; ``folder`` is resolved."""
    return folder.with_name(f".{folder.name}-replaced")


def settle(folder: Path) -> None:
    """Put the old checkpoint back if a save was killed between its two renames."""
    folder = folder.resolve()
    old = _replaced(folder)
    if not folder.exists() and old.is_dir():
        old.rename(folder)


def _write(network: Network, manifest: Manifest, folder: Path, *, card: str, dtype: torch.dtype) -> None:
    from clara.model.adapters import save_adapter  # noqa: PLC0415 - PEFT takes seconds that reading does without

    peft_model = network.adapters.peft_model
    for role in manifest.roles:
        save_adapter(peft_model, role, folder / "adapters" / role, dtype=dtype)
    table = {name: t.to("cpu", torch.float32).contiguous() for name, t in network.table.state_dict().items()}
    check_finite(table, MEMORY)
    save_file(table, folder / MEMORY, metadata={"format": "pt"})
    if network.vocabulary is not None:
        from clara.model.apple.vocabulary import VOCABULARY  # noqa: PLC0415

        tensors = {name: tensor.contiguous() for name, tensor in network.vocabulary.tensors().items()}
        check_finite(tensors, VOCABULARY)
        save_file(tensors, folder / VOCABULARY, metadata={"format": "pt"})
    describe(folder, manifest, card)


def describe(folder: Path, manifest: Settings, card: str, *, name: str = MANIFEST) -> None:
    """Write a folder's card and its manifest under some ``name``."""
    (folder / "README.md").write_text(card, encoding="utf-8")
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    (folder / name).write_text(text, encoding="utf-8")


@contextmanager
def copying(source: Path, folder: Path, manifest: Manifest, *, card: str) -> Iterator[Path]:
    """Write a checkpoint with the weights of ``source``, which may be ``folder`` itself; whole or not at all.

    Gives the copy, to change files in before it replaces ``folder``.

    Raises:
        CheckpointError: ``folder`` exists and is not a checkpoint.
    """
    check_replaceable(folder)
    with replacing(folder) as scratch:
        shutil.copytree(source, scratch, dirs_exist_ok=True)
        yield scratch
        describe(scratch, manifest, card)


def load(folder: Path, manifest: Manifest, base: BaseModel, *, adapter_dtype: torch.dtype) -> Network:
    """Build the network of a checkpoint on its base model.

    Raises:
        CheckpointError: another base model, or a tensor that is missing, unknown, of the wrong shape or not finite.
    """
    from clara.model.adapters import Adapters, load_adapter  # noqa: PLC0415 - as in _write

    table, vocabulary = _table(folder, manifest, base)
    adapters = Adapters.fresh(base.model, manifest.lora, dtype=adapter_dtype)
    if "query_reasoner" in manifest.roles:
        adapters.split_query_reasoner()
    if "text_reader" in manifest.roles:
        adapters.add_frozen("text_reader", manifest.lora, dtype=adapter_dtype)
    for role in manifest.roles:
        load_adapter(adapters.peft_model, folder / "adapters" / role / ADAPTER, role)
    return Network(adapters, table, vocabulary)


def load_stored(folder: Path, manifest: Manifest, base: BaseModel) -> StoredNetwork:
    """A read-only checkpoint: its adapters stay plain tensors until a role acts; arguments and errors as ``load``."""
    table, vocabulary = _table(folder, manifest, base)
    tensors: dict[Role, dict[str, Tensor]] = {}
    for role in manifest.roles:
        shapes = StoredAdapters.shapes(base.model, manifest.lora.rank, manifest.lora.targets)
        tensors[role] = checked_tensors(folder / "adapters" / role / ADAPTER, shapes)
    scale = manifest.lora.alpha / manifest.lora.rank
    return StoredNetwork(StoredAdapters(base.model, tensors, scale), table, vocabulary)


def _table(folder: Path, manifest: Manifest, base: BaseModel) -> tuple[MemoryTable, Vocabulary | None]:
    """A checkpoint's memory table and, in Apple's format, its vocabulary, which is put into the base model."""
    base.check_trained_on(folder, manifest.base_model, manifest.base_identity)
    vocabulary_size, width = base.model.get_input_embeddings().weight.shape
    _check_sizes(folder, manifest, int(width))
    table = MemoryTable(manifest.compression, manifest.hidden_size, vocabulary_size)
    if manifest.query_read_out:
        table.split_query_read_out()
    table.project_queries(projected=manifest.query_projection, late=manifest.late_interaction)
    expected = {name: tuple(tensor.shape) for name, tensor in table.state_dict().items()}
    table.load_state_dict(checked_tensors(folder / MEMORY, expected))
    vocabulary = None
    if manifest.official is not None and table.tokens is not None:
        from clara.model.apple.vocabulary import VOCABULARY, Vocabulary  # noqa: PLC0415

        path = folder / VOCABULARY
        count, width = table.tokens.shape
        vocabulary = Vocabulary.from_tensors(read_tensors(path), memory_tokens=count, width=width, source=str(path))
        vocabulary.apply(base.model, table.tokens)
    return table.to(base.model.device), vocabulary


def _check_sizes(folder: Path, manifest: Manifest, width: int) -> None:
    """Refuse sizes that the files do not have (``CheckpointError``), before tensors of these sizes are made."""
    path = folder / MANIFEST
    if manifest.hidden_size != width:
        raise CheckpointError(f"{path}: hidden_size is {manifest.hidden_size}, the base model's is {width}")
    if manifest.lora.rank > width:
        raise CheckpointError(f"{path}: lora.rank is {manifest.lora.rank}, above the base model's width of {width}")
    compression = manifest.compression
    held = (folder / MEMORY).stat().st_size if (folder / MEMORY).is_file() else 0
    count = compression.memory_tokens(min(compression.rates)) if compression.read_out == "memory_tokens" else 0
    # Where it is a little off, the shape of the tensor says so better.
    if held and 4 * count * width > _ABSURD * held:
        raise CheckpointError(
            f"{path}: a window of {compression.window_tokens} tokens has {count} memory tokens, {MEMORY} holds fewer"
        )


def hashed_parts(tensors: Mapping[str, Tensor], *, prefix: str = "") -> Iterator[bytes]:
    """An adapter as fingerprints hash it: each name, behind ``prefix``, then its values as bf16."""
    for name, tensor in sorted(tensors.items()):
        yield f"{prefix}{name}".encode()
        yield tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()


def fingerprint(network: Network | StoredNetwork, manifest: Manifest, of: _Fingerprinted = "memories") -> str:
    """A hash of base model, compression settings, weights and memory table: 16 hex digits.

    It covers everything that decides all ``memories`` (compressor and query reasoner; generator and text reader may be
    trained on without making stored memories useless), the ``documents``' alone, the ``states`` that a read-out weighs,
    or the ``answers`` from documents' memories (with the generator).
    """
    roles = [role for role in _FINGERPRINTED[of] if role in network.adapters.roles]
    digest = hashlib.sha256(manifest.base_identity.encode())
    digest.update(manifest.compression.model_dump_json().encode())
    for role in roles:
        for part in hashed_parts(network.adapters.tensors(role), prefix=f"{role}/"):
            digest.update(part)
    for name, tensor in sorted(network.table.state_dict().items()):
        of_questions = name.startswith("query_") and "query_reasoner" not in roles
        if not of_questions and (of != "states" or name in _STATES_TABLE):
            digest.update(name.encode())
            digest.update(tensor.to("cpu", torch.float32).numpy().tobytes())
    if network.vocabulary is not None:
        network.vocabulary.update(digest)
    return digest.hexdigest()[:16]
