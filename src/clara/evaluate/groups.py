"""Which results are compared with each other, and what their groups are called.

A name says the hash of the data file and ``k`` only where groups would else be called the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from clara.errors import InputError
from clara.evaluate.contest import Exam
from clara.evaluate.system_result import Given, Setting, Subject, SystemResult

_SHOWN_HASH = 8


@dataclass(frozen=True, slots=True)
class Group:
    """What results have in common that are compared.

    Attributes:
        data: the data set's name.
        data_sha256: of its file.
        setting: ``oracle`` or ``normal``.
        given: what systems saw of the candidates.
        k: documents in the prompt.
    """

    data: str
    data_sha256: str
    setting: Setting
    given: Given
    k: int

    @classmethod
    def of(cls, about: Subject | Exam) -> Group:
        """The group that a result, or what will be asked, belongs to."""
        return cls(about.data, about.data_sha256, about.setting, about.given, about.k)


Grouped: TypeAlias = Group | Subject | Exam
"""What has the attributes of a group."""


class Names:
    """What groups are called among each other.

    Args:
        among: all that stand in one report.
    """

    def __init__(self, among: Iterable[Grouped]) -> None:
        self._files: dict[tuple[str, Setting], set[str]] = {}
        self._ks: dict[tuple[Setting, Given], set[int]] = {}
        for one in among:
            self._files.setdefault((one.data, one.setting), set()).add(one.data_sha256)
            self._ks.setdefault((one.setting, one.given), set()).add(one.k)

    def data(self, group: Grouped) -> str:
        """The data set, with the head of its file's hash where another file of the setting has the same name."""
        if len(self._files[group.data, group.setting]) == 1:
            return group.data
        return f"{group.data} ({group.data_sha256[:_SHOWN_HASH]})"

    def k(self, group: Grouped) -> str:
        """``, k 5`` where results of the same setting, given the same, differ in it; else nothing."""
        return f", k {group.k}" if len(self._ks[group.setting, group.given]) > 1 else ""


def groups(results: Sequence[SystemResult]) -> dict[Group, list[SystemResult]]:
    """Results by group, in order of first appearance.

    Raises:
        InputError: a group holds two results of one system, so that neither could be told from the other.
    """
    found: dict[Group, list[SystemResult]] = {}
    for result in results:
        subject = result.subject
        own = found.setdefault(Group.of(subject), [])
        if any(other.subject.label == subject.label for other in own):
            raise InputError(
                f"two results of {subject.label} on {subject.data} {subject.setting}, given {subject.given}, "
                f"k {subject.k}: a report holds one"
            )
        own.append(result)
    return found
