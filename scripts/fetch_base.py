"""Fetch the embedded base model into the user's cache, with a progress bar on a terminal."""

from __future__ import annotations

import sys

from clara.cli.progress import hub_progress
from clara.errors import ClaraError
from clara.model import default_cache
from clara.model.hub import find_base

with hub_progress() as progress:
    try:
        folder = find_base("smollm2-135m", default_cache(), progress=progress)
    except ClaraError as error:
        sys.exit(f"clara: {error}")
print(f"base model: {folder}")
