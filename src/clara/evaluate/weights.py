"""Weights of systems: folders the user named, models from the hub, and their fingerprints.

Each checkpoint and reader is loaded once a run, and refused here where it does not fit its system.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from clara.data import sha256_of
from clara.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from clara.evaluate.system import AnswerModel, SystemSettings
    from clara.model import ClaraModel
    from clara.model.checkpoint import Manifest
    from clara.model.reader import ReaderContext, TextReader

_WEIGHTS = ("*.safetensors", "*.bin", "*.pth")


def weights_hash(folder: Path, *, without: str | None = None) -> str:
    """Hash of a folder's weight files, names included, except below folders called ``without``: 16 hex digits."""
    names = {path: path.relative_to(folder) for pattern in _WEIGHTS for path in folder.rglob(pattern)}
    kept = [path for path in sorted(names) if without not in names[path].parts]
    listed = "".join(f"{names[path].as_posix()}:{sha256_of(path)};" for path in kept)
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def manifest_of(model: AnswerModel) -> Manifest | None:
    """The manifest of a model's checkpoint; None for a model that comes from no checkpoint."""
    manifest: Manifest | None = getattr(model, "manifest", None)
    return manifest


def base_identity(model: AnswerModel) -> str:
    """Identity of a model's base weights."""
    manifest = manifest_of(model)
    return model.fingerprint if manifest is None else manifest.base_identity


def whole_identity(model: AnswerModel) -> str:
    """Identity of a checkpoint, its generator included (``fingerprint`` leaves the generator out).

    Decoding settings of the manifest count too: with another contrast the same weights answer differently.
    """
    manifest = manifest_of(model)
    if manifest is None:
        return model.fingerprint
    from clara.model.clara_model import find_checkpoint  # noqa: PLC0415 - slow, and a model is loaded already

    decoding = f"-{list(manifest.contrast)}" if any(manifest.contrast) else ""
    # The text reader answers in none of the systems: a checkpoint that gained one keeps its journals.
    weights = weights_hash(find_checkpoint(model.name), without="text_reader")
    return f"{model.fingerprint}-{weights}{decoding}"


def identity(settings: SystemSettings, model: AnswerModel) -> str:
    """``whole_identity``, looked up once a run."""
    return settings.cache.opened("identity", model.name, lambda: whole_identity(model))


def rate_of(settings: SystemSettings, model: AnswerModel) -> int:
    """The run's compression rate, or the model's default (ConfigError: the model does not serve it)."""
    rate = model.default_rate if settings.rate is None else settings.rate
    manifest = manifest_of(model)
    if manifest is not None and rate not in manifest.compression.rates:
        served = ", ".join(f"{known}x" for known in manifest.compression.rates)
        raise ConfigError(f"{model.name} serves the rates {served}, not {rate}x")
    return rate


def option(settings: SystemSettings, name: str, what: str) -> Path:
    """The folder of a required option (ConfigError: it was not given)."""
    folder = settings.options.get(name)
    if folder is None:
        raise ConfigError(f"this system needs --option {name}=DIR, {what}")
    return folder


def open_checkpoint(settings: SystemSettings, name: str, stage: str, *, label: str | None = None) -> ClaraModel:
    """The checkpoint of an option.

    Raises:
        ConfigError: not given, of another stage, or on another backbone.
        ModelError: it cannot be loaded.
    """
    folder = option(settings, name, f"the folder of a checkpoint of stage {stage}")
    if not folder.is_dir():  # else its name would be looked for on the hub
        raise ConfigError(
            f"the option {name} is {folder}, where there is no folder; expected a checkpoint of stage {stage}"
        )
    from clara.model import ClaraModel, checkpoint  # noqa: PLC0415 - slow, needed only for a further checkpoint

    if checkpoint.is_checkpoint(folder):
        manifest = checkpoint.read_manifest(folder)
        if manifest.stage.replace("-", "_") != stage:  # commands and recipes may write end-to-end
            raise ConfigError(
                f"the option {name} is {folder}, a checkpoint of stage {manifest.stage}; system {label or name} "
                f"is one of stage {stage}"
            )
        _check_backbone(settings, manifest.base_identity, manifest.base_model, folder, name)
    return settings.cache.opened(
        "checkpoint",
        str(folder),
        lambda: ClaraModel.load(
            folder, base=_base_folder(settings), device=settings.device, cache=settings.weights_cache
        ),
    )


def open_reader(settings: SystemSettings, name: str, context: ReaderContext) -> TextReader:
    """The reader of an option.

    Raises:
        ConfigError: not given, trained for another context, or on another backbone.
        CheckpointError: missing or damaged.
    """
    folder = option(settings, name, f'the folder of a reader (clara train reader, reader_context = "{context}")')
    from clara.model.reader import ReaderManifest, TextReader  # noqa: PLC0415 - slow, as above

    manifest = ReaderManifest.read(folder)
    if manifest.context != context:
        raise ConfigError(
            f"the option {name} is {folder}, a reader of context {manifest.context!r}; this system needs {context!r}"
        )
    _check_backbone(settings, manifest.base_identity, manifest.base_model, folder, name)
    return settings.cache.opened(
        "reader",
        str(folder),
        lambda: TextReader.load(
            folder,
            base=_base_folder(settings),
            cache=settings.weights_cache,
            device=settings.device,
            dtype=settings.reader_dtype,
        ),
    )


def base_folder(settings: SystemSettings) -> Path:
    """Folder of the base weights of the model under test, in Hugging Face format.

    Raises:
        ConfigError: the model comes from no checkpoint.
        BaseModelError: the weights cannot be had.
    """
    from clara.model.hub import base as hub_base  # noqa: PLC0415 - slow, needed only by what loads weights of its own

    manifest = manifest_of(settings.model)
    if manifest is None:
        raise ConfigError(f"{settings.model.name} comes from no checkpoint, so its base weights are not known")
    return hub_base.find_base(_base_folder(settings) or manifest.base_model, settings.weights_cache)


def hub_folder(name: str, given: Path | None, *, option: str) -> Path:
    """Folder of a published model: the one given, else the hub's (ModelError: neither is there)."""
    if given is not None:
        if not (given / "config.json").is_file():
            raise ModelError(f"{given} has no config.json; the option {option} is the folder of {name}")
        return given
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - slow, and not needed with a folder
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415 - as above

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{name} could not be had from the hub ({reason}); download it on a machine with access and give its "
            f"folder with --option {option}=DIR, or leave the systems that need it out"
        ) from error


def _base_folder(settings: SystemSettings) -> str | None:
    folder = settings.options.get("base")
    return None if folder is None else str(folder)


def _check_backbone(settings: SystemSettings, identity: str, base_model: str, folder: Path, name: str) -> None:
    manifest = manifest_of(settings.model)
    if manifest is not None and manifest.base_identity != identity:
        raise ConfigError(
            f"the option {name} is {folder}, trained on {base_model} ({identity}); the model under test is on "
            f"{manifest.base_model} ({manifest.base_identity}), and all systems of a run share its backbone"
        )
