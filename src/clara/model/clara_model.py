"""``ClaraModel``: texts and questions in, memories and answers out.

Joins tokenizer, network and generator for inference. Knows no files to index and no store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Generator as Pieces
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import platformdirs
import torch
from torch import nn

from clara.errors import CheckpointError, InputError, MemoryMismatchError, TooLongError
from clara.model import checkpoint
from clara.model.backbone import padded_texts, plain_ids, token_spans
from clara.model.checkpoint import ReadingRule
from clara.model.create import Loaded, open_checkpoint
from clara.model.decoder import Role, RoleWeights
from clara.model.generator import Contrast, DecodeLoop, Generator, Sampling, check_length, sampling
from clara.model.hub import base as hub_base
from clara.model.network import Network, StoredNetwork, encode
from clara.model.placement import Attention, Dtype, placement
from clara.prompts import NO_ANSWER
from clara.records import Generation, GenerationRequest, Memory, QueryMemory, QuerySpace, Wording

if TYPE_CHECKING:
    from clara.model.inspection import Inspector

_EMBEDDED_CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
"""Checkpoints that ship inside the package, by the name of their base model."""

_UNTRAINED_LATENT_WEIGHT = 0.25
"""Lets memories order what words do not tell apart, and no more."""

_DEFAULT_K = 5
"""Passages that the paper's models read (clara.md section 8)."""

TOKENS_A_BATCH = 4096
"""Text tokens compressed at once: enough to keep the matrix products busy, little enough to stay in cache."""


def default_cache() -> Path:
    """The user's cache folder for base weights."""
    return Path(platformdirs.user_cache_dir("clara-rag"))


