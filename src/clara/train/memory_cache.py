"""Document memories on disk, computed once: what a frozen compressor makes of each text at one rate.

Two files side by side, both only ever appended to: rows of fp16 values, and for each row the text's digest with a
checksum. A row counts once its key is there, keys are written after their rows, and whatever a kill left torn at the
end of either file is cut off before the next append. Several runs on the same compressor share a folder.
Knows texts and numbers, not who compresses.
Shape letters: N memory tokens, H hidden size, U texts.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

from clara.errors import TrainingError

VALUES = "values.f16"
KEYS = "keys.bin"
_DIGEST_BYTES = 16
_CHECKSUM_BYTES = 4
_KEY_BYTES = _DIGEST_BYTES + _CHECKSUM_BYTES
_LARGEST = float(np.finfo(np.float16).max)

Half = npt.NDArray[np.float16]


def digest_of(text: str) -> bytes:
    """The key of a text: 16 bytes."""
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()


class MemoryCache:
    """The memories of one compressor at one rate.

    Attributes:
        folder: where they are; made when the first memory is added.
    """

    def __init__(self, folder: Path, *, memory_tokens: int, width: int) -> None:
        """Open a cache, empty if nothing is there.

        Args:
            folder: its name must tell the compressor and the rate.
            memory_tokens: N.
            width: H.
        """
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
        """Those of ``texts`` that have no memory here, each once, in order."""
        return [text for text in dict.fromkeys(texts) if digest_of(text) not in self._places]

    def add(self, texts: Sequence[str], memories: npt.NDArray[np.float32]) -> int:
        """Keep the memories of those texts that have none yet.

        Another process that writes to the same folder is waited for, and what it added is not added again.

        Args:
            texts: as many as are worth writing at once.
            memories: float32 [U, N, H], one a text, in order.

        Returns:
            How many were kept.

        Raises:
            TrainingError: a memory is not finite or does not fit fp16, or the disk is full.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "lock"):
                self.refresh()
                new = set(self.missing(texts))
                chosen = {text: i for i, text in enumerate(texts) if text in new}
                if chosen:
                    self._append(list(chosen), memories[list(chosen.values())])
        except OSError as error:
            raise TrainingError(
                f"memories cannot be kept in {self.folder}: {error.strerror or error}; one takes {self._row_bytes} "
                "bytes: free some space there, or choose another folder with --cache"
            ) from error
        return len(chosen)

    def rows(self, texts: Sequence[str]) -> Tensor:
        """Memories of texts that are all here: float16 [U, N, H].

        Raises:
            TrainingError: a text is not here.
        """
        try:
            places = [self._places[digest_of(text)] for text in texts]
        except KeyError:
            raise TrainingError(
                f"{self.folder} has no memory of a text of this batch; was it changed meanwhile?"
            ) from None
        if self._values is None:
            return torch.empty(0, *self._shape, dtype=torch.float16)
        return torch.from_numpy(self._values[places])

    def verify(self, texts: Sequence[str]) -> int:
        """Forget those memories of ``texts`` whose bytes are not what was written; says how many.

        They are then missing, and are computed and appended again.
        """
        bad = []
        for digest in map(digest_of, texts):
            place = self._places.get(digest)
            if place is None or self._values is None:
                continue
            if zlib.crc32(self._values[place].tobytes()) != self._checksums[place]:
                bad.append(digest)
        for digest in bad:
            del self._places[digest]
        return len(bad)

    def refresh(self) -> None:
        """Take in what other processes added. A later row of the same text replaces an earlier one."""
        try:
            keys = (self.folder / KEYS).read_bytes()
            whole = min(len(keys) // _KEY_BYTES, (self.folder / VALUES).stat().st_size // self._row_bytes)
        except FileNotFoundError:
            return
        for place in range(len(self._checksums), whole):
            key = keys[place * _KEY_BYTES : (place + 1) * _KEY_BYTES]
            self._places[key[:_DIGEST_BYTES]] = place
            self._checksums.append(int.from_bytes(key[_DIGEST_BYTES:], "little"))
        if whole:
            self._values = np.memmap(self.folder / VALUES, np.float16, "r", shape=(whole, *self._shape))

    def _append(self, texts: Sequence[str], memories: npt.NDArray[np.float32]) -> None:
        if not bool((np.abs(memories) <= _LARGEST).all()):  # false for NaN too
            raise TrainingError(
                f"a document memory is not finite or above {_LARGEST:.0f}, the largest fp16 number; the compressor "
                "that this run starts from is broken"
            )
        rows: Half = np.ascontiguousarray(memories, dtype=np.float16)
        keys = b"".join(
            digest_of(text) + zlib.crc32(row.tobytes()).to_bytes(_CHECKSUM_BYTES, "little")
            for text, row in zip(texts, rows, strict=True)
        )
        whole = len(self._checksums)
        _append_at(self.folder / VALUES, whole * self._row_bytes, rows.tobytes())
        _append_at(self.folder / KEYS, whole * _KEY_BYTES, keys)
        self.refresh()


def _append_at(path: Path, offset: int, data: bytes) -> None:
    """Write at the end of the whole rows, over whatever torn bytes are there, and wait for the disk."""
    path.touch()
    with path.open("r+b") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
