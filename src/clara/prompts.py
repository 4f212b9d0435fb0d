"""Every prompt and piece of text that a model of this project reads, once.

Knows words, not tokens: turning these into ids is ``model.prompting``'s work.
"""

from __future__ import annotations

ANSWER_SYSTEM = "Answer the question from the background. Reply with the answer only, in a few words."
CLOSED_BOOK_SYSTEM = "Answer the question. Reply with the answer only, in a few words."
REPEAT_INSTRUCTION = "\nRepeat the background."
PARAPHRASE_INSTRUCTION = "\nSay the background in other words."
RESUME_INSTRUCTION = '\nRepeat what follows "{opening}" in the background.'

BACKGROUND = "Background:\n"
SEPARATOR = "\n"
QUESTION = "\nQuestion: "

# What Apple's published models were trained on, to the letter (its grammar included).
OFFICIAL_ANSWER_SYSTEM = (
    "You are a helpful assistant. Your task is to extract relevant information from provided documents and to answer "
    "to questions as briefly as possible."
)
OFFICIAL_PARAPHRASE_SYSTEM = (
    "You are a helpful assistant. Your task is follow the instructions to paraphrase the background information."
)
OFFICIAL_QUESTION = "\n\nQuestion:"


def passage_text(title: str, text: str) -> str:
    """The text a model reads of a passage: its title on a line of its own, then the text.

    A title that the text already begins with is not repeated.
    """
    title = title.strip()
    if not title or text.lstrip("# \n").startswith(title):
        return text
    return f"{title}\n{text}"
