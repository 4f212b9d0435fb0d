"""Apple's checkpoint format: its files, names and configuration, read and checked; and the network they make.

A folder holds ``config.json``, ``adapters.pth`` and ``decoder_first_last_layers.pth``. The only file that opens a
pickle, as plain tensors only, and that knows the format's names. Embeddings and token ids are ``apple.vocabulary``'s
matter, writing ``apple.write``'s, finding the base model ``create``'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from clara.config import CompressionConfig, LoraSettings, Settings, check
from clara.errors import CheckpointError, ConfigError
from clara.model.apple.vocabulary import Vocabulary, base_matrix, difference, memory_ids
from clara.model.backbone import BaseModel, check_finite, check_names, read_object
from clara.model.checkpoint import Manifest, Origin
from clara.model.decoder import PEFT_PREFIX, Role
from clara.model.hub.base import KNOWN_BASES
from clara.model.network import Network
from clara.model.table import MemoryTable

CONFIG = "config.json"
ADAPTERS = "adapters.pth"
LAYERS = "decoder_first_last_layers.pth"
_MODEL_TYPE = "CLaRa"
EMBEDDINGS = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
ADAPTER_NAMES: dict[Role, str] = {
    "compressor": "encoder_adapter",
    "generator": "decoder_adapter",
    "query_reasoner": "query_reasoner_adapter",
}
STAGES = {"stage1": "scp", "stage1_2": "instruct", "stage2": "end_to_end"}
"""Training stages by Apple's names."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_FORMAT_KEYS = """
ae_mode attn_implementation compr_base_model_name compr_every_n_layer compr_linear_type compr_mlp_hidden_dim
compr_n_layers compr_rms_norm compr_use_mlp device_map kbtc_training load_adapters
load_pretrained_checkpoint lora_compressor lora_r_compressor max_new_tokens optimize_mem_tokens pure_inference
quantization sep stage2_retrieval_top_n training_form
"""
"""Keys with no part in what the published models compute. The compr_ keys describe a separate compressor model, which
none of them has."""

_TRANSFORMERS_KEYS = """
_attn_implementation_autoset _name_or_path architectures auto_map bos_token_id chunk_size_feed_forward dtype
eos_token_id id2label is_decoder is_encoder_decoder label2id output_attentions output_hidden_states pad_token_id
problem_type return_dict tie_word_embeddings torch_dtype transformers_version use_cache
"""
"""Keys that transformers writes into any configuration."""

_UNUSED_KEYS = frozenset((_FORMAT_KEYS + _TRANSFORMERS_KEYS).split())


class _OfficialConfig(Settings):
    """The keys of ``config.json`` that decide what the model computes.

    Attributes:
        decoder_model_name: the base model, often a path on the training machine.
        doc_max_length: T, the window in tokens.
        different_mem_tokens: each memory token has an embedding of its own; false: one is repeated.
        lora: always true.
        training_stage: a key of ``STAGES``.
        generation_top_k: passages that the generator reads; None where the file does not say.
        compr_model_name: a separate compressor model; always None.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    decoder_model_name: str
    doc_max_length: int = Field(ge=1)
    compr_rate: int = Field(ge=1)
    different_mem_tokens: bool
    lora: bool
    lora_r: int = Field(ge=1)
    training_stage: str
    generation_top_k: int | None = Field(default=None, ge=1)
    compr_model_name: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Official:
    """A checkpoint in Apple's format, checked as far as that goes without its base model.

    Attributes:
        values: ``config.json`` as it is.
        adapters: LoRA tensors by role and by Apple's names.
        carriers: places of whole matrices, as ``HOLDER/KEY``: the holder is an adapter, by Apple's name, or ``LAYERS``.
            Adapters that were made on a resized vocabulary bring the matrices with them.
        embeddings: [size, H].
        head: [size, H], or None where it is tied to the embeddings.
    """

    folder: Path
    config: _OfficialConfig
    values: Mapping[str, Any]
    adapters: Mapping[Role, Mapping[str, Tensor]]
    carriers: tuple[str, ...]
    embeddings: Tensor
    head: Tensor | None

    def compression(self) -> CompressionConfig:
        """Its compression; ``CheckpointError`` if the rate is above the window."""
        values = {"window_tokens": self.config.doc_max_length, "rates": [self.config.compr_rate]}
        try:
            return check(CompressionConfig, {**values, "input_format": "official"}, source=str(self.folder / CONFIG))
        except ConfigError as error:
            raise CheckpointError(str(error)) from None

    def lora(self) -> LoraSettings:
        """The adapters' shape; the format fixes alpha to twice the rank."""
        return LoraSettings(rank=self.config.lora_r, alpha=2.0 * self.config.lora_r)

    def adapter_parameters(self) -> int:
        """LoRA weights of all adapters."""
        return sum(tensor.numel() for tensors in self.adapters.values() for tensor in tensors.values())

    @property
    def base_name(self) -> str:
        """Name of its base model: a folder if that is here, else its known hub id."""
        named = self.config.decoder_model_name
        return named if Path(named).expanduser().is_dir() else KNOWN_BASES.get(Path(named).name, named)

    @property
    def stage(self) -> str:
        """The last training stage, by our name."""
        return STAGES[self.config.training_stage]

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest dtype that holds every adapter's values exactly."""
        return reduce(torch.promote_types, map(_dtype_of, self.adapters.values()), torch.bfloat16)

    def network(self, base: BaseModel, files: Path, *, adapter_dtype: torch.dtype) -> Network:
        """The network of a checkpoint; adapters and vocabulary are put into its base model, whose folder is ``files``.

        Raises:
            CheckpointError: it does not fit the base model.
        """
        from clara.model.adapters import Adapters  # noqa: PLC0415 - PEFT takes seconds that reading a folder does without

        compression, lora = self.compression(), self.lora()
        vocabulary = _vocabulary_of(self, base, files)
        tokens = self.embeddings[vocabulary.memory_ids]
        table = MemoryTable(compression, tokens.shape[1])
        table.load_state_dict({"tokens": tokens.float()})
        vocabulary.apply(base.model, tokens)
        adapters = Adapters.fresh(base.model, lora, dtype=adapter_dtype)
        if "query_reasoner" in self.adapters:
            adapters.split_query_reasoner()
        for role, tensors in self.adapters.items():
            shapes = {name: tuple(tensor.shape) for name, tensor in adapters.tensors(role).items()}
            source = f"{self.folder / ADAPTERS}: {ADAPTER_NAMES[role]}"
            adapters.put(role, _peft_names(tensors, shapes, source))
        return Network(adapters, table.to(base.model.device), vocabulary)

    def manifest(self, base: BaseModel, network: Network) -> Manifest:
        """The manifest of an equal native checkpoint."""
        dtypes: dict[str, torch.dtype] = {}
        for role, tensors in self.adapters.items():
            name, widest = ADAPTER_NAMES[role], _dtype_of(tensors)
            dtypes[name] = widest
            dtypes.update({place(name, key): t.dtype for key, t in tensors.items() if t.dtype != widest})
        origin = Origin.model_validate(
            {
                "config": dict(self.values),
                "carriers": self.carriers,
                "dtypes": {name: str(dtype).removeprefix("torch.") for name, dtype in dtypes.items()},
            }
        )
        return Manifest(
            base_model=base.name,
            base_identity=base.identity,
            hidden_size=self.embeddings.shape[1],
            compression=self.compression(),
            lora=self.lora(),
            roles=network.adapters.roles,
            stage=self.stage,
            official=origin,
        )


