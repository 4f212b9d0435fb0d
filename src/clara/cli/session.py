"""From options to a loaded model and an open store. Everything heavy is imported when a command needs it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from clara.cli.options import DEFAULT_MODEL, Engine, ModelChoice
from clara.cli.terminal import download_progress
from clara.errors import ConfigError, InputError, StoreNotFoundError

if TYPE_CHECKING:
    from clara.index import LanceStore, StoreModel
    from clara.llm import LLM
    from clara.model import ClaraModel
    from clara.pipeline import Clara

_KEY_VARIABLES = ("CLARA_LLM_API_KEY", "OPENAI_API_KEY")
_COMPILER = "torch._dynamo"
_TRACING = f"{_COMPILER}._trace_wrapped_higher_order_op"
_CATALOGUE = "lance_namespace_urllib3_client"
_OPTIONAL = ("scipy", "sklearn", "PIL")  # what transformers uses where it is installed, for what is not done here


def check_question(question: str) -> str:
    """The question (InputError: it is empty, or its bytes are not UTF-8)."""
    if not question.strip():
        raise InputError("the question is empty")
    try:
        question.encode()
    except UnicodeEncodeError:
        raise InputError("the question is not valid UTF-8; check the terminal's encoding") from None
    return question


def open_store(path: Path) -> LanceStore:
    """Open a store without its model (StoreError: there is none, or it cannot be read)."""
    from clara.index import LanceStore  # noqa: PLC0415

    return LanceStore.open(path, None)


def stored_model(path: Path) -> StoreModel | None:
    """The model that filled a store; None without a store (StoreError: the folder is not one, or cannot be read)."""
    try:
        with open_store(path) as store:
            return store.model
    except StoreNotFoundError:
        return None


def without_model(path: Path) -> Clara:
    """A store for removal and text search: works fast, and even when its model is gone."""
    from clara.pipeline import Clara  # noqa: PLC0415

    return Clara(open_store(path), model=None)  # type: ignore[arg-type]


def load_model(
    choice: ModelChoice, name: str | None = None, *, merge: bool = True, engine: Engine = "torch"
) -> ClaraModel:
    """Load the model of a name, else the user's choice or the default; ``merge`` as in ``ClaraModel.load``.

    Raises:
        ModelError: it cannot be loaded.
        ConfigError: there is no such device, or the engine cannot take the model.
        MissingExtraError: the engine is not installed.
    """
    from clara.model import ClaraModel  # noqa: PLC0415

    kind = ClaraModel
    if engine == "vllm":
        from clara.model.vllm_model import VLLMModel  # noqa: PLC0415 - an extra

        kind = VLLMModel
    device = prepare_torch(choice.device, choice.threads)
    with download_progress() as progress:
        return kind.load(
            name or choice.model or DEFAULT_MODEL,
            base=choice.base,
            device=device,
            dtype=choice.dtype,
            attention=choice.attention,
            check_memory=choice.memory_check,
            merge=merge,
            cache=cache_folder(choice.cache),
            progress=progress,
        )


def cache_folder(given: Path | None) -> Path:
    """The folder for base weights."""
    from clara.model import default_cache  # noqa: PLC0415

    return given.expanduser() if given is not None else default_cache()


def make_folder(out: Path) -> None:
    """Make the folder of ``--out``, before the work (InputError: it cannot be made)."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be made: {error.strerror or error}") from None


def resolved(choice: ModelChoice) -> ModelChoice:
    """The choice with its device resolved and checked, for what is not loaded by ``load_model``."""
    return replace(choice, device=prepare_torch(choice.device, choice.threads))


def prepare_torch(device: str, threads: int | None) -> str:
    """Set the threads, silence transformers, check the device (ConfigError); returns the device, ``auto`` resolved."""
    import torch  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    gpus = torch.cuda.device_count()
    if device == "auto":
        return "cuda" if gpus else "mps" if torch.backends.mps.is_available() else "cpu"
    if device in {"balanced", "sequential"}:
        if not gpus:
            raise ConfigError(
                f"--device {device} spreads weights over GPUs, and torch sees none here; use --device cpu"
            )
        return device
    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise ConfigError(
            f"--device {device!r} is no torch device; give cpu, cuda, cuda:1, mps, auto, balanced or sequential"
        ) from None
    if parsed.type == "cuda" and (parsed.index or 0) >= gpus:
        seen = f"{gpus} GPU(s)" if gpus else "no GPU"
        raise ConfigError(f"--device {device}: torch sees {seen} here; use --device cpu")
    if parsed.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"--device {device}: torch sees no such GPU here; use --device cpu")
    return device


