"""``clara doctor``: checks everything that the other commands need; changes and downloads nothing."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from clara.cli.options import DEFAULT_MODEL, DEFAULT_STORE, JsonOption, ModelChoice, StoreOption
from clara.cli.session import cache_folder, load_model, open_store, prepare_torch, stored_model
from clara.cli.terminal import counted, megabytes, print_json, shown, write
from clara.config import usable_cores
from clara.errors import ClaraError

if TYPE_CHECKING:
    from clara.model import ClaraModel
    from clara.model.checkpoint import Manifest

_FAILED = 1
_REINSTALL = "pip install --upgrade clara-rag"
_NAMED = ("torch", "transformers", "peft", "lancedb", "numpy")
_FREE_BYTES = 1_000_000_000  # for one embedded base model while it is made, with room to spare


def doctor(*, store: StoreOption = DEFAULT_STORE, choice: ModelChoice, as_json: JsonOption = False) -> None:
    """Check the installation, the model and the store; say what to do about what is wrong.

    Downloads nothing. Ends with exit code 1 if a check fails; a warning is not a failure.

    --json prints {"ok", "checks": [{"name", "status", "detail", "remedy"}]}, status being ok, warn or fail.
    """
    checks = []
    for name, check in _run_checks(store, choice):
        checks.append({"name": name, **asdict(check)})
        if not as_json:
            write(f"{check.status:<4}  {name}: {check.detail}")
            if check.remedy:
                write(f"      -> {check.remedy}")
    failed = any(check["status"] == "fail" for check in checks)
    if as_json:
        print_json({"ok": not failed, "checks": checks})
    if failed:
        raise typer.Exit(_FAILED)


@dataclass(frozen=True, slots=True)
class _Check:
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


def _run_checks(store: Path, choice: ModelChoice) -> Iterator[tuple[str, _Check]]:
    """All checks by name, in turn; a check that raises fails, and those that need it are left out."""
    yield "python", _Check("ok", platform.python_version())  # pip refuses those that are too old
    yield "packages", _guarded(_packages)
    hardware = _guarded(lambda: _torch(choice))
    yield "torch", hardware
    yield "number format", _guarded(lambda: _number_format(choice))
    yield "disk", _guarded(lambda: _disk(choice), "free some space, or name another folder with --cache")
    subject = _Subject(store, choice)
    yield "checkpoint", _guarded(subject.checkpoint)
    yield "base model", _guarded(subject.base)
    if subject.ready and hardware.status != "fail":
        yield "end to end", _guarded(subject.end_to_end, "run with --debug and report what it says")
    yield "store", _guarded(subject.check_store, "index the documents again into another --store")


def _guarded(work: Callable[[], _Check], remedy: str = _REINSTALL) -> _Check:
    try:
        return work()
    except ClaraError as error:  # its message has the remedy
        return _Check("fail", str(error))
    except Exception as error:  # noqa: BLE001 - a broken installation can raise anything, and is what is looked for
        return _Check("fail", f"{type(error).__name__}: {error}", remedy)


def _packages() -> _Check:
    """Every dependency that is not an extra's, against its required version."""
    from packaging.requirements import Requirement  # noqa: PLC0415

    faults, count = [], 0
    for line in metadata.requires("clara-rag") or ():
        required = Requirement(line)
        if required.marker is not None and not required.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = metadata.version(required.name)
        except metadata.PackageNotFoundError:
            faults.append(f"{required.name} is missing")
            continue
        if not required.specifier.contains(version, prereleases=True):
            faults.append(f"{required.name} {version} (needs {required.specifier})")
    if faults:
        return _Check("fail", "; ".join(faults), _REINSTALL)
    named = ", ".join(f"{name} {metadata.version(name)}" for name in _NAMED)
    return _Check("ok", f"{count} as required ({named})")