def _dtype_of(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The narrowest dtype that holds all tensors exactly."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))


def is_official(folder: Path) -> bool:
    """The folder has an adapter file or a configuration of Apple's format."""
    if (folder / ADAPTERS).is_file():
        return True
    try:
        if not (folder / CONFIG).is_file():
            return False
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.get("model_type") == _MODEL_TYPE


def subfolders(folder: Path) -> list[str]:
    """Names of sub-folders in the format: a published model has one for each rate."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and is_official(path))


def lowest_rate(folder: Path, names: Sequence[str]) -> str:
    """The sub-folder of a published model with the lowest rate; ``CheckpointError`` for a bad configuration."""
    rates = {}
    for name in names:
        path = folder / name / CONFIG
        rates[name] = _config(_read_values(path), path).compr_rate
    return min(rates, key=lambda name: rates[name])


def read(folder: Path) -> Official:
    """Read a folder and check it as far as that goes without its base model.

    Raises:
        CheckpointError: a file is missing, cannot be read as plain tensors, or lacks something; an unknown
            configuration key, training stage or tensor.
    """
    values = _read_values(folder / CONFIG)
    config = _config(values, folder / CONFIG)
    tables = _unpickled(folder / ADAPTERS)
    layers = _tensors(_unpickled(folder / LAYERS), str(folder / LAYERS))
    names = dict(ADAPTER_NAMES)
    if config.training_stage != "stage2" and ADAPTER_NAMES["query_reasoner"] not in tables:
        del names["query_reasoner"]
    check_names(tables.keys(), set(names.values()), str(folder / ADAPTERS), kind="adapter")
    adapters: dict[Role, Mapping[str, Tensor]] = {}
    carried: dict[str, dict[str, Tensor]] = {}
    for role, name in names.items():
        tensors = _tensors(tables[name], f"{folder / ADAPTERS}: {name}")
        carried[name] = {key: tensors.pop(key) for key in (EMBEDDINGS, HEAD) if key in tensors}
        _check_rank(tensors, config.lora_r, f"{folder / ADAPTERS}: {name}")
        adapters[role] = tensors
    for name, tensors in carried.items():
        for key, tensor in tensors.items():
            first = next(others[key] for others in carried.values() if key in others)
            if not torch.equal(first, tensor):
                raise CheckpointError(f"{folder / ADAPTERS}: {name} has another {key} than an adapter before it")
    matrices = {**layers, **{key: tensor for tensors in carried.values() for key, tensor in tensors.items()}}
    check_names(matrices.keys(), matrices.keys() & {EMBEDDINGS, HEAD}, str(folder / LAYERS))
    if EMBEDDINGS not in matrices:
        raise CheckpointError(f"{folder / LAYERS} misses {EMBEDDINGS}, and no adapter brings it")
    return Official(
        folder=folder,
        config=config,
        values=values,
        adapters=adapters,
        carriers=tuple(place(name, key) for name, held in {**carried, LAYERS: layers}.items() for key in held),
        embeddings=matrices[EMBEDDINGS],
        head=matrices.get(HEAD),
    )


def place(holder: str, key: str) -> str:
    """Name of one tensor in one of the files: the holder is an adapter, by Apple's name, or ``LAYERS``."""
    return f"{holder}/{key}"


def _peft_names(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], source: str
) -> dict[str, Tensor]:
    """Tensors of an adapter under PEFT's names, checked against the ``expected`` shapes (``CheckpointError``)."""
    shapes = {name.removeprefix(PEFT_PREFIX): shape for name, shape in expected.items()}
    check_names(tensors.keys(), shapes.keys(), source)
    for name, shape in shapes.items():
        got = tuple(tensors[name].shape)
        if got != shape:
            raise CheckpointError(
                f"{source}: {name} has shape {got}, the base model wants {shape}; is it the base it was trained on?"
            )
        check_finite({name: tensors[name]}, source)
    return {PEFT_PREFIX + name: tensor for name, tensor in tensors.items()}


