"""Settings that several rooms share, checked whole before anything is loaded.

Unknown keys are refused, and all faults are reported together. Settings of one room only (a training stage, a
synthesis run) live in that room.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from clara.errors import ConfigError, InputError

_ReadOut = Literal["memory_tokens", "mean_pool", "layers"]


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CompressionConfig(Settings):
    """Settings of compression: how a text becomes memory tokens (clara.md section 1).

    Attributes:
        window_tokens: longest text the compressor takes, in tokens of the backbone's tokenizer.
        rates: compression rates the checkpoint serves; ``window_tokens / rate`` memory tokens each. The first is the
            default.
        read_out: ``memory_tokens``: last hidden states at appended memory tokens (the paper); ``mean_pool``: means of
            the last hidden states over equal spans of the text; ``layers``: no last hidden state, only ``layers`` and
            the residual, so that no layer above the highest of them is run.
        residual: add the span's mean token embedding to each memory.
        gain: multiply the read-out by a learned vector [H] before the residual is added.
        pooled_input: start each memory token from its learned vector plus its span's mean token embedding.
        positions: position ids of memory tokens: ``appended`` after the text (the paper) or ``spread`` over it.
        attention: what memory token i sees: ``full``: the whole text and the memory tokens before it (the paper);
            ``span``: its own span of the text and itself.
        spans: which text a memory token stands for: ``equal``: as many tokens each; ``information``: as much
            information each, by a table of the vocabulary that the checkpoint holds, so that a name or a number gets
            memory tokens of its own and frequent words share one.
        layers: layers, from 1, whose states over the span are added to each memory through a map of their own, which
            starts at zero (``model.table.LayerMix``); none by default.
        layer_rank: rank of those maps; 0 for full ones.
        places: matrices for the first, second, … token of a span, which start as the mean that the residual is; the
            last one also stands for the tokens that follow. 0 for the mean alone.
        input_format: ids around the text: ``plain``: none; ``official``: Apple's, with special tokens around it and
            one rate only (``model.apple.prompting``).
    """

    window_tokens: int = Field(default=256, ge=4)
    rates: tuple[int, ...] = (4,)
    read_out: _ReadOut = "memory_tokens"
    residual: bool = False
    gain: bool = False
    pooled_input: bool = False
    positions: Literal["appended", "spread"] = "appended"
    attention: Literal["full", "span"] = "full"
    spans: Literal["equal", "information"] = "equal"
    layers: tuple[int, ...] = ()
    layer_rank: int = Field(default=0, ge=0)
    places: int = Field(default=0, ge=0)
    input_format: Literal["plain", "official"] = "plain"

    @model_serializer(mode="wrap")
    def _omit_plain(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Checkpoints and fingerprints that are older than these fields stay as they are, byte for byte.
        values: dict[str, Any] = handler(self)
        if self.input_format == "plain":
            del values["input_format"]
        if self.spans == "equal":
            del values["spans"]
        for name in ("layers", "layer_rank", "places"):
            if not values[name]:
                del values[name]
        return values

    @model_validator(mode="after")
    def _check(self) -> CompressionConfig:
        if not self.rates or len(set(self.rates)) != len(self.rates):
            raise ValueError(f"rates must name each rate once, got {self.rates}")
        for rate in self.rates:
            if rate > self.window_tokens:
                raise ValueError(f"rate {rate} is above the window of {self.window_tokens} tokens")
            # Apple's code rounds down, so what was trained with it may have a window that its rate does not divide.
            if rate < 1 or (self.input_format == "plain" and self.window_tokens % rate):
                raise ValueError(f"rate {rate} does not divide the window of {self.window_tokens} tokens")
        if self.read_out == "mean_pool" and self.pooled_input:
            raise ValueError("pooled_input has no meaning for read_out mean_pool: it has no memory tokens")
        self._check_layers()
        if self.input_format == "official" and (self.read_out != "memory_tokens" or len(self.rates) != 1):
            raise ValueError("input_format official needs read_out memory_tokens and exactly one rate")
        return self

    def _check_layers(self) -> None:
        if self.layers != tuple(sorted(set(self.layers))) or min(self.layers, default=1) < 1:
            raise ValueError(f"layers must be numbers from 1, ascending, each once, got {list(self.layers)}")
        if self.layer_rank and not self.layers:
            raise ValueError("layer_rank is set, but no layers are read")
        if self.places and not self.residual:
            raise ValueError("places weighs the tokens of the residual; set residual = true")
        if self.read_out == "layers" and not (self.layers and self.residual):
            raise ValueError("read_out layers needs layers to read, and residual = true to start from")
        if self.read_out == "layers" and self.pooled_input:
            raise ValueError("pooled_input has no meaning for read_out layers: it has no memory tokens")

    @property
    def mixes(self) -> bool:
        """True if a memory has parts of ``model.table.LayerMix``."""
        return bool(self.layers or self.places)

    @property
    def default_rate(self) -> int:
        """The rate used when none is asked for."""
        return self.rates[0]

    def memory_tokens(self, rate: int) -> int:
        """Memory tokens a text gets at ``rate`` (ConfigError: the checkpoint does not serve that rate)."""
        if rate not in self.rates:
            served = ", ".join(f"{r}x" for r in self.rates)
            raise ConfigError(f"this model serves the rates {served}, not {rate}x")
        return self.window_tokens // rate


class LoraSettings(Settings):
    """LoRA shape of an adapter; the defaults are the paper's (clara.md section 1).

    Attributes:
        alpha: the product of the two matrices counts alpha / rank.
        targets: names of the linear layers that have an adapter, as ``q_proj``; empty for all but the LM head.
    """

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    targets: tuple[str, ...] = ()

    @model_serializer(mode="wrap")
    def _omit_all(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Checkpoints of releases that are older than this field stay as they are.
        values: dict[str, Any] = handler(self)
        if not self.targets:
            del values["targets"]
        return values


class LLMSettings(Settings):
    """A model on an OpenAI-compatible server.

    Attributes:
        url: base address of the server; ``/v1`` is added when the address has no path.
        timeout_seconds: longest wait for one reply; for the next piece of one that is streamed.
        retries: further attempts after a 408, 409, 425, 429, 5xx, a time-out, a broken connection or a reply that is
            not a chat completion.
        first_wait_seconds: wait before the first retry; it doubles each time, with jitter.
        max_wait_seconds: longest wait between attempts; also the most that a ``Retry-After`` is obeyed.
        length_parameter: name under which the server takes the limit of a reply's tokens.
    """

    url: str
    model: str = Field(min_length=1)
    timeout_seconds: float = Field(default=120.0, gt=0)
    retries: int = Field(default=3, ge=0)
    first_wait_seconds: float = Field(default=0.5, ge=0)
    max_wait_seconds: float = Field(default=15.0, ge=0)
    length_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"

    @field_validator("url")
    @classmethod
    def _complete_url(cls, url: str) -> str:
        parts = urlsplit(url.strip())
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"expected an address such as http://127.0.0.1:8000/v1, got {url!r}")
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        return urlunsplit((parts.scheme, parts.netloc, path or "/v1", parts.query, ""))


_SettingsT = TypeVar("_SettingsT", bound=Settings)


def check(kind: type[_SettingsT], values: dict[str, Any], *, source: str, faults: Sequence[str] = ()) -> _SettingsT:
    """Build settings from plain values, as read from TOML or JSON, of a ``source`` that errors name.

    ``faults`` are what the caller found wrong already, to be named with the rest.

    Raises:
        ConfigError: names every fault at once.
    """
    found = list(faults)
    try:
        made = kind.model_validate(values)
    except ValidationError as error:
        found += [f"{'.'.join(str(part) for part in e['loc']) or 'settings'}: {e['msg']}" for e in error.errors()]
    if found:
        raise ConfigError(f"{source}: {len(found)} fault(s): " + "; ".join(found))
    return made


def usable_cores() -> int:
    """The cores that this process may use; macOS does not say, and gives those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def refuse_special(path: Path) -> None:
    """Refuse a pipe, a device or a socket, of which reading may never end; a missing path is for whoever opens it.

    Raises:
        InputError: it is one.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{path} is a pipe, a device or a socket, not a regular file")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file (ConfigError: the file is missing, cannot be read or is not TOML)."""
    refuse_special(path)
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"no configuration file at {path}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read as a configuration file: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
