"""Memories on disk: what is read is what was computed, whatever a kill left behind, and cached equals uncached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from clara.config import CompressionConfig
from clara.errors import TrainingError
from clara.model import ClaraModel
from clara.model.create import Loaded
from clara.model.network import ReadOut, read_outs
from clara.model.table import MemoryTable
from clara.train.documents import Documents, _MemoryCache
from clara.train.processes import Processes

KEYS, VALUES = "keys.bin", "values.f16"
TEXTS = ["Bees dance.", "The tower is 330 metres high.", "Gutenberg printed in Mainz.", "Coffee"]


def made(text: str) -> npt.NDArray[np.float32]:
    return np.linspace(-1, len(text), 6, dtype=np.float32).reshape(2, 3)


def memories(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    return np.stack([made(text) for text in texts])


def added(cache: _MemoryCache, texts: Sequence[str]) -> int:
    return cache.add(texts, memories(texts))


def opened(folder: Path) -> _MemoryCache:
    return _MemoryCache(folder, memory_tokens=2, width=3)


def agrees(cache: _MemoryCache, texts: Sequence[str]) -> bool:
    wanted = torch.from_numpy(memories(texts)).half()
    return bool(torch.equal(cache.rows(texts), wanted))


def test_each_text_is_kept_once(tmp_path: Path) -> None:
    cache = opened(tmp_path / "c")
    assert added(cache, [*TEXTS[:2], TEXTS[0]]) == 2
    assert added(cache, TEXTS[1:3]) == 1
    assert agrees(cache, [TEXTS[2], TEXTS[0], TEXTS[0]])
    again = opened(tmp_path / "c")
    assert len(again) == 3
    assert again.missing([*TEXTS, TEXTS[3]]) == [TEXTS[3]]
    assert agrees(again, TEXTS[:3])
    other = opened(tmp_path / "c")
    assert added(again, [TEXTS[3]]) == 1
    assert other.missing(TEXTS) == [TEXTS[3]]
    assert added(other, [TEXTS[3]]) == 0, "another run added it meanwhile"
    assert agrees(other, TEXTS)
    cache.refresh()
    assert agrees(cache, TEXTS)
    with pytest.raises(TrainingError, match="no memory of a text"):
        other.rows(["Nothing"])


@pytest.mark.parametrize(
    ("values", "keys", "left"),
    [(-5, 0, 2), (0, -3, 2), (7, 0, 3), (7, 11, 3), (-12, -20, 2), (-36, 0, 0)],
    ids=["torn row", "torn key", "row without key", "both torn", "whole row less", "no rows"],
)
def test_torn_ends_count_for_nothing(tmp_path: Path, values: int, keys: int, left: int) -> None:
    added(opened(tmp_path), TEXTS[:3])
    for name, change in ((VALUES, values), (KEYS, keys)):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole + b"\7" * change if change > 0 else whole[: len(whole) + change])
    cache = opened(tmp_path)
    assert len(cache) == left
    assert cache.verify(TEXTS[:3]) == 0
    assert added(cache, TEXTS) == 4 - left
    assert agrees(cache, TEXTS)
    assert agrees(opened(tmp_path), TEXTS)


def test_damage_is_found_and_computed_anew(tmp_path: Path) -> None:
    added(opened(tmp_path), TEXTS[:3])
    with (tmp_path / VALUES).open("r+b") as file:
        file.seek(14)
        file.write(b"\0\1")
    cache = opened(tmp_path)
    assert cache.verify(TEXTS[:3]) == 1
    assert cache.missing(TEXTS[:3]) == [TEXTS[1]]
    assert added(cache, TEXTS[:3]) == 1
    assert agrees(cache, TEXTS[:3])
    again = opened(tmp_path)
    assert again.verify(TEXTS[:3]) == 0
    assert agrees(again, TEXTS[:3])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_a_broken_compressor_is_named(tmp_path: Path, value: float) -> None:
    broken = np.full((1, 2, 3), value, dtype=np.float32)
    with pytest.raises(TrainingError, match="not finite or above 65504"):
        opened(tmp_path).add(TEXTS[:1], broken)
    assert len(opened(tmp_path)) == 0


def test_cached_memories_are_those_of_the_model(
    make_network: Callable[[CompressionConfig], Loaded], tmp_path: Path
) -> None:
    compression = CompressionConfig(
        window_tokens=64, rates=(4, 16), residual=True, gain=True, pooled_input=True, attention="span"
    )
    loaded = make_network(compression)
    documents = Documents(loaded, tmp_path)
    told: list[tuple[int, int]] = []
    wanted = {4: TEXTS, 16: TEXTS[:2]}
    assert documents.prepare(wanted, lambda _, done, total: told.append((done, total))) == 6
    assert told[-1] == (6, 6)
    assert documents.prepare(wanted) == 0
    for rate in (4, 16):
        cached = documents(TEXTS, rate)  # at 16x two are computed only now
        single = [ClaraModel("m", loaded).compress([text], rate=rate)[0].values for text in TEXTS]
        torch.testing.assert_close(cached.float(), torch.from_numpy(np.stack(single)), atol=2e-3, rtol=2e-3)
        assert cached.dtype == torch.float16
    again = Documents(loaded, tmp_path)
    assert again.prepare(wanted) == 0
    assert torch.equal(again(TEXTS, 4), documents(TEXTS, 4))
    with torch.no_grad():
        loaded.network.adapters.parameters_of("compressor")[1].add_(0.5)
    assert Documents(loaded, tmp_path).prepare({4: TEXTS}) == 4, "another compressor, other memories"
    long = "tower " * 200
    assert documents([long], 4).shape == (1, 16, 32), "cut to the window"


def test_processes_share_the_documents_of_a_run(
    make_network: Callable[[CompressionConfig], Loaded], tmp_path: Path
) -> None:
    loaded = make_network(CompressionConfig(window_tokens=64, rates=(4, 16)))
    texts = [f"Bees dance {number} times." for number in range(24)]
    wanted = {4: texts, 16: texts[:10]}
    processes = [Processes(rank, 3) for rank in range(3)]
    each = [Documents(loaded, tmp_path) for _ in processes]
    computed = [one.prepare(wanted, share=process) for one, process in zip(each, processes, strict=True)]
    assert sum(computed) == 34
    assert min(computed) > 0
    assert [one.prepare(wanted) for one in each] == [0, 0, 0], "each finds what the others kept"
    alone = Documents(loaded, tmp_path / "alone")
    for one in each:
        for rate in wanted:
            torch.testing.assert_close(one(texts[:10], rate), alone(texts[:10], rate), atol=1e-3, rtol=2e-3)


def test_a_text_is_read_once_for_all_rates(
    make_network: Callable[[CompressionConfig], Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = make_network(CompressionConfig(window_tokens=64, rates=(4, 16)))
    read: list[tuple[int, tuple[int, ...]]] = []

    def noting(
        model: PreTrainedModel,
        table: MemoryTable,
        ids: Tensor,
        mask: Tensor,
        *,
        rates: Sequence[int],
    ) -> dict[int, ReadOut]:
        read.append((len(ids), tuple(rates)))
        return read_outs(model, table, ids, mask, rates=rates)

    monkeypatch.setattr("clara.train.documents.read_outs", noting)
    assert Documents(loaded, tmp_path).prepare({4: TEXTS, 16: TEXTS[:3]}) == 7
    assert sorted(read) == [(1, (4,)), (3, (4, 16))]
