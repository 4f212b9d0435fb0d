"""The notebooks run from top to bottom, with the embedded model or one that they make."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "examples" / "notebooks"
# What a notebook prints on every processor; other figures and words differ in their last digits and ranks.
PRINTS = {
    "1-ask-your-documents": ["Neil Armstrong", "Not found in your documents.", "Alexander Fleming"],
    "2-train-your-own": ["records written", "run 3 of 3: end-to-end", "latent-weight", "10 documents", "penicillin"],
    "3-look-inside": ["Paris", "completed", "Wilhelm Steinitz", "log p(answer)"],
}


def test_all_are_run() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(PRINTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTS)
def test_notebook(name: str) -> None:
    """A cell that raises ends the run."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    here = {"metadata": {"path": str(FOLDER)}}  # as Jupyter runs it
    done = NotebookClient(notebook, timeout=300, kernel_name="python3", resources=here).execute()
    printed = "".join(out.get("text", "") for cell in done["cells"] for out in cell.get("outputs", []))
    for wanted in PRINTS[name]:
        assert wanted in printed
