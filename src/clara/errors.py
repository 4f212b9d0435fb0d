"""Every exception this package raises on purpose.

    ClaraError
    ├── InputError                what the user gave cannot be used as it is
    │   ├── ConfigError           a setting or a configuration file (all faults at once)
    │   ├── RecordError           a data record or a data file
    │   ├── DocumentError         a source document that cannot be read
    │   ├── TooLongError          a question, or a prompt, longer than the model reads
    │   └── NothingFoundError     a search that found no passage
    ├── ModelError
    │   ├── BaseModelError        base weights: not found, cut off, wrong hash, no space
    │   ├── CheckpointError       a checkpoint: missing tensor, unknown key, wrong shape, NaN
    │   ├── HubError              the hub: offline, no such repository, no right to it, a transfer cut off
    │   ├── MemoryShortageError   less memory free than a model needs
    │   └── MemoryMismatchError   memories of one model given to another
    ├── StoreError
    │   ├── StoreNotFoundError    no store at that path
    │   ├── StoreModelError       a store that another model filled
    │   └── StoreEmptyError       a store without documents is asked
    ├── TrainingError             a run that cannot start or go on
    ├── LLMError                  a language model's server refuses everything (key, address, model, quota)
    │   ├── LLMRefusedError       it refuses one request
    │   └── LLMUnavailableError   it is not reached, or gives no usable reply in all attempts
    ├── SynthesisError            a synthesis run that cannot start or go on
    ├── OutputError               the command line's output takes no text: closed, full, nobody reads
    └── MissingExtraError         an optional dependency is not installed

A message says what was expected, what came, and what to do. The command line prints it as one line and exits with
2; it never shows a traceback for one of these unless asked to.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class ClaraError(Exception):
    """Base of all errors that clara raises on purpose."""


class InputError(ClaraError):
    """Something given by the user cannot be used as it is."""


class ConfigError(InputError):
    """A setting or configuration file is wrong; the message lists every fault found."""


class RecordError(InputError):
    """A data record or data file is malformed."""


class DocumentError(InputError):
    """A source document cannot be read; ``reason`` is the kind of fault in a word or two, by which reports count."""

    def __init__(self, message: str, *, reason: str = "unreadable") -> None:
        super().__init__(message)
        self.reason = reason


class TooLongError(InputError):
    """A question, or a prompt with the answer that may follow, is longer than the model reads."""


class NothingFoundError(InputError):
    """No passage was found for a question."""


class ModelError(ClaraError):
    """A model cannot be loaded or used."""


class BaseModelError(ModelError):
    """Base weights are missing, cut off, of the wrong hash, or cannot be stored."""


class CheckpointError(ModelError):
    """A checkpoint misses a tensor, has an unknown key, a wrong shape or a value that is not finite."""


class HubError(ModelError):
    """The hub cannot be reached, has no such repository, or gives no right to it; or a transfer was cut off."""


class MemoryShortageError(ModelError):
    """Loading a model would take more memory than is free."""


class MemoryMismatchError(ModelError):
    """Memories made by one model were given to another."""


class StoreError(ClaraError):
    """A store cannot be opened, read or written."""


class StoreNotFoundError(StoreError):
    """There is no store at the given path."""


class StoreModelError(StoreError):
    """The store was filled by another model than the one in use."""


class StoreEmptyError(StoreError):
    """The store holds no documents, so nothing can be found."""


class TrainingError(ClaraError):
    """A training run cannot start or go on."""


class LLMError(ClaraError):
    """A language model's server cannot be used: it refuses the key, the address or the model, or writes nothing."""


class LLMRefusedError(LLMError):
    """The server refused this one request (too long, not allowed); asking again would not help."""


class LLMUnavailableError(LLMError):
    """The server gave no usable reply in all attempts."""


class SynthesisError(ClaraError):
    """A data synthesis run cannot start or go on."""


class OutputError(ClaraError):
    """Standard output takes no text; the message is empty where whoever read it has left."""


class MissingExtraError(ClaraError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; it comes with: pip install 'clara-rag[{extra}]'")


def optional(module: str, *, package: str, extra: str) -> Any:  # noqa: ANN401 - a module without types
    """A module of an optional package, imported where it is needed (MissingExtraError: it is not installed)."""
    try:
        return import_module(module)
    except ImportError:
        raise MissingExtraError(package, extra) from None
