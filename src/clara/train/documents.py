"""Memories of a run's passages under a frozen compressor, computed before its first step and cached on disk.

Inference goes as in ``ClaraModel``: merged weights, batches of like length, every text cut to the window. A cache holds
the memories of one compressor at one rate, in two append-only files: rows of fp16 values, and for each row the text's
digest with a checksum. Keys are written after their rows; bytes that a kill left torn are cut off before the next
append. Runs on the same compressor share a folder.
Shape letters: N memory tokens, H hidden size, U texts.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

from clara.errors import TrainingError
from clara.model.backbone import padded_texts
from clara.model.checkpoint import fingerprint
from clara.model.clara_model import TOKENS_A_BATCH, length_batches
from clara.model.create import Loaded
from clara.model.decoder import RoleWeights
from clara.model.hub.base import Progress as HubProgress
from clara.model.network import read_outs
from clara.train.processes import ALONE, Processes

_FOLDER = "memories"
"""In the cache folder; a folder in it for each compressor and rate."""

_VALUES = "values.f16"
_KEYS = "keys.bin"
_DIGEST_BYTES = 16
_CHECKSUM_BYTES = 4
_KEY_BYTES = _DIGEST_BYTES + _CHECKSUM_BYTES
_LARGEST = float(np.finfo(np.float16).max)


class Documents:
    """The memories of passages under a frozen compressor, or the states that they are read from."""

    def __init__(self, loaded: Loaded, cache: Path, *, states: bool = False) -> None:
        """Open the caches of all rates of a network with a frozen compressor, in a folder that runs share.

        With ``states`` the input of the read-out is cached, so that it can be trained: of each memory token the last
        hidden state, then those of the layers that are mixed in.
        """
        self._loaded, self._states = loaded, states
        compression = loaded.manifest.compression
        dtype = str(loaded.base.model.dtype).removeprefix("torch.")
        mark = fingerprint(loaded.network, loaded.manifest, "states" if states else "documents")
        mark = f"states-{mark}" if states else mark
        self._deep = 1 + len(compression.layers) if states else 1
        self._caches = {
            rate: _MemoryCache(
                cache / _FOLDER / f"{mark}-{dtype}-{rate}x",
                memory_tokens=compression.memory_tokens(rate) * self._deep,
                width=loaded.manifest.hidden_size,
            )
            for rate in compression.rates
        }
        self._window = compression.window_tokens
        self._prompter = loaded.prompter()

    def __call__(self, texts: Sequence[str], rate: int) -> Tensor:
        """Memories float16 [U, N, H], or states [U, N, 1 + L, H]; computes those that ``prepare`` did not."""
        if self._caches[rate].missing(texts):
            self.prepare({rate: texts})
        rows = self._caches[rate].rows(texts)
        return rows.reshape(len(rows), -1, self._deep, rows.shape[2]) if self._states else rows

    def prepare(
        self, wanted: Mapping[int, Sequence[str]], on_progress: HubProgress | None = None, *, share: Processes = ALONE
    ) -> int:
        """Compress missing and damaged memories of texts by rate; how many. A text is read once for all its rates.

        ``share``: of several processes that call this with the same texts, this one compresses its part.
        """
        todo = self._todo(wanted, share)
        total, done, computed = sum(len(rates) for rates in todo.values()), 0, 0
        weights = RoleWeights(self._loaded.network.adapters)
        for rates in dict.fromkeys(todo.values()):
            texts = [text for text, own in todo.items() if own == rates]
            rows = [self._prompter.window_ids(text, self._window) for text in texts]
            for places in length_batches([len(row) for row in rows], TOKENS_A_BATCH):
                computed += self._keep(weights, {texts[i]: rows[i] for i in places}, rates)
                done += len(places) * len(rates)
                if on_progress is not None:
                    on_progress("compressing the documents of this run", done, total)
        return computed

    def _todo(self, wanted: Mapping[int, Sequence[str]], share: Processes) -> dict[str, tuple[int, ...]]:
        """This process's texts with the rates that each is missing at."""
        missing: dict[str, tuple[int, ...]] = {}
        for rate, texts in wanted.items():
            cache = self._caches[rate]
            cache.refresh()
            cache.verify(texts)
            for text in cache.missing(texts):
                if int.from_bytes(_digest_of(text)) % share.count == share.rank:
                    missing[text] = (*missing.get(text, ()), rate)
        return missing

    def _keep(self, weights: RoleWeights, ids: Mapping[str, Sequence[int]], rates: Sequence[int]) -> int:
        for rate in rates:
            self._caches[rate].refresh()
        left = [text for text in ids if any(self._caches[rate].missing([text]) for rate in rates)]
        if not left:
            return 0
        made = self._compress(weights, [ids[text] for text in left], rates)
        return sum(self._caches[rate].add(left, values) for rate, values in made.items())

    @torch.inference_mode()
    def _compress(
        self, weights: RoleWeights, rows: Sequence[Sequence[int]], rates: Sequence[int]
    ) -> dict[int, npt.NDArray[np.float32]]:
        """Memories, or states, float32 [U, rows of the cache, H] of texts by rate."""
        network = self._loaded.network
        tokens, mask = padded_texts(rows)
        with weights.acting_as("compressor") as model:
            adapters_differ = model is network.adapters.bare()
            device = model.device
            tokens, mask = tokens.to(device), mask.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=adapters_differ and model.dtype == torch.bfloat16):
                parts = read_outs(model, network.table, tokens, mask, rates=rates)
                if self._states:
                    made = {rate: part.states().flatten(1, 2) for rate, part in parts.items()}
                else:
                    assemble = network.table.assemble
                    made = {r: assemble(p.read, p.residual, p.layers, rate=r) for r, p in parts.items()}
        return {rate: memory.float().cpu().numpy() for rate, memory in made.items()}


