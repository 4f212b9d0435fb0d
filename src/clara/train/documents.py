"""Compresses the documents of a run before its first step, where the compressor is frozen.

Knows texts and a network; files are ``memory_cache``'s. Inference goes as in ``ClaraModel``: merged weights, batches
of like length, every text cut to the window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clara.model import checkpoint
from clara.model.adapters import RoleWeights
from clara.model.clara_model import TOKENS_A_BATCH, length_batches
from clara.model.create import Loaded
from clara.model.network import encode
from clara.train.batch import padded_texts
from clara.train.memory_cache import MemoryCache

FOLDER = "memories"
"""In the cache folder; a folder in it for each compressor and rate."""

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

    def prepare(self, wanted: Mapping[int, Sequence[str]], tell: Tell | None = None) -> int:
        """Compress what is not there yet, and what is there but damaged.

        Args:
            wanted: texts by rate.
            tell: told after each batch.

        Returns:
            How many memories were computed.
        """
        todo = {}
        for rate, texts in wanted.items():
            self._caches[rate].verify(texts)
            todo[rate] = self._caches[rate].missing(texts)
        total, done, computed = sum(map(len, todo.values())), 0, 0
        weights = RoleWeights(self._loaded.network.adapters)
        for rate, texts in todo.items():
            rows = [self._ids(text) for text in texts]
            for places in length_batches([len(row) for row in rows], TOKENS_A_BATCH):
                compress = partial(self._compress, weights, {texts[i]: rows[i] for i in places}, rate)
                computed += self._caches[rate].add([texts[i] for i in places], compress)
                done += len(places)
                if tell is not None:
                    tell("compressing the documents of this run", done, total)
        return computed

    def _ids(self, text: str) -> list[int]:
        return self._prompter.plain(text)[: self._window]

    @torch.inference_mode()
    def _compress(
        self, weights: RoleWeights, ids: Mapping[str, Sequence[int]], rate: int, texts: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        network = self._loaded.network
        tokens, mask = padded_texts([ids[text] for text in texts])
        with weights.acting_as("compressor") as model:
            adapters_differ = model is network.adapters.bare()
            device = model.device
            tokens, mask = tokens.to(device), mask.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=adapters_differ and model.dtype == torch.bfloat16):
                encoded = encode(model, network.table, network.config, tokens, mask, rate=rate)
        values: npt.NDArray[np.float32] = encoded.memory.float().cpu().numpy()
        return values