def _torch(choice: ModelChoice) -> _Check:
    device = prepare_torch(choice.device, choice.threads)
    import torch  # noqa: PLC0415

    from clara.model.placement import SPREAD  # noqa: PLC0415

    if device in SPREAD:
        return _Check("ok", f"{device}: {counted(torch.cuda.device_count(), 'GPU')}")
    if torch.device(device).type == "cuda":
        return _Check("ok", f"{device}: {torch.cuda.get_device_name(device)}")
    threads, cores = torch.get_num_threads(), usable_cores()
    detail = f"{counted(threads, 'thread')} on {counted(cores, 'core')}"
    if threads > cores:
        return _Check("warn", detail, f"more threads than cores slow each other down: --threads {cores}")
    if torch.cuda.is_available() and choice.device == "cpu":
        return _Check("warn", f"{detail}; there is a GPU", "--device auto uses it")
    return _Check("ok", detail)


def _number_format(choice: ModelChoice) -> _Check:
    import torch  # noqa: PLC0415

    from clara.model.placement import natural_dtype  # noqa: PLC0415

    device = prepare_torch(choice.device, choice.threads)
    if natural_dtype(device) is torch.bfloat16:
        return _Check("ok", "bf16 is multiplied faster than fp32")
    remedy = "" if choice.dtype != "bf16" else "--dtype auto is faster here"
    return _Check("warn", "bf16 would be multiplied slower: fp32 is used, with twice the memory", remedy)


def _disk(choice: ModelChoice) -> _Check:
    cache = cache_folder(choice.cache)
    folder = next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free
    another = "name another folder with --cache or CLARA_CACHE"
    if not os.access(folder, os.W_OK):
        return _Check("warn", f"{cache} cannot be written", another)
    detail = f"{megabytes(free)} free for base weights in {cache}"
    if free < _FREE_BYTES:
        return _Check("warn", detail, f"free some space ({megabytes(_FREE_BYTES)}), or {another}")
    return _Check("ok", detail)


