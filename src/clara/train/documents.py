"""Compresses the documents of a run before its first step, where the compressor is frozen.

Knows texts and a network; files are ``memory_cache``'s. Inference goes as in ``ClaraModel``: merged weights, batches
of like length, every text cut to the window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clara.model import checkpoint
from clara.model.clara_model import TOKENS_A_BATCH, length_batches
from clara.model.create import Loaded
from clara.model.network import encode_documents
from clara.model.roles import RoleWeights
from clara.train.batch import padded_texts
from clara.train.memory_cache import MemoryCache, digest_of
from clara.train.processes import Processes

FOLDER = "memories"
"""In the cache folder; a folder in it for each compressor and rate."""

ALONE = Processes()

Tell = Callable[[str, int, int], None]
"""Called with (what is being done, units done, units in all)."""


class Documents:
    """The memories of a run's passages under its frozen compressor."""

    def __init__(self, loaded: Loaded, cache: Path) -> None:
        """Open the caches of all the checkpoint's rates.

        Args:
            loaded: the network, its compressor as it will stay.
            cache: folder for derived weights, shared by runs.
        """
        self._loaded = loaded
        compression = loaded.manifest.compression
        dtype = str(loaded.base.model.dtype).removeprefix("torch.")
        mark = checkpoint.memory_fingerprint(loaded.network, loaded.manifest)
        self._caches = {
            rate: MemoryCache(
                cache / FOLDER / f"{mark}-{dtype}-{rate}x",
                memory_tokens=compression.memory_tokens(rate),
                width=loaded.manifest.hidden_size,
            )
            for rate in compression.rates
        }
        self._window = compression.window_tokens
        self._prompter = loaded.prompter()

    def __call__(self, texts: Sequence[str], rate: int) -> Tensor:
        """Memories float16 [U, N, H]; those that ``prepare`` was not told of are computed now."""
        if self._caches[rate].missing(texts):
            self.prepare({rate: texts})
        return self._caches[rate].rows(texts)

    def prepare(
        self, wanted: Mapping[int, Sequence[str]], tell: Tell | None = None, *, share: Processes = ALONE
    ) -> int:
        """Compress what is not there yet, and what is there but damaged. A text is read once for all its rates.

        Args:
            wanted: texts by rate.
            tell: told after each batch.
            share: of several processes, each of which calls this with the same texts: this one compresses its part,
                and what another one has kept meanwhile is not compressed again.

        Returns:
            How many memories were computed.
        """
        todo = self._todo(wanted, share)
        total, done, computed = sum(len(rates) for rates in todo.values()), 0, 0
        weights = RoleWeights(self._loaded.network.adapters)
        for rates in dict.fromkeys(todo.values()):
            texts = [text for text, own in todo.items() if own == rates]
            rows = [self._ids(text) for text in texts]
            for places in length_batches([len(row) for row in rows], TOKENS_A_BATCH):
                computed += self._keep(weights, {texts[i]: rows[i] for i in places}, rates)
                done += len(places) * len(rates)
                if tell is not None:
                    tell("compressing the documents of this run", done, total)
        return computed

    def _todo(self, wanted: Mapping[int, Sequence[str]], share: Processes) -> dict[str, tuple[int, ...]]:
        """This process's texts, and at which rates each is missing."""
        missing: dict[str, tuple[int, ...]] = {}
        for rate, texts in wanted.items():
            cache = self._caches[rate]
            cache.refresh()
            cache.verify(texts)
            for text in cache.missing(texts):
                if int.from_bytes(digest_of(text)) % share.count == share.rank:
                    missing[text] = (*missing.get(text, ()), rate)
        return missing

    def _keep(self, weights: RoleWeights, ids: Mapping[str, Sequence[int]], rates: Sequence[int]) -> int:
        """Compress a batch, and keep it."""
        for rate in rates:
            self._caches[rate].refresh()
        left = [text for text in ids if any(self._caches[rate].missing([text]) for rate in rates)]
        if not left:
            return 0
        made = self._compress(weights, [ids[text] for text in left], rates)
        return sum(self._caches[rate].add(left, values) for rate, values in made.items())

    def _ids(self, text: str) -> list[int]:
        return self._prompter.plain(text)[: self._window]

    @torch.inference_mode()
    def _compress(
        self, weights: RoleWeights, rows: Sequence[Sequence[int]], rates: Sequence[int]
    ) -> dict[int, npt.NDArray[np.float32]]:
        """Memories float32 [U, N, H] of texts by rate."""
        network = self._loaded.network
        tokens, mask = padded_texts(rows)
        with weights.acting_as("compressor") as model:
            adapters_differ = model is network.adapters.bare()
            device = model.device
            tokens, mask = tokens.to(device), mask.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=adapters_differ and model.dtype == torch.bfloat16):
                made = encode_documents(model, network.table, network.config, tokens, mask, rates=rates)
        return {rate: memory.float().cpu().numpy() for rate, memory in made.items()}
