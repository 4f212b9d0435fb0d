"""Which files there are: walks files and folders, opens none.

What is in a file is ``read``'s business; only names and kinds are looked at here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clara.errors import InputError
from clara.ingest.document import Skipped, document_uri, skip

# fmt: off
SUPPORTED_SUFFIXES = (
    ".csv", ".docx", ".eml", ".epub", ".htm", ".html", ".jsonl", ".markdown", ".md", ".odt", ".pdf", ".pptx", ".rst",
    ".text", ".tsv", ".txt", ".xhtml", ".xlsx",
)
CODE_SUFFIXES = (
    ".asm", ".awk", ".bash", ".bat", ".c", ".cc", ".cfg", ".clj", ".cmake", ".conf", ".cpp", ".cs", ".css", ".cu",
    ".cxx", ".dart", ".el", ".erl", ".ex", ".exs", ".f90", ".fish", ".fs", ".go", ".gradle", ".graphql", ".groovy",
    ".h", ".hpp", ".hs", ".ini", ".ipp", ".java", ".jl", ".js", ".jsx", ".kt", ".lisp", ".lua", ".m", ".mjs", ".mk",
    ".ml", ".nim", ".nix", ".pas", ".php", ".pl", ".pm", ".proto", ".ps1", ".py", ".pyi", ".r", ".rb", ".rs", ".sass",
    ".scala", ".scm", ".scss", ".sh", ".sql", ".swift", ".tcl", ".tex", ".tf", ".toml", ".ts", ".tsx", ".v", ".vb",
    ".vim", ".vue", ".yaml", ".yml", ".zig", ".zsh",
)
# fmt: on
"""Source code and settings: text whose blanks count."""

READ_SUFFIXES = frozenset(["", *SUPPORTED_SUFFIXES, *CODE_SUFFIXES])
"""All suffixes that are read; a file without one is told by what is in it."""


@dataclass(frozen=True, slots=True)
class FileListing:
    """The files found, each once however many names lead to it.

    Attributes:
        files: files with a supported suffix or none, absolute, in the order of the paths given and by name within a
            folder.
        unsupported: files of other kinds, in the same order; named so that a report can name them.
        skipped: what could not be looked at: folders without permission, links to nothing.
        hidden: hidden files and folders passed over (a hidden folder counts once).
    """

    files: tuple[Path, ...]
    unsupported: tuple[Path, ...]
    skipped: tuple[Skipped, ...]
    hidden: int


def find_files(paths: Sequence[Path]) -> FileListing:
    """List the files in files and folders, recursively.

    Names that begin with a dot are passed over inside folders and counted; one that is given itself is taken. Links
    are followed, each folder is visited once, so loops end.

    Raises:
        InputError: a given path does not exist; the message names all that do not.
    """
    check_paths(paths)
    walk = _Walk()
    for path in paths:
        walk.add(path.absolute())
    return FileListing(
        files=tuple(walk.files), unsupported=tuple(walk.unsupported), skipped=tuple(walk.skipped), hidden=walk.hidden
    )


def check_paths(paths: Sequence[Path]) -> None:
    """Make sure that all paths name something.

    Raises:
        InputError: a path does not exist or may not be looked at; the message names all that do not.
    """
    missing = [str(path) for path in paths if not os.path.exists(path)]  # noqa: PTH110 - Path.exists raises without permission
    if missing:
        raise InputError(f"no such file or folder: {', '.join(missing)}; check the spelling and the permissions")


class _Walk:
    """Collects as it goes; remembers where it has been."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.unsupported: list[Path] = []
        self.skipped: list[Skipped] = []
        self.hidden = 0
        self._seen: set[str] = set()

    def add(self, path: Path) -> None:
        pending = [(path, os.path.realpath(path))]  # a stack, not recursion: folders may nest deeper than Python does
        while pending:
            folder, real = pending.pop()
            entries = self._visit(folder, real)
            # Resolved step by step: resolving each whole path anew would cost its depth for every file.
            pending.extend(
                (entry, os.path.realpath(entry) if entry.is_symlink() else os.path.join(real, entry.name))  # noqa: PTH118
                for entry in reversed(entries)
            )

    def _visit(self, path: Path, real: str) -> list[Path]:
        """Take a file; return a folder's entries."""
        if real in self._seen:
            return []
        self._seen.add(real)
        try:
            mode = path.stat().st_mode
            # Names, not paths: a folder may hold millions.
            names = sorted(os.listdir(path)) if stat.S_ISDIR(mode) else []  # noqa: PTH208
        except OSError as error:
            self._skip(path, f"cannot be looked at: {error.strerror or error}")
            return []
        if stat.S_ISREG(mode):
            supported = path.suffix.lower() in READ_SUFFIXES
            (self.files if supported else self.unsupported).append(path)
        elif not stat.S_ISDIR(mode):  # reading one may never end
            self._skip(path, "is a pipe, a device or a socket, not a regular file")
        visible = [name for name in names if not name.startswith(".")]
        self.hidden += len(names) - len(visible)
        return [path / name for name in visible]

    def _skip(self, path: Path, detail: str) -> None:
        # The path itself: where it leads nowhere, its target would mislead.
        name = path.name.encode("utf-8", "backslashreplace").decode("utf-8")
        self.skipped.append(skip(f"{document_uri(path.parent).rstrip('/')}/{name}", "unreadable", detail))