def api_key() -> str:
    """Key of a language model's server, from the environment; else empty."""
    return next((os.environ[name] for name in _KEY_VARIABLES if os.environ.get(name)), "")


def language_model(url: str | None, model: str | None) -> LLM | None:
    """The model that ``--llm`` and ``--llm-model`` name, if any.

    Raises:
        ConfigError: one of the two is missing, or the address is none.
        MissingExtraError: the extra ``llm`` is not installed.
    """
    if url is None and model is None:
        return None
    if url is None or model is None:
        raise ConfigError(
            f"--llm URL and --llm-model NAME go together; {'--llm' if url is None else '--llm-model'} is missing"
        )
    from clara.config import LLMSettings, check  # noqa: PLC0415

    settings = check(LLMSettings, {"url": url, "model": model}, source="command line")
    from clara.llm import LLM  # noqa: PLC0415 - takes a second, and is an extra

    return LLM(settings, api_key=api_key())


def import_libraries() -> None:
    """Import torch, transformers and LanceDB without their imports that one question does not use.

    They take half of a cold ``clara ask``: a compiler (torch._dynamo), tensors spread over machines, computer algebra,
    object detection's SciPy, pandas, and the client of a remote catalogue. For the process of one command alone, as
    these stay missing until it ends. Stand-ins hand unknown attributes on to the real module, and library versions that
    do not bear this are imported whole. Does nothing for libraries that are imported already.
    """
    try:
        _import_parts()
    except (ImportError, AttributeError, TypeError):
        for package in ("lancedb", _CATALOGUE, "transformers", _COMPILER):
            _forget(package)


def _import_parts() -> None:
    if "lancedb" not in sys.modules:
        with _finder(_NoPandas()):
            importlib.import_module("pyarrow.dataset")
        with _finder(_CatalogueFinder()):
            importlib.import_module("lancedb")
        _forget(_CATALOGUE)
    if "transformers.modeling_utils" not in sys.modules:
        import torch  # noqa: PLC0415

        _leave_compiler_out()
        with _absent(_OPTIONAL), _one_machine(torch.distributed):
            importlib.import_module("transformers.modeling_utils")
            importlib.import_module("transformers.generation.utils")


@contextmanager
def _finder(finder: MetaPathFinder) -> Iterator[None]:
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _NoPandas(MetaPathFinder):
    """Pandas as not installed. pyarrow imports it in C, which takes None for a module."""

    def find_spec(self, fullname: str, _path: object, _target: object = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(f"{fullname} is left out of this command", name=fullname)


@contextmanager
def _absent(names: Sequence[str]) -> Iterator[None]:
    """Packages that are not imported yet look as if they were not installed."""
    hidden: dict[str, Any] = {name: None for name in names if name not in sys.modules}
    sys.modules.update(hidden)
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


class _Names(ModuleType):
    """A module each of whose names is a plain record."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any name of a module
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (SimpleNamespace,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _CatalogueFinder(MetaPathFinder, Loader):
    """Stand-ins for the client of a remote catalogue: 160 modules of data classes, for stores that are not folders."""

    def find_spec(self, fullname: str, _path: object, _target: object = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if _belongs(fullname, _CATALOGUE) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Names(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


@contextmanager
def _one_machine(distributed: ModuleType) -> Iterator[None]:
    """Torch as it is built without tensors that are spread over machines."""
    available = distributed.is_available
    distributed.is_available = lambda: False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        distributed.is_available = available  # type: ignore[attr-defined]


def _leave_compiler_out() -> None:
    """A stand-in for torch's compiler, whose decorators return their argument; needed again when a model is made."""
    if _COMPILER in sys.modules:
        return

    def the_compiler(name: str) -> Any:  # noqa: ANN401 - any name of a module
        _forget(_COMPILER)
        return getattr(importlib.import_module(_COMPILER), name)

    def index_of_tensor() -> Any:  # noqa: ANN401 - torch's own, a context manager
        _forget(_COMPILER)
        return importlib.import_module(_TRACING).TransformGetItemToIndex()

    compiler, tracing = ModuleType(_COMPILER), ModuleType(_TRACING)
    own = {"__path__": [], "disable": _as_it_is, "allow_in_graph": _as_it_is, "assume_constant_result": _as_it_is}
    vars(compiler).update(own, __getattr__=the_compiler)
    vars(tracing)["TransformGetItemToIndex"] = index_of_tensor
    sys.modules.update({_COMPILER: compiler, _TRACING: tracing})


def _as_it_is(decorated: Callable[..., Any] | None = None, *_: object, **__: object) -> Callable[..., Any]:
    """A decorator without effect, with arguments or without."""
    return decorated if decorated is not None else _as_it_is


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if _belongs(name, package)]:
        del sys.modules[name]


def _belongs(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")