def _check_rank(tensors: Mapping[str, Tensor], rank: int, source: str) -> None:
    """Refuse a rank that the tensors do not have, before adapters of it are made."""
    for name, tensor in tensors.items():
        for matrix, axis in ((".lora_A.", 0), (".lora_B.", 1)):
            if matrix in name and tensor.ndim == 2 and tensor.shape[axis] != rank:
                raise CheckpointError(f"{source}: {name} has rank {tensor.shape[axis]}, {CONFIG} says lora_r {rank}")


def _read_values(path: Path) -> dict[str, Any]:
    return read_object(path, missing=f"the checkpoint has no {path}")


def _config(values: dict[str, Any], path: Path) -> _OfficialConfig:
    faults = []
    if values.get("model_type") != _MODEL_TYPE:
        faults.append(f"model_type is {values.get('model_type')!r}, expected {_MODEL_TYPE!r}")
    known = set(_OfficialConfig.model_fields) | _UNUSED_KEYS | {"model_type"}
    faults += [f"unknown key {key!r} (value {values[key]!r})" for key in sorted(values.keys() - known)]
    stage = values.get("training_stage")
    if isinstance(stage, str) and stage not in STAGES:
        faults.append(f"unknown training_stage {stage!r}, expected one of {', '.join(STAGES)}")
    if values.get("lora") is False:
        faults.append("lora is false; a model without adapters is not supported")
    if values.get("compr_model_name"):
        faults.append(f"compr_model_name is {values['compr_model_name']!r}; a separate compressor is not supported")
    try:
        config = check(_OfficialConfig, values, source=str(path))
    except ConfigError as error:
        raise CheckpointError("; ".join([str(error), *faults])) from None
    if faults:
        raise CheckpointError(f"{path}: {len(faults)} fault(s): " + "; ".join(faults))
    return config


