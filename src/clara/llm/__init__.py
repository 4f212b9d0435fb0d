"""A language model behind an OpenAI-compatible server: ``settings`` say where it is, ``client`` asks it.

Knows chat messages and replies; what the words in them mean is for the rooms above. Importing ``client`` needs the
extra ``llm``.
"""

from __future__ import annotations
