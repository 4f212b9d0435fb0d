"""Which passages a client wants: OpenAI's ``filters`` and ``ranking_options``, as a search's and as a tool's fields.

A field that cannot be heeded is refused: a client that filters takes what comes for filtered.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from clara.answering import PassageFilter
from clara.ingest import location_of
from clara.records import Hit, SearchMode
from clara.serve.faults import ApiError
from clara.serve.library import ServedStore, document_id, filename_of

_Attribute = str | int | None
_Text = Literal["file_id", "filename", "title", "heading"]
_Number = Literal["page", "start", "end"]

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
    "in": lambda found, wanted: found in wanted,
    "nin": lambda found, wanted: found not in wanted,
}
_OF_LISTS = frozenset({"in", "nin"})
_WITHOUT = frozenset({"ne", "nin"})  # what an attribute that a passage does not have fits


class Filter(BaseModel):
    """A comparison of an attribute with a value, or several filters joined.

    Attributes:
        type: how it compares, or joins.
        key: the attribute; of a comparison.
        value: a text or a number, as the attribute is; for ``in`` and ``nin`` a list of them.
        filters: what ``and`` and ``or`` join.
    """

    model_config = ConfigDict(extra="forbid")

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "and", "or"]
    key: _Text | _Number | None = None
    value: Any = None
    filters: list[Filter] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Filter:
        if self.type not in _COMPARISONS:
            if self.filters is None or self.key is not None:
                raise _wrong(f"'{self.type}' joins a list 'filters', and has no key of its own")
            return self
        if self.key is None or self.filters is not None:
            raise _wrong(f"'{self.type}' compares a 'key' with a 'value', and joins no filters")
        kinds, said = ((str,), "text") if self.key in get_args(_Text) else ((int, float), "number")
        many = self.type in _OF_LISTS
        values = self.value if many else [self.value]
        if not isinstance(values, list) or not all(type(value) in kinds for value in values):  # True is no number
            raise _wrong(f"'{self.type}' compares {self.key!r} with a {f'list of {said}s' if many else said}")
        return self

    def fits(self, attributes: Mapping[str, _Attribute]) -> bool | None:
        """Whether attributes fit; None if that hangs on one that is not among them."""
        if self.filters is not None:
            told, decides = [each.fits(attributes) for each in self.filters], self.type == "or"
            return decides if decides in told else None if None in told else not decides
        if self.key is None or self.key not in attributes:
            return None
        found = attributes[self.key]
        return self.type in _WITHOUT if found is None else _COMPARISONS[self.type](found, self.value)


class RankingOptions(BaseModel):
    """How results are ranked and cut.

    Attributes:
        ranker: ``auto``: as measured best; ``none``: what is found is not put in another order.
        score_threshold: results of a lower score are left out.
    """

    model_config = ConfigDict(extra="forbid")

    ranker: Literal["auto", "none"] | None = None
    score_threshold: float | None = None


class FilterFields(BaseModel):
    """Fields that a search and the tool ``file_search`` share.

    Attributes:
        max_num_results: passages to find.
    """

    filters: Filter | None = None
    max_num_results: int | None = None
    ranking_options: RankingOptions | None = None

    def passages(self, store: ServedStore, mode: SearchMode, *, place: str = "") -> PassageFilter | None:
        """The passages wanted; None for all. ``place`` stands before the name of a field that is refused.

        Raises:
            ApiError: a threshold where scores say nothing by themselves.
        """
        least = self.ranking_options.score_threshold if self.ranking_options is not None else None
        if not least:  # OpenAI's scores are at least 0, and clients send 0 for no threshold; ours may be negative
            least = -math.inf
        elif mode == "hybrid":
            message = "scores of hybrid search come from ranks alone; set clara.mode to latent or text, or no threshold"
            raise ApiError(400, "invalid_value", message, param=f"{place}ranking_options.score_threshold")
        chosen = self.filters
        if chosen is None:
            return None if least == -math.inf else PassageFilter(least_score=least)
        return PassageFilter(
            lambda uri: chosen.fits(_file(store, uri)) is not False,
            lambda hit: bool(chosen.fits(_attributes(store, hit))),
            least,
        )


def attributes_of(hit: Hit) -> dict[str, str | int]:
    """Attributes of a passage that is found, as a client sees them; its file's id and name stand beside them."""
    where = location_of(hit.metadata, hit.passage.start)
    told = {"title": hit.passage.title, "heading": where.heading, "page": where.page}
    place = {"start": hit.passage.start, "end": hit.passage.end}
    return place | {name: value for name, value in told.items() if value is not None and value != ""}


def _file(store: ServedStore, uri: str) -> dict[str, _Attribute]:
    return {"file_id": document_id(store.name, uri), "filename": filename_of(uri)}


def _attributes(store: ServedStore, hit: Hit) -> dict[str, _Attribute]:
    """All of them, None for those that the passage does not have."""
    return {"title": None, "heading": None, "page": None, **attributes_of(hit), **_file(store, hit.passage.document)}


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("filter", "{said}", {"said": message})
