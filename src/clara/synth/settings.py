"""Settings of a synthesis run, checked whole before anything is read or asked; without the server's key, a secret."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from clara.config import LLMSettings, Settings

_JudgeKind = Literal["both", "llm", "lexical"]
_StructuredOutput = Literal["auto", "json_schema", "json_object", "none"]


class ServerSettings(LLMSettings):
    """The language model's server; further settings as in ``LLMSettings``.

    Attributes:
        concurrency: requests under way at once.
        structured_output: how the server is asked to keep to the reply's JSON schema. ``auto`` tries ``json_schema``,
            then ``json_object``, then asks in words only, and remembers the server's mode.
    """

    concurrency: int = Field(default=8, ge=1, le=1024)
    retries: int = Field(default=8, ge=0)
    max_wait_seconds: float = Field(default=60.0, ge=0)
    structured_output: _StructuredOutput = "auto"


class SamplingSettings(Settings):
    """Sampling of replies; written into every record.

    Attributes:
        temperature: of the three drafting prompts.
        judge_temperature: of the judge's prompt.
        top_p: nucleus of the drafting prompts.
        seed: of the first round; round r asks with ``seed + r - 1``. None leaves the field out.
        extra_body: further fields of each request, such as ``{"chat_template_kwargs": {"enable_thinking": false}}``.
    """

    temperature: float = Field(default=0.7, ge=0, le=2)
    judge_temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_output_tokens: int = Field(default=1536, ge=16)
    seed: int | None = 0
    extra_body: dict[str, Any] = Field(default_factory=dict)


class CheckSettings(Settings):
    """Limits of the deterministic checks. Words are runs of letters and digits; shares lie between 0 and 1.

    Attributes:
        question_words, answer_words: fewest and most words of one.
        paraphrase_share: fewest and most words of a paraphrase, as a multiple of the passage's; some words of slack.
        common_run_words: words in a row that a paraphrase may always copy (names, quotations).
        common_run_share: beyond that, this share of the passage's words; never more than 60 % of a short passage.
        numbers_kept, names_kept: least share of the passage's numbers, of its capitalised names, in the paraphrase.
        foreign_letters: most letters, as a share, in scripts that the passage does not use.
    """

    question_words: tuple[int, int] = (2, 60)
    answer_words: tuple[int, int] = (1, 100)
    paraphrase_share: tuple[float, float] = (0.4, 2.0)
    common_run_words: int = Field(default=12, ge=1)
    common_run_share: float = Field(default=0.3, ge=0, le=1)
    numbers_kept: float = Field(default=0.8, ge=0, le=1)
    names_kept: float = Field(default=0.75, ge=0, le=1)
    foreign_letters: float = Field(default=0.2, ge=0, le=1)


class LexicalSettings(Settings):
    """Limits of the lexical judge, in shares of content words found in the passage.

    Attributes:
        answer_support: least share of the answer's content words.
        joint_support: least sum of the answer's and the question's shares.
        yes_no_support: least share of the question's content words when the answer is only yes or no.
        inferred_support: least share of the question's content words when the answer may be inferred from the passage
            (complex pairs that a language model judges as well).
        paraphrase_support: least share of the passage's content words that the paraphrase keeps.
        coverage: least share of the passage's sentences that a pair touches; used when no language model judges.
    """

    answer_support: float = Field(default=0.5, ge=0, le=1)
    joint_support: float = Field(default=0.9, ge=0, le=2)
    yes_no_support: float = Field(default=0.25, ge=0, le=1)
    inferred_support: float = Field(default=0.6, ge=0, le=1)
    paraphrase_support: float = Field(default=0.3, ge=0, le=1)
    coverage: float = Field(default=0.5, ge=0, le=1)


class BudgetSettings(Settings):
    """Limits of spending, counted over all runs that share a reply cache.

    Attributes:
        max_tokens: prompt and completion tokens together.
        max_cost: money, in the unit of the prices.
        price_in, price_out: of a million prompt tokens, of a million completion tokens.
    """

    max_tokens: int | None = Field(default=None, ge=1)
    max_cost: float | None = Field(default=None, gt=0)
    price_in: float = Field(default=0.0, ge=0)
    price_out: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _priced(self) -> BudgetSettings:
        if self.max_cost is not None and self.price_in == 0 and self.price_out == 0:
            raise ValueError("max_cost needs price_in and price_out (price of a million tokens)")
        return self


class SynthSettings(Settings):
    """Settings of a synthesis run (clara.md section 2).

    Attributes:
        judge: ``both``: every item must satisfy the lexical judge, then the language model judges the whole draft;
            ``llm`` or ``lexical``: only one of them.
        max_rounds: rounds after which a passage is dropped.
        min_pairs: fewest simple pairs of a record.
        complex_rounds: rounds in which complex pairs are asked for; a passage of one fact has none, and its record goes
            without.
        max_pairs: most pairs of one kind; later ones are cut off.
        passage_words, min_passage_words: as those of ``read_sources``.
    """

    server: ServerSettings
    sampling: SamplingSettings = SamplingSettings()
    checks: CheckSettings = CheckSettings()
    lexical: LexicalSettings = LexicalSettings()
    budget: BudgetSettings = BudgetSettings()
    judge: _JudgeKind = "both"
    max_rounds: int = Field(default=10, ge=1)
    min_pairs: int = Field(default=1, ge=1)
    complex_rounds: int = Field(default=2, ge=0)
    max_pairs: int = Field(default=24, ge=1)
    passage_words: int = Field(default=190, ge=16)
    min_passage_words: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> SynthSettings:
        if self.min_pairs > self.max_pairs:
            raise ValueError(f"min_pairs {self.min_pairs} is more than max_pairs {self.max_pairs}")
        return self
