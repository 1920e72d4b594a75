"""The log of a run."""

import csv
import math
from collections.abc import Callable
from pathlib import Path

from superres.errors import InputError
from superres.files import whole
from superres.train.folder import ELSEWHERE


class Log:
    """The run's CSV, one row an epoch, which can be cut back to an earlier epoch."""

    def __init__(self, path: Path, key: str, better: Callable[..., float] = max) -> None:
        self.path, self.key, self.better = path, key, better
        self.rows = []

    def rewind(self, epochs: int) -> None:
        """Read the rows of the first `epochs` epochs; of one that was not finished, the row is forgotten.

        Raises:
            InputError: if the file is not the whole log of so many epochs, by which alone the
                best one is known.
        """
        rows = self._read() if self.path.exists() else []
        if not epochs <= len(rows) <= epochs + 1:
            raise InputError(f"{self.path}: has {len(rows)} epochs, but the run's backup {epochs}; "
                             f"restore the two, or {ELSEWHERE}")
        self.rows = rows[:epochs]

    def _read(self):
        rows = []
        try:
            text = self.path.read_text()
            if not text.endswith("\n"):
                raise ValueError("it ends within a line")
            for epoch, row in enumerate(csv.DictReader(text.splitlines()), start=1):
                if None in row or None in row.values():
                    raise ValueError(f"row {epoch} has not a value for every column")
                row = {k: int(v) if v.isdigit() else float(v) for k, v in row.items() if v}
                if row.get("epoch") != epoch or self.key not in row:
                    raise ValueError(f"row {epoch} is not that of epoch {epoch}")
                if not all(map(math.isfinite, row.values())):
                    raise ValueError(f"row {epoch} has values that are not finite")
                rows.append(row)
        except (ValueError, csv.Error) as error:
            raise InputError(f"{self.path}: damaged, {error}; restore it, or {ELSEWHERE}") from None
        return rows

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        with whole(self.path) as part, open(part, "w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(k for row in self.rows for k in row)))
            writer.writeheader()
            writer.writerows(self.rows)

    def stale(self, patience: int) -> bool:
        """Whether so many epochs brought no better validation score; 0: never."""
        values = [row[self.key] for row in self.rows]
        if not patience or not values:
            return False
        return len(values) - 1 - values.index(self.better(values)) >= patience

    def is_best(self) -> bool:
        """Whether the last row is better than every row before it."""
        *before, last = [row[self.key] for row in self.rows]
        if not before:
            return True
        best = self.better(before)
        return last != best and last == self.better(last, best)
