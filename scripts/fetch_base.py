"""Fetch the embedded base model into the user's cache, so that later commands need no network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from clara.cli.terminal import download_progress
from clara.errors import ClaraError
from clara.model.clara_model import default_cache
from clara.model.hub.base import find_base

cache = Path(os.environ["CLARA_CACHE"]) if "CLARA_CACHE" in os.environ else default_cache()
with download_progress() as progress:
    try:
        folder = find_base("smollm2-135m", cache, progress=progress)
    except ClaraError as error:
        sys.exit(f"clara: {error}")
print(f"base model: {folder}")