class ClaraModel:
    """A loaded CLaRa checkpoint, ready to compress, to encode questions and to answer.

    Attributes:
        name: what it was loaded by.
        fingerprint: marks its memories; 16 hex digits.
    """

    def __init__(self, name: str, loaded: Loaded[Network | StoredNetwork], *, attention: str | None = None) -> None:
        self.name = name
        self.manifest = loaded.manifest
        self._given = loaded.fingerprint
        self.fingerprint = loaded.fingerprint or checkpoint.fingerprint(loaded.network, loaded.manifest)
        self._network = loaded.network
        if isinstance(self._network, Network):
            self._network.eval()
        self._tokenizer = loaded.base.tokenizer
        self._weights = RoleWeights(loaded.network.adapters, merge=loaded.merge, attention=attention)
        self._prompter = loaded.prompter()
        self._generator = Generator(self._tokenizer, self._prompter, self._contrast, self.judges)
        readers: tuple[Role | None, ...] = ("generator", "text_reader", None)
        self._decoders = {role: DecodeLoop(partial(self._weights.acting_as, role)) for role in readers}
        decoder = loaded.network.adapters.bare().get_decoder()
        linear = (m for name, m in decoder.named_modules() if isinstance(m, nn.Linear) and "lora_" not in name)
        self._layer_weights = sum(m.in_features * m.out_features for m in linear)

    @classmethod
    def load(  # noqa: PLR0913 - all but the name are keywords
        cls,
        name: str | Path = "smollm2-135m",
        *,
        base: str | None = None,
        device: str = "cpu",
        dtype: Dtype = "auto",
        attention: Attention = "auto",
        check_memory: bool = True,
        merge: bool = True,
        cache: Path | None = None,
        progress: hub_base.Progress | None = None,
    ) -> ClaraModel:
        """Load a checkpoint.

        Args:
            name: an embedded model (``smollm2-135m``), a checkpoint folder, or a hub id (``owner/model``,
                ``owner/model/folder``, ``owner/model@revision``); native or in Apple's format.
            base: base model by name, folder or hub id, where the checkpoint's own entry does not lead to it.
            device: torch device for all weights; ``balanced`` or ``sequential`` spread them over all GPUs, then the
                CPU (accelerate's device maps).
            dtype: of the base weights; ``auto`` is bf16 where the device multiplies it faster, else fp32; ``int8``
                and ``int4`` are quantised by bitsandbytes (extra ``quantised``).
            attention: of prompts: ``auto`` (torch's own kernels), ``eager``, ``sdpa``, or ``flash`` (flash-attn).
            check_memory: refuse a model that does not fit, before it is loaded.
            merge: make a copy of a small model's weights for each role that acts, with its adapter in them. A few
                questions are answered sooner, and in less memory, without.
            cache: folder for base weights; the user's cache folder by default.
            progress: told about downloads and conversion.

        Raises:
            CheckpointError: there is no checkpoint of that name, or it is damaged.
            BaseModelError: its base model cannot be had.
            HubError: the hub does not give it.
            MemoryShortageError: it does not fit.
        """
        where = placement(dtype, device, attention)
        # A store keeps the name, and is opened from other working folders.
        local = str(name) not in hub_base.EMBEDDED and Path(name).expanduser().is_dir()
        lasting = str(Path(name).expanduser().resolve() if local else name)
        folder = find_checkpoint(lasting, progress=progress)
        loaded = open_checkpoint(
            folder,
            cache or default_cache(),
            where,
            base_name=base,
            check_memory=check_memory,
            merge=merge,
            progress=progress,
        )
        return cls(lasting, loaded, attention=where.attention)

    @property
    def window_tokens(self) -> int:
        """Longest text, in tokens, that becomes one memory."""
        return self.manifest.compression.window_tokens

    @property
    def rates(self) -> tuple[int, ...]:
        """Compression rates served; the first is the default."""
        return self.manifest.compression.rates

    @property
    def default_rate(self) -> int:
        """The rate used when none is asked for."""
        return self.manifest.compression.default_rate

    @property
    def default_k(self) -> int:
        """Passages for a question unless told otherwise: in Apple's format what the checkpoint says, else 5."""
        origin = self.manifest.official
        return int((origin.config.get("generation_top_k") if origin is not None else None) or _DEFAULT_K)

    @property
    def latent_weight(self) -> float:
        """Weight of a rank by memory in hybrid search, beside 1 for a rank by words.

        The checkpoint says it where it was measured; else it is 1 with a query reasoner. One that still shares the
        compressor's weights was never trained to find anything: alone it ranks worse than words do (LOG.md), and with
        an equal say it would push out what they found.
        """
        if self.manifest.latent_weight is not None:
            return self.manifest.latent_weight
        return 1.0 if "query_reasoner" in self.manifest.roles else _UNTRAINED_LATENT_WEIGHT

    @property
    def wording(self) -> Wording:
        """Default wording of answers from memories: free, or quoted from the passages."""
        return self.manifest.wording or "free"

    @property
    def query_space(self) -> QuerySpace:
        """Vectors that compare a question with passages: the mean of its memory, projected, or all of it.

        Late interaction finds the passages that it puts in order by the mean.
        """
        return "mean" if self.manifest.query_projection else "flat"

    @property
    def reading(self) -> ReadingRule:
        """Rule for reading the passages found."""
        return self.manifest.reading or ReadingRule()

    @property
    def text_role(self) -> Literal["generator", "text_reader", "base"]:
        """Whose weights answer from text: trained ones where there are some."""
        if self.mixed:
            return "generator"
        return "text_reader" if "text_reader" in self.manifest.roles else "base"

    @property
    def reads_text(self) -> bool:
        """True if it has weights trained to answer from text."""
        return self.text_role != "base"

    @property
    def mixed(self) -> bool:
        """True if one prompt may hold texts and memories."""
        return self.manifest.mixed

    def refused(self, generation: Generation) -> bool:
        """True if an answer says that no passage holds one, and the model was trained to say so."""
        return self.manifest.refuses and generation.text == NO_ANSWER

    def judges(self, request: GenerationRequest) -> bool:
        """True if the reader of a request was trained to judge its answers."""
        return self.manifest.judges and request.reader == "text_reader"

    @property
    def width(self) -> int:
        """H, the hidden size of the backbone."""
        return self.manifest.hidden_size

    def memory_tokens(self, rate: int | None = None) -> int:
        """N, memory tokens of a text at ``rate``."""
        return self.manifest.compression.memory_tokens(self.default_rate if rate is None else rate)

    def token_spans(self, text: str) -> Sequence[tuple[int, int]]:
        """Character spans of the tokens of a text."""
        return token_spans(self._tokenizer, text)

    def token_count(self, text: str) -> int:
        """Tokens of a text."""
        return len(plain_ids(self._tokenizer, text))

    def compress(
        self,
        texts: Sequence[str],
        *,
        rate: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Memory]:
        """Compress texts into memories.

        Args:
            texts: each of at least one and at most ``window_tokens`` tokens. A model in Apple's format takes any
                text and cuts off what is longer, as it was trained to.
            rate: one of ``rates``; the default rate when None.
            progress: told how many texts each batch finished.

        Returns:
            One memory a text, in order; values float32 [N, H].

        Raises:
            InputError: a text is empty or too long.
            ConfigError: the rate is not served.
        """
        return self._encode("compressor", texts, rate, "text", progress)

    def encode_queries(self, questions: Sequence[str], *, rate: int | None = None) -> list[QueryMemory]:
        """Map questions into the space of memories made at the same rate; arguments as ``compress``."""
        encoded = self._encode("query_reasoner", questions, rate, "question", None)
        shared = self._network.table.passage_centre(self.default_rate if rate is None else rate)
        centre = None if shared is None else shared.float().cpu().numpy()
        return [QueryMemory(one.values, one.fingerprint, one.rate, one.token_count, centre) for one in encoded]

    @property
    def mse_weight(self) -> float | None:
        """Weight of the MSE term that it was trained with (clara.md section 3); None where the checkpoint is silent."""
        weight = self.manifest.trained.get("config", {}).get("mse_weight")
        return None if weight is None else float(weight)

    @property
    def memory_fingerprint(self) -> str:
        """``fingerprint`` without the query reasoner: models that share it make the same memories of documents."""
        return self._given or checkpoint.fingerprint(self._network, self.manifest, "documents")

    def inspector(self) -> Inspector:
        """A look inside: logit lens, hidden states, attention, gradients of the selection."""
        from clara.model.inspection import Inspector  # noqa: PLC0415

        return Inspector(self._network, self._weights, self._tokenizer, self._prompter, self._ids)

    def compression_flops(self, token_count: int, *, rate: int | None = None) -> int:
        """Floating-point operations of compressing a text: matrix products of the layers and visible attention."""
        compression = self.manifest.compression
        slots = self.memory_tokens(rate) if compression.read_out == "memory_tokens" else 0
        config = self._network.adapters.bare().config
        pairs = token_count * (token_count + 1) // 2
        if compression.attention == "span":
            pairs += token_count + slots
        else:
            pairs += slots * token_count + slots * (slots + 1) // 2
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        every = int(config.num_hidden_layers)
        layers = compression.layers[-1] if compression.read_out == "layers" else every
        attention: int = 4 * layers * config.num_attention_heads * head * pairs
        return 2 * self._layer_weights * layers // every * (token_count + slots) + attention

    def generate(
        self,
        question: str,
        memories: Sequence[Memory],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Generation:
        """Answer a question from memories, best first; from nothing when there are none.

        Raises:
            MemoryMismatchError: a memory was made by another model.
            InputError: the question is empty or no text, a setting cannot be, or the prompt is longer than the model's
                context.
        """
        chosen = sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
        return self._generate([GenerationRequest(question, memories=tuple(memories))], chosen)[0]

    def generate_many(
        self, requests: Sequence[GenerationRequest], *, max_new_tokens: int = 64, scored: bool = False
    ) -> list[Generation]:
        """Greedy answers to several requests at once; they may have different numbers of passages.

        ``scored``: report each answer's log-probability.
        """
        return self._generate(requests, sampling(max_new_tokens=max_new_tokens), scored=scored)

    def stream(
        self, request: GenerationRequest, sampling: Sampling, *, scored: bool = False
    ) -> Pieces[str, None, Generation]:
        """Answer in pieces of text, one a token; a piece is empty where nothing can be shown yet.

        Close it to leave the rest. Returns the answer. What other threads ask for is decoded in the same steps.

        Raises:
            MemoryMismatchError: a memory was made by another model.
            InputError: as ``generate``; nothing has been generated then.
        """
        self._check([request])
        check_length(self._network.adapters.bare(), len(self._generator.prompt(request).ids), sampling)
        return self._generator.stream(self.decoder(request), request, sampling, scored=scored)

    def question_likelihoods(self, question: str, memories: Sequence[Memory]) -> list[float]:
        """Log-probability of a question after each memory alone, by the generator, in nats.

        What a passage makes likely to be asked, it is likely to answer (UPR, arXiv 2204.07496, with memories in place
        of texts), so passages that were found can be put in order by it.

        Raises:
            MemoryMismatchError: a memory was made by another model.
            InputError: as ``generate``.
        """
        self._check([GenerationRequest(question, memories=tuple(memories))])
        return self._generator.question_likelihoods(self._decoders["generator"], question, memories)

    def decoder(self, request: GenerationRequest) -> DecodeLoop:
        """Generator with the weights of a request's reader."""
        return self._decoders[None if request.reader == "base" else request.reader]

    def _generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling, *, scored: bool = False
    ) -> list[Generation]:
        self._check(requests)
        answers: dict[int, Generation] = {}
        for reader in dict.fromkeys(request.reader for request in requests):
            places = [i for i, request in enumerate(requests) if request.reader == reader]
            decoder = self.decoder(requests[places[0]])
            made = self._generator.generate(decoder, [requests[i] for i in places], sampling, scored=scored)
            answers.update(zip(places, made, strict=True))
        return [answers[i] for i in range(len(requests))]

    def _contrast(self, request: GenerationRequest) -> Contrast | None:
        """Contrast for an answer quoted from memories, if the checkpoint sets one at their rate."""
        if not (request.quote_from and request.memories) or request.texts:
            return None
        rate = request.memories[0].rate
        weight = self.manifest.contrast_weight(rate)
        centre = self._network.table.passage_centre(rate) if weight else None
        if centre is None:
            return None
        values = np.tile(centre.float().cpu().numpy(), (self.memory_tokens(rate), 1))
        return Contrast(Memory(values, self.fingerprint, rate, token_count=0), weight)

    def _check(self, requests: Sequence[GenerationRequest]) -> None:
        for request in requests:
            if not request.question.strip():
                raise InputError("the question is empty")
            for text in (request.question, *request.texts):
                _check_text(text, "the question" if text is request.question else "a passage")
            for memory in request.memories:
                if memory.fingerprint != self.fingerprint:
                    raise MemoryMismatchError(
                        f"a memory was made by model {memory.fingerprint}, this one is {self.fingerprint} "
                        f"({self.name}); compress the text again with this model"
                    )

    @torch.inference_mode()
    def _encode(
        self,
        role: Role,
        texts: Sequence[str],
        rate: int | None,
        kind: str,
        progress: Callable[[int], None] | None,
    ) -> list[Memory]:
        if isinstance(texts, str):
            raise InputError(f"expected a list of {kind}s, got one string; write [{kind}]")
        rate = self.default_rate if rate is None else rate
        self.manifest.compression.memory_tokens(rate)
        alone = kind == "question" and len(texts) == 1
        rows = [self._ids(text, "the question" if alone else f"{kind} {i}") for i, text in enumerate(texts)]
        memories: dict[int, Memory] = {}
        with self._weights.acting_as(role) as model:
            for places in length_batches([len(row) for row in rows], TOKENS_A_BATCH):
                ids, mask = (part.to(model.device) for part in padded_texts([rows[i] for i in places]))
                query = role == "query_reasoner"
                encoded = encode(model, self._network.table, ids, mask, rate=rate, query=query)
                for i, values in zip(places, encoded.memory.float().cpu().numpy(), strict=True):
                    count = len(rows[i]) - self._prompter.markers
                    memories[i] = Memory(np.ascontiguousarray(values), self.fingerprint, rate, count)
                if progress is not None:
                    progress(len(places))
        return [memories[i] for i in range(len(texts))]

    def _ids(self, text: str, label: str) -> list[int]:
        _check_text(text, label)
        ids = self._prompter.encoder_ids(text)
        if not ids:
            raise InputError(f"{label} is empty; there is nothing to compress")
        if len(ids) > self.window_tokens + self._prompter.markers:
            remedy = "shorten it" if "question" in label else "split it into passages first (clara.split_text)"
            raise TooLongError(
                f"{label} has {len(ids)} tokens, one memory takes at most {self.window_tokens}; {remedy}"
            )
        return ids


