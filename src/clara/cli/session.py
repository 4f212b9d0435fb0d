"""From options to a loaded model and an open store. Everything heavy is imported here, when a command needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from clara.cli.options import DEFAULT_MODEL, Engine, ModelChoice
from clara.cli.terminal import download_progress
from clara.errors import ConfigError, InputError, StoreNotFoundError

if TYPE_CHECKING:
    from clara.index import LanceStore, StoreModel
    from clara.llm import LLM
    from clara.model import ClaraModel
    from clara.pipeline import Clara


def open_store(path: Path) -> LanceStore:
    """Open a store without its model.

    Raises:
        StoreError: there is none, or it cannot be read.
    """
    from clara.index import LanceStore  # noqa: PLC0415

    return LanceStore.open(path, None)


def stored_model(path: Path) -> StoreModel | None:
    """The model that filled a store; None if there is no store.

    Raises:
        StoreError: the folder is not a store, or cannot be read.
    """
    try:
        with open_store(path) as store:
            return store.model
    except StoreNotFoundError:
        return None


def without_model(path: Path) -> Clara:
    """A store for what needs no model: removal and text search.

    Loading one would cost seconds, and a store can be tidied up even when its model is gone.
    """
    from clara.pipeline import Clara  # noqa: PLC0415

    return Clara(open_store(path), model=None)  # type: ignore[arg-type]


def open_rag(path: Path, choice: ModelChoice, *, rate: int | None = None, codec: str | None = None) -> Clara:
    """Open a store with its model, or make one; what is wrong with it is said before the model is loaded.

    Args:
        path: the store's folder.
        choice: the user's choice of model; the store's own model unless he names one.
        rate: compression rate of a new store.
        codec: how a new store keeps memories.

    Raises:
        StoreError: a store that does not fit.
        ModelError: the model cannot be loaded.
        ConfigError: the device, the rate or the codec cannot be had.
    """
    stored = stored_model(path)
    model = load_model(choice, choice.model or (stored.name if stored is not None else None))
    from clara.pipeline import Clara  # noqa: PLC0415

    return Clara.open(path, model=model, rate=rate, codec=codec)


def open_filled(path: Path, choice: ModelChoice, *, once: bool = False) -> Clara:
    """Open a store that is there with its model; what is wrong with it is said before the model is loaded.

    Args:
        path: the store's folder.
        choice: the user's choice of model; the store's own model unless he names one.
        once: for one question: what only pays with more is left out.

    Raises:
        StoreError: there is none, or one that does not fit.
        ModelError: the model cannot be loaded.
        ConfigError: the device cannot be had.
    """
    store = open_store(path)
    try:
        model = load_model(choice, choice.model or store.model.name, merge=not once)
        from clara.pipeline import Clara  # noqa: PLC0415

        return Clara.of(store, model)
    except BaseException:
        store.close()
        raise


@contextmanager
def open_rags(
    named: Mapping[str, Path], choice: ModelChoice, llm: LLM | None, *, create: bool, engine: Engine = "torch"
) -> Iterator[dict[str, Clara]]:
    """Open stores to serve them; what is wrong with one is said before a model is loaded, and each is loaded once.

    Args:
        named: their folders.
        choice: the user's choice of model; each store's own model unless he names one.
        llm: the language model that answers; None for the store's own model.
        create: make a store if there is none.
        engine: what decodes answers.

    Raises:
        ClaraError: as ``open_rag``.
    """
    stored = {name: stored_model(path) for name, path in named.items()}
    for name, path in named.items():
        if stored[name] is None and not create:
            open_store(path)  # says what is wrong
    from clara.pipeline import Clara  # noqa: PLC0415

    models: dict[str, ClaraModel] = {}
    with ExitStack() as stack:
        if llm is not None:
            stack.enter_context(llm)
        opened = {}
        for name, path in named.items():
            filled_by = stored[name]
            wanted = choice.model or (filled_by.name if filled_by is not None else DEFAULT_MODEL)
            if wanted not in models:
                models[wanted] = load_model(choice, wanted, engine=engine)
            opened[name] = stack.enter_context(Clara.open(path, model=models[wanted], create=create))
            opened[name].llm = llm
        yield opened


def load_model(
    choice: ModelChoice, name: str | None = None, *, merge: bool = True, engine: Engine = "torch"
) -> ClaraModel:
    """Load the model of a name as the user chose.

    Args:
        choice: the user's.
        name: of the model; the user's choice, or the default.
        merge: see ``ClaraModel.load``.
        engine: what decodes answers.

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
            _lasting_name(name or choice.model or DEFAULT_MODEL),
            base=choice.base,
            device=device,
            dtype=choice.dtype,
            attention=choice.attention,
            check_memory=choice.memory_check,
            merge=merge,
            cache=cache_folder(choice.cache),
            progress=progress,
        )


def make_folder(out: Path) -> None:
    """Make the folder of ``--out``, before the work and not after it.

    Raises:
        InputError: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be made: {error.strerror or error}") from None


def resolved(choice: ModelChoice) -> ModelChoice:
    """The choice with the device that ``auto`` stands for here, for what is not loaded by ``load_model``.

    Raises:
        ConfigError: there is no such device.
    """
    return replace(choice, device=prepare_torch(choice.device, choice.threads))


def _lasting_name(name: str) -> str:
    """A name that still leads to the model from another working folder: the store keeps it."""
    from clara.model.hub.base import EMBEDDED  # noqa: PLC0415

    folder = Path(name).expanduser()
    return str(folder.resolve()) if name not in EMBEDDED and folder.is_dir() else name


def cache_folder(given: Path | None) -> Path:
    """The folder for base weights."""
    from clara.model import default_cache  # noqa: PLC0415

    return given.expanduser() if given is not None else default_cache()


def prepare_torch(device: str, threads: int | None) -> str:
    """Set the number of threads, silence transformers' own bars, and check the device.

    Returns:
        The device's name; ``auto`` is resolved.

    Raises:
        ConfigError: there is no such device here.
    """
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
        wanted = torch.device(device)
    except RuntimeError:
        raise ConfigError(
            f"--device {device!r} is no torch device; give cpu, cuda, cuda:1, mps, auto, balanced or sequential"
        ) from None
    if wanted.type == "cuda" and (wanted.index or 0) >= gpus:
        seen = f"{gpus} GPU(s)" if gpus else "no GPU"
        raise ConfigError(f"--device {device}: torch sees {seen} here; use --device cpu")
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"--device {device}: torch sees no such GPU here; use --device cpu")
    return device


def check_question(question: str) -> str:
    """A question as it was given.

    Raises:
        InputError: it is empty, or its bytes are not UTF-8.
    """
    if not question.strip():
        raise InputError("the question is empty")
    try:
        question.encode()
    except UnicodeEncodeError:
        raise InputError("the question is not valid UTF-8; check the terminal's encoding") from None
    return question
