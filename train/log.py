"""The log of a run."""

import csv
import os
from collections.abc import Callable
from pathlib import Path


class Log:
    """The run's CSV, one row an epoch, which can be cut back to an earlier epoch."""

    def __init__(self, path: Path, key: str, better: Callable[..., float] = max) -> None:
        self.path, self.key, self.better = path, key, better
        self.rows = []

    def rewind(self, epochs: int) -> None:
        """Read the rows of the first `epochs` epochs; later ones are forgotten."""
        if self.path.exists():
            with open(self.path, newline="") as file:
                rows = [{k: int(v) if v.isdigit() else float(v) for k, v in row.items() if v}
                        for row in csv.DictReader(file)]
            self.rows = [row for row in rows if row["epoch"] <= epochs]

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        part = self.path.with_suffix(".part")
        with open(part, "w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(k for row in self.rows for k in row)))
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(part, self.path)

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
