"""What one client may take of the server: sizes, counts, rates, seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a server.

    Attributes:
        body_bytes: of a request that is no upload.
        file_bytes: of one uploaded file.
        files: of one upload.
        question_characters: of a question, and of a text to embed.
        answer_tokens: longest answer that may be asked for; a client that asks for more gets this.
        requests_a_minute: of one key whose entry says nothing else; 0 for any number.
        waiting: questions that wait for the model, those it answers included.
        together: questions that are answered side by side, sharing decode steps.
        jobs: indexing jobs that wait, the running one included.
        seconds: that a question may take, waiting included.
        silence: seconds within which more of a body must come.
        link_seconds: that the address of a citation opens without a key.
        k: most passages of one search.
    """

    body_bytes: int = 1 << 20
    file_bytes: int = 64 << 20
    files: int = 100
    question_characters: int = 16_000
    answer_tokens: int = 512
    requests_a_minute: int = 0
    waiting: int = 16
    together: int = 8
    jobs: int = 32
    seconds: float = 300.0
    silence: float = 30.0
    link_seconds: int = 3600
    k: int = 100
