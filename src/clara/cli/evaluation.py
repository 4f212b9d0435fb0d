"""What ``clara eval`` and ``clara compare`` share: their options, where candidates come from, settings of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clara.cli.options import ModelChoice
from clara.cli.session import cache_folder
from clara.errors import InputError

if TYPE_CHECKING:
    from clara.evaluate.first_stage import FirstStage
    from clara.evaluate.provenance import Provenance
    from clara.evaluate.questions import Candidacy
    from clara.evaluate.rankers import TextEncoder
    from clara.evaluate.system import SystemSettings
    from clara.metrics import ScoringName
    from clara.model import ClaraModel

SHOWN_REASONS = 5
_OF_SEARCH = {"first_stage": "--first-stage", "candidates": "--candidates"}
_SEARCH_MODES: dict[str, Literal["latent", "text", "hybrid"]] = {"bm25": "text", "dense": "latent", "hybrid": "hybrid"}
_READER_DTYPES: dict[str, Literal["auto", "bf16", "fp32"]] = {"auto": "auto", "bf16": "bf16", "fp32": "fp32"}

DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="NAME|FILE",
        help="Questions: a file of our own records or of a public format, a name (nq, hotpotqa, musique, 2wiki, "
        "squad), or a BEIR folder. Several systems may be given several.",
    ),
]
SettingOption = Annotated[
    Literal["oracle", "normal"] | None,
    typer.Option(
        "--setting", help="The gold documents are surely among the candidates (oracle, default), or as retrieved."
    ),
]
SystemOption = Annotated[
    list[str] | None, typer.Option("--system", metavar="NAME", help="System to compare; may be given again.")
]
FolderOption = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=DIR", help="Folder that a system needs; may be given again."),
]
RecipeOption = Annotated[
    Path | None, typer.Option("--recipe", help="A grid of data sets, settings, rates and systems (TOML).")
]
RatesOption = Annotated[
    list[int] | None,
    typer.Option("--rate", min=1, help="Compression rate; the model's by default. Of systems it may be given again."),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="Only the first questions; of a recipe at most so many of each block."),
]
PassagesOption = Annotated[int, typer.Option("--k", min=1, help="Documents in the prompt with --given candidates.")]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Questions answered together.")]
LengthOption = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of bootstrap and permutation tests.")]


@dataclass(frozen=True, slots=True)
class PoolChoice:
    """Where the user said that candidates come from."""

    data_dir: Annotated[
        Path | None, typer.Option(envvar="CLARA_DATA", help="Folder of the named data sets: NAME.SETTING.jsonl.gz.")
    ] = None
    corpus: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|pool",
            help="Where candidates come from: a store, a BEIR folder, a passage file, or the file's own pooled.",
        ),
    ] = None
    first_stage: Annotated[Literal["bm25", "dense", "hybrid"], typer.Option(help="How a corpus is searched.")] = "bm25"
    candidates: Annotated[int, typer.Option(min=1, help="Documents a question from a corpus.")] = 20


@dataclass(frozen=True, slots=True)
class ScoreChoice:
    """How the user said that answers are scored."""

    scoring: Annotated[
        Literal["squad", "hotpotqa", "triviaqa", "paper", "official"],
        typer.Option(
            help="Whose rule answers are scored by: SQuAD 2.0, HotpotQA (yes and no count only whole), TriviaQA, the "
            "CLaRa paper's release, or official: that of each question's data set."
        ),
    ] = "squad"
    yes_no: Annotated[bool, typer.Option("--yes-no", hidden=True, help="The same as --scoring hotpotqa.")] = False
    timed: Annotated[int, typer.Option(min=0, help="Questions of each run that are timed to the first token.")] = 8
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Ask again what gave an error in an earlier run.")
    ] = False

    @property
    def rule(self) -> ScoringName:
        """The rule of scoring."""
        return "hotpotqa" if self.yes_no else self.scoring


@dataclass(frozen=True, slots=True)
class EvalChoice:
    """What the user asked for; the fields are the options of the same names.

    Attributes:
        chosen: names of the options that the user gave, as against defaults of the same value.
    """

    chosen: frozenset[str]
    data: tuple[str, ...]
    setting: Literal["oracle", "normal"]
    systems: tuple[str, ...]
    rates: tuple[int, ...]
    given: Literal["gold", "candidates"]
    limit: int | None
    k: int
    batch_size: int
    max_new_tokens: int
    options: Mapping[str, Path]
    pool: PoolChoice
    scores: ScoreChoice
    recipe: Path | None
    seed: int
    out: Path | None


def given_options(ctx: typer.Context, *sources: str) -> dict[str, str]:
    """Options that come from these of click's sources, as they are typed, by name of their parameter."""
    return {
        option.name or "": option.opts[0]
        for option in ctx.command.params
        if str(ctx.get_parameter_source(option.name or "")).endswith(sources)
    }


