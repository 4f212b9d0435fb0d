"""The notebooks run from top to bottom, with the embedded model or one that they make."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "notebooks"
# What a notebook prints on every processor; other figures and words differ in their last digits and ranks.
PRINTS = {
    "1-ask-your-documents": ["Neil Armstrong", "Not found in your documents.", "Alexander Fleming"],
    "2-train-your-own": ["records written", "run 3 of 3: end-to-end", "latent-weight", "10 documents", "penicillin"],
    "3-look-inside": ["Paris", "completed", "Wilhelm Steinitz", "log p(answer)"],
}

_RUN = """
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
here = {"metadata": {"path": str(Path(sys.argv[1]).parent)}}  # as Jupyter runs it
nbformat.write(NotebookClient(notebook, timeout=300, kernel_name="python3", resources=here).execute(), sys.argv[2])
"""


def test_all_are_run() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(PRINTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTS)
def test_notebook(name: str, tmp_path: Path) -> None:
    """A cell that raises ends the run, in a process of its own: nbclient may leave the kernel's end to its own."""
    done = tmp_path / "done.ipynb"
    call = [sys.executable, "-c", _RUN, str(FOLDER / f"{name}.ipynb"), str(done)]
    ran = subprocess.run(call, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    cells = json.loads(done.read_text("utf-8"))["cells"]
    printed = "".join("".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", []))
    for wanted in PRINTS[name]:
        assert wanted in printed
