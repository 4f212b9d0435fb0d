"""The built wheel indexes and answers in an environment of its own (``make wheel`` installs its dependencies too)."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_answers(tmp_path: Path) -> None:
    """The dependencies are those of this environment, the package is the wheel's."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str | Path) -> str:
        return subprocess.run(command, cwd=tmp_path, env=inherited, check=True, capture_output=True, text=True).stdout

    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    environment = tmp_path / "environment"
    python, clara = environment / "bin" / "python", environment / "bin" / "clara"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    packages = next(environment.glob("lib/*/site-packages"))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    (tmp_path / "note.txt").write_text("The harbour of Skerry has a lighthouse, which Moira Calder built in 1907.")
    assert str(packages) in run(python, "-c", "import clara; print(clara.__file__)")
    assert "1 added" in run(clara, "index", "note.txt", "--store", "store")
    assert run(clara, "ask", "Who built the lighthouse of Skerry?", "--store", "store").startswith("Moira Calder\n")