def refuse_foreign(ctx: typer.Context, allowed: frozenset[str], what: str) -> None:
    """Refuse what was typed and would not be looked at: a number must not depend on an option that was dropped.

    Raises:
        InputError: names all of it.
    """
    foreign = [option for name, option in given_options(ctx, "COMMANDLINE").items() if name not in allowed]
    if foreign:
        raise InputError(f"{', '.join(foreign)} has no meaning {what}; leave it out")


def folders(given: list[str] | None, reader: str | None) -> dict[str, Path]:
    """The folders of single systems, by name."""
    found: dict[str, Path] = {}
    for text in given or ():
        name, sign, folder = text.partition("=")
        if not sign or not name or not folder:
            raise InputError(f"--option {text!r} must be NAME=DIR, for example reader=runs/reader/reader")
        found[name] = Path(folder).expanduser()
    if reader in {"generator", "base"}:
        raise InputError(f"--reader {reader} is for a single model; with --system it is the folder of a reader")
    if reader is not None:
        found["reader"] = Path(reader).expanduser()
    return found


def system_settings(
    asked: EvalChoice, choice: ModelChoice, model: ClaraModel, *, quoted: bool = False
) -> SystemSettings:
    """Settings of the systems of a run, as far as the options say them."""
    from clara.evaluate.system import SystemSettings  # noqa: PLC0415

    return SystemSettings(
        k=asked.k,
        rate=asked.rates[0] if len(asked.rates) == 1 else None,
        given=asked.given,
        max_new_tokens=asked.max_new_tokens,
        batch_size=asked.batch_size,
        model=model,
        weights_cache=cache_folder(choice.cache),
        options={**({"base": Path(choice.base)} if choice.base else {}), **asked.options},
        device=choice.device,
        reader_dtype=_READER_DTYPES.get(choice.dtype, "auto"),
        timed=asked.scores.timed,
        quoted=quoted,
    )


def origin_of(model: ClaraModel, device: str, *, seed: int = 0, checkpoint: str | None = None) -> Provenance:
    """The provenance of a run of this command; without ``checkpoint``, on all of the model's weights."""
    from clara.evaluate.provenance import provenance  # noqa: PLC0415
    from clara.evaluate.weights import whole_identity  # noqa: PLC0415

    weights = whole_identity(model) if checkpoint is None else checkpoint
    return provenance(["clara", *sys.argv[1:]], model=model.name, checkpoint=weights, seed=seed, device=device)


def candidacy(asked: EvalChoice, settings: SystemSettings, model: ClaraModel, opened: ExitStack) -> Candidacy:
    """Where candidates come from; a store stays open as long as ``opened``."""
    from clara.evaluate.questions import Candidacy  # noqa: PLC0415

    stage: FirstStage | None = None
    encoder: TextEncoder | None = None
    if asked.pool.corpus is not None and (Path(asked.pool.corpus) / "store.json").is_file():
        stage = opened.enter_context(_store(Path(asked.pool.corpus), asked.pool.first_stage, model))
    elif asked.pool.first_stage != "bm25":
        from clara.evaluate.rankers import minilm  # noqa: PLC0415

        encoder = minilm(settings)
    return Candidacy(
        corpus=asked.pool.corpus,
        stage=stage,
        first_stage=asked.pool.first_stage,
        candidates=asked.pool.candidates,
        encoder=encoder,
        typed=tuple(text for name, text in _OF_SEARCH.items() if name in asked.chosen),
    )


@contextmanager
def _store(path: Path, first_stage: Literal["bm25", "dense", "hybrid"], model: ClaraModel) -> Iterator[FirstStage]:
    """A store as first stage, with the model under test where it is searched by memory."""
    from clara.cli.session import without_model  # noqa: PLC0415
    from clara.evaluate.first_stage import StoreSearch  # noqa: PLC0415
    from clara.pipeline import Clara  # noqa: PLC0415

    mode = _SEARCH_MODES[first_stage]
    with without_model(path) if first_stage == "bm25" else Clara.open(path, model=model, create=False) as rag:
        label = f"{path} ({rag.store.count()} passages)"
        yield StoreSearch(lambda question, k: rag.search(question, k, mode=mode), first_stage, label=label)
