"""Who says whether a draft is true to its passage and covers it.

Two judges: ``lexical`` compares words and needs no model; ``llm`` asks the language model under the contract of
``contract``. A judge is asked only about what has passed the deterministic ``checks``.
"""

from __future__ import annotations