class _Subject:
    """The model and the store that the other commands would use, as far as they exist."""

    def __init__(self, store: Path, choice: ModelChoice) -> None:
        self._store, self._choice = store, choice
        self._folder: Path | None = None
        self._manifest: Manifest | None = None
        self._base_present = False
        self._model: ClaraModel | None = None

    @property
    def ready(self) -> bool:
        return self._folder is not None and self._base_present

    def checkpoint(self) -> _Check:
        from clara.model import checkpoint  # noqa: PLC0415
        from clara.model.apple import format as apple_format  # noqa: PLC0415
        from clara.model.clara_model import find_checkpoint  # noqa: PLC0415

        folder = find_checkpoint(self._name(), download=False)
        self._folder = folder
        if not checkpoint.is_checkpoint(folder) and apple_format.is_official(folder):
            apple = apple_format.read(folder)
            named, rate = apple.config.decoder_model_name, apple.config.compr_rate
            return _Check("ok", f"{self._name()}: Apple's format, rate {rate}x, stage {apple.stage}, on {named}")
        manifest = checkpoint.read_manifest(folder)
        self._manifest = manifest
        rates = ", ".join(f"{rate}x" for rate in manifest.compression.rates)
        detail = f"{self._name()}: rates {rates}, stage {manifest.stage}, on {manifest.base_model}"
        if manifest.stage == "untrained":
            return _Check("warn", detail, "train it: clara train scp")
        return _Check("ok", detail)

    def base(self) -> _Check:
        from clara.model.hub.base import identity  # noqa: PLC0415

        name = self._base_name()
        files = _files_here(name, cache_folder(self._choice.cache))
        if files is None:
            remedy = "the first clara index or ask fetches it, once; without a network give its folder with --base"
            return _Check("warn", f"{name} is not on this machine yet", remedy)
        own = identity(files)
        if self._manifest is not None and own != self._manifest.base_identity:
            detail = f"{name} ({own}) is not what the checkpoint was trained on"
            remedy = f"give {self._manifest.base_model} ({self._manifest.base_identity}) with --base"
            return _Check("fail", detail, remedy)
        self._base_present = True
        return self._memory(files, f"{name} (identity {own})")

    def _memory(self, files: Path, detail: str) -> _Check:
        """Memory that the model needs, by the files' headers: nothing is loaded."""
        from clara.model import create  # noqa: PLC0415
        from clara.model.apple import format as apple_format  # noqa: PLC0415
        from clara.model.placement import available, gigabytes, placement  # noqa: PLC0415

        if self._folder is None:
            return _Check("ok", detail)
        device = prepare_torch(self._choice.device, self._choice.threads)
        where = placement(self._choice.dtype, device)
        if self._manifest is not None:
            size = create.AdapterSize.of(self._folder, self._manifest)
        else:
            apple = apple_format.read(self._folder)
            size = create.AdapterSize(apple.adapter_parameters(), len(apple.adapters))
        needed, free = create.need(files, where, size), available(where)
        detail += f"; takes about {needed}, {gigabytes(free)} are free on {device}"
        if needed.total - needed.merged > free:
            return _Check("fail", detail, "--dtype int8 or int4, another --device, or a smaller base model")
        return _Check("ok", detail)

    def end_to_end(self) -> _Check:
        started = time.perf_counter()
        self._model = model = load_model(self._choice, self._name())
        ready = time.perf_counter()
        memory = model.compress(["The cat sat on the mat."])[0]
        model.encode_queries(["Where did the cat sit?"])
        generation = model.generate("Where did the cat sit?", [memory], max_new_tokens=4)
        seconds = time.perf_counter() - ready
        detail = f"loaded in {ready - started:.1f} s; compressed and answered in {seconds:.1f} s"
        return _Check("ok", f"{detail} ({counted(generation.tokens.memory, 'memory token')} read)")

    def check_store(self) -> _Check:
        filled_by = stored_model(self._store)
        if filled_by is None:
            return _Check("ok", f"none at {self._store} yet; clara index PATH makes one")
        with open_store(self._store) as store:
            documents, unfinished, passages = len(store.documents()), len(store.unfinished()), store.count()
            other = self._model is not None and self._model.fingerprint != filled_by.fingerprint
            damaged = [] if other else store.damaged()
        detail = (
            f"{self._store}: {counted(documents, 'document')}, {counted(passages, 'passage')}, "
            f"{shown(filled_by.name)} at {filled_by.rate}x"
        )
        if other:
            remedy = f"use --model {filled_by.name}, or index the documents again into another --store"
            return _Check("fail", f"{detail}; filled by another model than {self._name()}", remedy)
        if damaged:
            names = sorted({document for _, document in damaged})
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            remedy = f"clara remove {shown(names[0])}{more}, then clara index them again; the disk may be failing"
            return _Check("fail", f"{detail}; {counted(len(damaged), 'passage')} damaged on disk", remedy)
        if unfinished:
            remedy = "run the same clara index again; it finishes them"
            return _Check("warn", f"{detail}; {counted(unfinished, 'document')} unfinished", remedy)
        return _Check("ok", detail)

    def _base_name(self) -> str:
        if self._choice.base is not None:
            return self._choice.base
        if self._manifest is not None:
            return self._manifest.base_model
        if self._folder is not None:
            from clara.model.apple import format as apple_format  # noqa: PLC0415

            return apple_format.read(self._folder).base_name
        return DEFAULT_MODEL

    def _name(self) -> str:
        """The model's name; a store that cannot be read is reported by ``check_store``."""
        if self._choice.model is not None:
            return self._choice.model
        try:
            filled_by = stored_model(self._store)
        except ClaraError:
            filled_by = None
        return filled_by.name if filled_by is not None else DEFAULT_MODEL


class _WouldDownloadError(Exception):
    """Stops a download before it begins."""


def _files_here(name: str, cache: Path) -> Path | None:
    """The folder of base weights; None if it takes a download (BaseModelError: unknown name, or no room)."""
    from clara.model.hub.base import EMBEDDED, find_base, kept_from_hub  # noqa: PLC0415

    def stop(_what: str, _done: int, _total: int) -> None:
        raise _WouldDownloadError

    if name not in EMBEDDED and "/" in name and not Path(name).expanduser().is_dir():
        return kept_from_hub(name)
    try:
        return find_base(name, cache, progress=stop)
    except _WouldDownloadError:
        return None
