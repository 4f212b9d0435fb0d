"""What a user may import, and what importing costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import clara

PUBLIC = [
    "AddReport",
    "Answer",
    "AnswerOptions",
    "Citation",
    "Clara",
    "ClaraError",
    "ClaraModel",
    "Document",
    "Generation",
    "GenerationRequest",
    "Hit",
    "Memory",
    "Passage",
    "Quote",
    "Sampling",
    "split_text",
]


def test_public_names() -> None:
    assert clara.__all__ == PUBLIC
    for name in PUBLIC:
        assert getattr(clara, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = clara.nothing


def test_importing_clara_does_not_import_torch() -> None:
    program = (
        "import sys, clara; clara.Memory; clara.ClaraError; "
        "sys.exit(','.join(n for n in ('torch', 'transformers', 'lancedb', 'pydantic') if n in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