def _digest_of(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()


class _MemoryCache:
    """The memories of one compressor at one rate; ``folder`` is made with the first memory."""

    def __init__(self, folder: Path, *, memory_tokens: int, width: int) -> None:
        self.folder = folder
        self._shape = (memory_tokens, width)
        self._row_bytes = memory_tokens * width * 2
        self._places: dict[bytes, int] = {}
        self._checksums: list[int] = []
        self._values: npt.NDArray[np.float16] | None = None
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def missing(self, texts: Sequence[str]) -> list[str]:
        """The texts without a memory, each once, in order."""
        return [text for text in dict.fromkeys(texts) if _digest_of(text) not in self._places]

    def add(self, texts: Sequence[str], memories: npt.NDArray[np.float32]) -> int:
        """Append the memories float32 [U, N, H] of texts that have none, under a lock; returns how many.

        Raises:
            TrainingError: a memory is not finite or does not fit fp16, or the disk is full.
        """
        with appending(self.folder / "lock", f"memories of {self._row_bytes} bytes"):
            self.refresh()
            new = set(self.missing(texts))
            rows = {text: i for i, text in enumerate(texts) if text in new}
            if rows:
                self._append(list(rows), memories[list(rows.values())])
        return len(rows)

    def rows(self, texts: Sequence[str]) -> Tensor:
        """Memories float16 [U, N, H]; ``TrainingError`` for a text that is not here."""
        try:
            places = [self._places[_digest_of(text)] for text in texts]
        except KeyError:
            raise TrainingError(
                f"{self.folder} has no memory of a text of this batch; was it changed meanwhile?"
            ) from None
        if self._values is None:
            return torch.empty(0, *self._shape, dtype=torch.float16)
        return torch.from_numpy(self._values[places])

    def verify(self, texts: Sequence[str]) -> int:
        """Forget the memories of ``texts`` whose checksum is wrong, so that they are computed again; how many."""
        bad = [digest for digest in {*map(_digest_of, texts)} & self._places.keys() if not self._sound(digest)]
        for digest in bad:
            del self._places[digest]
        return len(bad)

    def _sound(self, digest: bytes) -> bool:
        place = self._places[digest]
        return self._values is not None and zlib.crc32(self._values[place].tobytes()) == self._checksums[place]

    def refresh(self) -> None:
        """Read rows that other processes added. A later row of the same text replaces an earlier one."""
        try:
            keys = (self.folder / _KEYS).read_bytes()
            whole = min(len(keys) // _KEY_BYTES, (self.folder / _VALUES).stat().st_size // self._row_bytes)
        except FileNotFoundError:
            return
        for place in range(len(self._checksums), whole):
            key = keys[place * _KEY_BYTES : (place + 1) * _KEY_BYTES]
            self._places[key[:_DIGEST_BYTES]] = place
            self._checksums.append(int.from_bytes(key[_DIGEST_BYTES:], "little"))
        if whole:
            self._values = np.memmap(self.folder / _VALUES, np.float16, "r", shape=(whole, *self._shape))

    def _append(self, texts: Sequence[str], memories: npt.NDArray[np.float32]) -> None:
        if not bool((np.abs(memories) <= _LARGEST).all()):  # false for NaN too
            raise TrainingError(
                f"a document memory is not finite or above {_LARGEST:.0f}, the largest fp16 number; the compressor "
                "that this run starts from is broken"
            )
        rows = np.ascontiguousarray(memories, dtype=np.float16)
        keys = b"".join(
            _digest_of(text) + zlib.crc32(row.tobytes()).to_bytes(_CHECKSUM_BYTES, "little")
            for text, row in zip(texts, rows, strict=True)
        )
        whole = len(self._checksums)
        append_at(self.folder / _VALUES, whole * self._row_bytes, rows.tobytes())
        append_at(self.folder / _KEYS, whole * _KEY_BYTES, keys)
        self.refresh()


@contextmanager
def appending(lock: Path, what: str) -> Iterator[None]:
    """Hold the lock of files that runs share while this one appends (TrainingError: they cannot be written)."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            yield
    except OSError as error:
        raise TrainingError(
            f"{what} cannot be kept in {lock.parent}: {error.strerror or error}; free some space there, or choose "
            "another folder with --cache"
        ) from error


def append_at(path: Path, offset: int, data: bytes) -> None:
    """Append after the whole rows, over torn bytes, and sync."""
    path.touch()
    with path.open("r+b") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
