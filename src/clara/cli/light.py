"""Torch, transformers and LanceDB without what they import and one question does not use.

Half of a cold ``clara ask`` was spent on a compiler (torch._dynamo), tensors spread over machines, computer algebra,
object detection's SciPy, pandas, and the client of a remote catalogue. For the process of one command alone: what is
left out here is missing from these libraries until it ends. Whatever is asked of a stand-in that it does not know is
answered by the module itself.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

_COMPILER = "torch._dynamo"
_TRACING = f"{_COMPILER}._trace_wrapped_higher_order_op"
_CATALOGUE = "lance_namespace_urllib3_client"
_OPTIONAL = ("scipy", "sklearn", "PIL")
"""What transformers uses where it is installed, for what is not done here."""


def import_libraries() -> None:
    """Import the model's and the store's libraries; does nothing for those that are imported already.

    A version of theirs that does not bear it is imported whole, by whoever needs it.
    """
    try:
        _import_parts()
    except (ImportError, AttributeError, TypeError):
        for package in ("lancedb", "transformers", _COMPILER):
            _forget(package)


def _import_parts() -> None:
    if "lancedb" not in sys.modules:
        with _missing("pandas"):  # pyarrow asks for it by importing it
            importlib.import_module("pyarrow.dataset")
        with _catalogue():
            importlib.import_module("lancedb")
    if "transformers.modeling_utils" not in sys.modules:
        import torch  # noqa: PLC0415

        _leave_compiler_out()
        with _absent(_OPTIONAL), _one_machine(torch.distributed):
            importlib.import_module("transformers.modeling_utils")
            importlib.import_module("transformers.generation.utils")


class _Missing(MetaPathFinder):
    """Says of a module that it is not installed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Nothing for other modules: the next finder is asked."""
        del path, target
        if fullname == self._name:
            raise ModuleNotFoundError(f"{fullname} is left out of this command", name=fullname)


class _Names(ModuleType):
    """A module each of whose names is a plain record."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any name of a module
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (SimpleNamespace,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _NamesFinder(MetaPathFinder, Loader):
    """Gives ``_Names`` for a package and all of its modules."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A stand-in for what belongs to the package."""
        del path, target
        return ModuleSpec(fullname, self, is_package=True) if _belongs(fullname, self.package) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty one."""
        return _Names(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


@contextmanager
def _finder(finder: MetaPathFinder) -> Iterator[None]:
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@contextmanager
def _missing(name: str) -> Iterator[None]:
    """A package that is not imported yet looks as if it were not installed."""
    with _finder(_Missing(name)):
        yield


@contextmanager
def _absent(names: Sequence[str]) -> Iterator[None]:
    """As ``_missing``, for whoever looks a package up before it imports it."""
    hidden: dict[str, Any] = {name: None for name in names if name not in sys.modules}
    sys.modules.update(hidden)
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


@contextmanager
def _catalogue() -> Iterator[None]:
    """Stand-ins for the client of a remote catalogue: 160 modules of data classes, for stores that are not folders."""
    with _finder(_NamesFinder(_CATALOGUE)):
        try:
            yield
        finally:
            _forget(_CATALOGUE)


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
    """A stand-in for torch's compiler, whose decorators give back what they decorate.

    It stays: making a model asks for a decorator again.
    """
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
