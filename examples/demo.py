"""Index the packaged sample documents and ask three questions, answered from memory tokens."""

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
    "Which country grows the most coffee?",
)


def main() -> None:
    """Compress the documents once, then answer from the memories alone."""
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
            answer = rag.ask(question, k=2, max_new_tokens=24)
            print(f"Q: {question}\nA: {answer.text}")
            for number, citation in enumerate(answer.citations, start=1):
                name = Path(citation.document).name
                print(f"   [{number}] {name}:{citation.start}-{citation.end}  {citation.text[:70].split(chr(10))[0]}…")
            tokens = answer.tokens
            text = tokens.text_equivalent - tokens.prompt + tokens.memory
            print(f"   read {tokens.memory} memory tokens in place of {text} tokens of text\n")
    print(f"{time.perf_counter() - started:.0f} seconds in all")


if __name__ == "__main__":
    main()
