"""Codecs: what they give back, how much they take, and that a store keeps to the one it was made with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from clara.errors import ConfigError, StoreError
from clara.index.codecs import CODEBOOK_FILE, CODECS, Codec, make_codec
from clara.records import FloatArray

SHAPE = (8, 36)
NUMBERS = arrays.arrays(np.float32, (3, *SHAPE), elements=st.floats(-65_000, 65_000, width=32))


def memories(count: int = 400, *, seed: int = 0) -> FloatArray:
    """Memories like a model's: a mean and spread of each dimension's own, tokens around a few centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).standard_normal((12, SHAPE[1]))
    spread = 0.5 + np.arange(SHAPE[1]) / SHAPE[1]
    tokens = centres[rng.integers(0, 12, (count, SHAPE[0]))] + 0.6 * rng.standard_normal((count, *SHAPE)) * spread
    shifted: FloatArray = (tokens + 3 * np.sin(np.arange(SHAPE[1]))).astype(np.float32)
    return shifted


def made(name: str, folder: Path) -> Codec:
    codec = make_codec(name, SHAPE, folder)
    codec.prepare(memories())
    return codec


@pytest.mark.parametrize(
    ("name", "size", "error"),
    [("fp16", 2 * 8 * 36, 2e-3), ("int8", 8 * (36 + 4), 0.03), ("int4", 9 * 20, 0.2), ("residual", 8 * (4 + 9), 0.4)],
)
def test_bytes_and_error_of_each_codec(name: str, size: int, error: float, tmp_path: Path) -> None:
    codec = made(name, tmp_path)
    values = memories(50, seed=7)
    stored = codec.encode(values)
    assert stored.dtype == np.uint8
    assert stored.shape == (50, codec.memory_bytes) == (50, size)
    back = codec.decode(stored)
    assert back.dtype == np.float32
    assert back.shape == values.shape
    spread = values - values.mean(axis=(0, 1))
    assert np.sqrt(np.square(back - values).sum() / np.square(spread).sum()) < error
    np.testing.assert_array_equal(codec.decode(stored[::7].copy()), back[::7])


@pytest.mark.parametrize("name", ["fp16", "int8", "int4"])
@given(values=NUMBERS)
@settings(max_examples=60, deadline=None)
def test_no_number_is_off_by_more_than_half_a_step(
    name: str, values: FloatArray, tmp_path_factory: pytest.TempPathFactory
) -> None:
    codec = make_codec(name, SHAPE, tmp_path_factory.getbasetemp())
    back = codec.decode(codec.encode(values))
    largest = np.abs(values).max(axis=(1, 2), keepdims=True)
    # The step of a group of 15 levels spans twice the largest number; fp16 keeps offsets and steps to 2^-11.
    allowed = {"fp16": 2.0**-11 * largest, "int8": largest / 250, "int4": largest / 15 + 2.0**-8 * largest}[name]
    assert (np.abs(back - values) <= np.maximum(allowed, 1e-3)).all()


@pytest.mark.parametrize("name", CODECS)
def test_what_was_decoded_is_encoded_without_further_loss(name: str, tmp_path: Path) -> None:
    """A memory that moves from one document to another is decoded and encoded again."""
    codec = made(name, tmp_path)
    values = memories(20, seed=9)
    once = codec.decode(codec.encode(values))
    again = codec.decode(codec.encode(once))
    lost = {"residual": 0.2}.get(name, 0.02)
    assert np.square(again - once).sum() <= lost**2 * np.square(values - values.mean(axis=(0, 1))).sum()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("value", [65_505.0, -65_520.0, 1e30])
def test_values_beyond_fp16_are_refused(name: str, value: float, tmp_path: Path) -> None:
    codec = made(name, tmp_path)
    values = memories(2)
    values[1, 2, 3] = value
    with pytest.raises(StoreError, match="does not fit fp16"):
        codec.encode(values)


def test_a_codebook_is_learnt_once_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    codec = made("residual", tmp_path)
    stored = codec.encode(memories(5))
    before = (tmp_path / CODEBOOK_FILE).read_bytes()
    other = make_codec("residual", SHAPE, tmp_path)
    other.prepare(memories(seed=3))
    assert (tmp_path / CODEBOOK_FILE).read_bytes() == before
    np.testing.assert_array_equal(other.decode(stored), codec.decode(stored))
    flipped = bytearray(before)
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / CODEBOOK_FILE).write_bytes(flipped)
    with pytest.raises(StoreError, match=r"codebook .* cannot be read .* copy of the store"):
        make_codec("residual", SHAPE, tmp_path).decode(stored)


def test_few_memories_and_zeros(tmp_path: Path) -> None:
    codec = make_codec("residual", SHAPE, tmp_path)
    values = np.zeros((1, *SHAPE), dtype=np.float32)
    codec.prepare(values)
    np.testing.assert_allclose(codec.decode(codec.encode(values)), values, atol=1e-5)
    for name in ("fp16", "int8", "int4"):
        plain = make_codec(name, SHAPE, tmp_path)
        np.testing.assert_array_equal(plain.decode(plain.encode(values)), values)


def test_no_such_codec(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no codec named 'fp8'; there are fp16, int8, int4, residual"):
        make_codec("fp8", SHAPE, tmp_path)
