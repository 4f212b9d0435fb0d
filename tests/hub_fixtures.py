"""A stand-in hub that huggingface-hub talks to by default, in place of the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils.tqdm import disable_progress_bars

from hub_server import TOKEN, HubState, hub_server


@pytest.fixture
def hub_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubState]:
    """A stand-in that the client asks by default, with an empty cache, online, with a token."""
    with hub_server() as state:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # The hub's newer transfer protocol ends in a storage service of its own, which has no stand-in.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "ENDPOINT", state.url)
        template = state.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        disable_progress_bars()
        yield state
        assert state.unknown == []
