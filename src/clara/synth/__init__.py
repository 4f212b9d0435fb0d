"""Data synthesis (clara.md section 2): documents in, verified training records out, through an LLM over HTTP.

``sources`` finds the passages, ``run`` takes each through its ``rounds`` and writes the records, ``checks`` and
``judges`` decide what is good enough. Never loads a model: it talks to an OpenAI-compatible server (``clara.llm``), and
needs the extra ``synth``.
"""

from __future__ import annotations
