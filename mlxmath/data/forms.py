"""Rows of a dataset that are not in its form but in another known one: each is read for what it is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxmath.data.columns import Columns, find_columns
from mlxmath.data.gold import answer_of
from mlxmath.data.names import WORKED, canonical
from mlxmath.data.preferences import find_pair_columns
from mlxmath.data.values import SkippedRowError
from mlxmath.errors import InputError

BARE_ANSWER = "a bare answer, where other rows have a worked solution"


@dataclass
class Forms:
    """The columns of rows that lack a dataset's own."""

    main: Columns
    """The dataset's."""
    where: str
    """The dataset's name."""
    solutions_required: bool
    _found: dict[tuple[str, ...], Columns | None] = field(default_factory=dict)

    def of(self, row: Mapping[str, Any]) -> Columns | None:
        """The columns of a row that is not in the dataset's form; None if it is in no other known one.

        Columns without a value do not count.

        Raises:
            SkippedRowError: it has an answer where the other rows have a worked solution.
        """
        found = self._own(row)
        if found is None or found.main == self.main.main:
            return None
        if self._is_worked(self.main) and not self._is_worked(found) and found.solution is not None:
            value = row[found.solution]
            if isinstance(value, int | float) or (isinstance(value, str) and answer_of(value) == value):
                raise SkippedRowError(BARE_ANSWER)
        return found

    def with_answer(self, row: Mapping[str, Any]) -> Columns | None:
        """The columns of a row in the dataset's form that has its answer in another column; None if it has not."""
        found = self._own(row)
        is_other = found is not None and found.main == self.main.main and found.answer not in (None, self.main.answer)
        return found if is_other else None

    def _own(self, row: Mapping[str, Any]) -> Columns | None:
        present = tuple(name for name, value in row.items() if not _is_empty(value))
        if present not in self._found:
            try:
                self._found[present] = self._find(present)
            except InputError:
                self._found[present] = None
        return self._found[present]

    def _find(self, names: Sequence[str]) -> Columns:
        if self.main.rejected:
            return find_pair_columns(names, where=self.where)
        return find_columns(names, where=self.where, solution_required=self.solutions_required)

    def named(self, forms: Sequence[Sequence[str]]) -> set[str]:
        """The columns that are read of rows with these columns, where they lack the dataset's."""
        used: set[str] = set()
        for names in forms:
            if not set(self.main.main) <= set(names):
                try:
                    used.update(self._find(names).used)
                except InputError:
                    continue
        return used

    @staticmethod
    def _is_worked(columns: Columns) -> bool:
        return columns.solution is not None and canonical(columns.solution) in WORKED


def _is_empty(value: Any) -> bool:
    """Whether a cell has no value: null, NaN, an empty text or list."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value == [] or value == {} or (isinstance(value, float) and math.isnan(value))