def _unpickled(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no file; it cannot be read as tensors")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"the checkpoint has no {path}") from None
    except Exception as error:  # noqa: BLE001 - a damaged pickle raises a dozen types, IndexError and TypeError too
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} cannot be read as plain tensors ({reason}); it is damaged, or it holds code, which is never run"
        ) from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a dictionary, got {type(values).__name__}")
    return values


def _tensors(values: object, source: str) -> dict[str, Tensor]:
    """A dictionary's tensors; parameters are unwrapped."""
    if not isinstance(values, dict) or not values:
        raise CheckpointError(f"{source} must hold tensors by name, got {type(values).__name__}")
    for name, tensor in values.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{source}: {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(
                f"{source}: {name} is {str(tensor.dtype).removeprefix('torch.')}, expected float32, bfloat16 or float16"
            )
    return {str(name): tensor.detach() for name, tensor in values.items()}


def _vocabulary_of(official: Official, base: BaseModel, files: Path) -> Vocabulary:
    """Its special tokens and changed rows, checked against the base model (``CheckpointError``)."""
    size, width = len(base.tokenizer), int(base.model.get_input_embeddings().weight.shape[1])
    count = official.compression().memory_tokens(official.config.compr_rate)
    if count > len(official.embeddings):
        raise CheckpointError(
            f"{official.folder}: a window of {official.config.doc_max_length} tokens has {count} memory tokens, "
            f"{EMBEDDINGS} has {len(official.embeddings)} rows in all"
        )
    ids = memory_ids(size, count, distinct=official.config.different_mem_tokens)
    none = torch.zeros(0, dtype=torch.int64)
    plain = Vocabulary(ids, none, official.embeddings[:0], none, official.embeddings[:0])
    head = _head(official, base)
    for name, matrix in ((EMBEDDINGS, official.embeddings), (HEAD, head)):
        if matrix is None:
            continue
        if tuple(matrix.shape) != (plain.size, width):
            raise CheckpointError(
                f"{official.folder}: {name} has shape {tuple(matrix.shape)}, expected {(plain.size, width)}: {size} "
                f"tokens of the base model {base.name}, {plain.size - size} special ones, width {width}; is it the "
                "base it was trained on?"
            )
        check_finite({name: matrix}, str(official.folder))
    kept = difference(official.embeddings, base_matrix(files, EMBEDDINGS), size, skip=ids)
    made = replace(plain, ids=kept, rows=official.embeddings[kept])
    if head is None:
        return made
    kept = difference(head, base_matrix(files, HEAD), size, skip=none)
    return replace(made, head_ids=kept, head_rows=head[kept])


def _head(official: Official, base: BaseModel) -> Tensor | None:
    """The LM head, None where the base model ties it to the embeddings."""
    if base.model.get_output_embeddings().weight is not base.model.get_input_embeddings().weight:
        if official.head is None:
            raise CheckpointError(f"{official.folder / LAYERS} misses {HEAD}, which the base model {base.name} has")
        return official.head
    if official.head is not None and not torch.equal(official.head, official.embeddings):
        raise CheckpointError(
            f"{official.folder / LAYERS} has {HEAD}, but the base model {base.name} has no "
            "LM head of its own; is it the base it was trained on?"
        )
    return None


def fresh(
    base: BaseModel, compression: CompressionConfig, lora: LoraSettings, table: MemoryTable, *, seed: int
) -> tuple[Vocabulary, Origin]:
    """The parts of a checkpoint begun here in the paper's form; its special tokens are put into the base model."""
    count = compression.memory_tokens(compression.default_rate)
    vocabulary = Vocabulary.fresh(base.model, len(base.tokenizer), count, seed=seed)
    assert table.tokens is not None, "CompressionConfig: input_format official has memory tokens"  # noqa: S101
    vocabulary.apply(base.model, table.tokens)
    tied = base.model.get_output_embeddings().weight is base.model.get_input_embeddings().weight
    config = {
        "model_type": _MODEL_TYPE,
        "decoder_model_name": base.name,
        "doc_max_length": compression.window_tokens,
        "compr_rate": compression.default_rate,
        "different_mem_tokens": True,
        "sep": True,
        "lora": True,
        "lora_r": lora.rank,
        "generation_top_k": 5,
        "training_stage": "stage1",
        "optimize_mem_tokens": True,
        "kbtc_training": False,
        "pure_inference": False,
    }
    carriers = tuple(place(LAYERS, name) for name in ([EMBEDDINGS] if tied else [EMBEDDINGS, HEAD]))
    return vocabulary, Origin(config=config, carriers=carriers, dtypes=dict.fromkeys(ADAPTER_NAMES.values(), "float32"))
