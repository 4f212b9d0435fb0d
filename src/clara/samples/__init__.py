"""The packaged sample documents: ten short texts, for the demo and for tests. ``README.md`` states their licence."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from clara.errors import InputError


def sample_folder() -> Path:
    """The folder of the sample documents (.txt, .md, .html, .docx, .pdf), ready for ``ingest.find_files``.

    Raises:
        InputError: the package was installed without them, or inside a zip file.
    """
    folder = Path(str(files("clara.samples") / "documents"))
    if not folder.is_dir():
        raise InputError(f"the sample documents are not at {folder}; install clara-rag from its wheel or a checkout")
    return folder