def _check_text(text: str, label: str) -> None:
    """Refuse half characters, which no tokenizer takes; they come of bytes that were no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{label} is not valid Unicode text: it was read from bytes that are not UTF-8") from None


def find_checkpoint(name: str, *, download: bool = True, progress: hub_base.Progress | None = None) -> Path:
    """Folder of a checkpoint: embedded, local, or on the hub (see ``hub.checkpoint``); a local folder wins.

    Of a folder with a checkpoint for each rate, as Apple's models are published, it is the one with the lowest rate.

    Raises:
        CheckpointError: nothing has that name, or it is no checkpoint.
        HubError: the hub does not give it.
    """
    embedded = _EMBEDDED_CHECKPOINTS / name
    if name in hub_base.EMBEDDED and checkpoint.is_checkpoint(embedded):
        return embedded
    folder = Path(name).expanduser()
    if checkpoint.is_checkpoint(folder):
        return folder.resolve()
    from clara.model.apple import format as apple_format  # noqa: PLC0415 - few are in its format
    from clara.model.hub import checkpoint as hub_checkpoint  # noqa: PLC0415 - or from there

    if apple_format.is_official(folder):
        return folder.resolve()
    if folder.is_dir() and (inside := apple_format.subfolders(folder)):
        return folder.resolve() / apple_format.lowest_rate(folder, inside)
    if (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is a base model without CLaRa's adapters; train a checkpoint on it first: "
            f"clara train scp --data FILE --out DIR --config FILE.toml (with base = {str(folder)!r})"
        )
    if not folder.exists() and (on_hub := hub_checkpoint.parse(name)) is not None:
        return hub_checkpoint.fetch(on_hub, local_only=not download, progress=progress)
    known = ", ".join(sorted(hub_base.EMBEDDED))
    raise CheckpointError(
        f"no model named {name!r}: give one of {known}, the folder of a checkpoint, or a hub id owner/model"
    )


def length_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group indices so that texts of like length share a batch of at most ``budget`` padded tokens."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches and lengths[i] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
