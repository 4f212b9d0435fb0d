"""A paraphrase that repeats the passage instead of putting it in other words."""

from __future__ import annotations

from clara.synth.drafts import SourcePassage
from clara.synth.settings import CheckSettings
from clara.synth.words import longest_common_run, words

REASON = "paraphrase_is_copy"
_MOST_SHARE = 0.6  # of a short passage, where the allowed number of words would be all of it


def check_paraphrase(text: str, passage: SourcePassage, settings: CheckSettings) -> str | None:
    """The longest common n-gram of paraphrase and passage stays short."""
    source, copy = words(passage.text), words(text)
    start, length = longest_common_run(source, copy)
    allowed = max(settings.common_run_words, int(settings.common_run_share * len(source)))
    if length <= min(allowed, _MOST_SHARE * len(source)):
        return None
    shown = " ".join(source[start : start + min(length, 12)])
    return f"{length} words in a row are copied (“{shown} …”): reorder and reword"
