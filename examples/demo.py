"""Index the packaged sample documents and ask three questions, from text and from memory tokens."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from pathlib import Path

import clara
from clara.samples import sample_folder

QUESTIONS = (
    "Who discovered penicillin?",
    "Who was the commander of Apollo 11?",
    "What is the capital of Mongolia?",
)


def main() -> None:
    """Compress the documents once, then answer with default settings, and once more from memories alone."""
    logging.disable(logging.WARNING)  # what libraries note about each other would bury the answers
    warnings.simplefilter("ignore", FutureWarning)
    started = time.perf_counter()
    model = clara.ClaraModel.load("smollm2-135m")
    with tempfile.TemporaryDirectory() as folder, clara.Clara.open(Path(folder) / "store", model=model) as rag:
        report = rag.add([sample_folder()])
        print(
            f"indexed {report.added} documents: {report.tokens} tokens of text became "
            f"{report.passages * model.memory_tokens()} memory tokens\n"
        )
        for question in QUESTIONS:
            answer = rag.ask(question)
            print(f"Q: {question}\nA: {answer.text}")
            if answer.quote is not None:
                print(f"   {Path(answer.quote.document).name}:{answer.quote.start}  {answer.quote.sentence}")
        answer = rag.ask(QUESTIONS[0], context="memory")
        tokens = answer.tokens
        text = tokens.text_equivalent - tokens.prompt + tokens.memory
        print(f"\nQ: {QUESTIONS[0]}\nA: {answer.text}")
        print(f"   read from {tokens.memory} memory tokens in place of {text} tokens of text\n")
    print(f"{time.perf_counter() - started:.0f} seconds in all")


if __name__ == "__main__":
    main()
