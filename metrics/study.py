"""Human studies: what one holds, what its raters answered, and how often they were fooled."""

import csv
import json
import math
import random
import re
import statistics
import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from matplotlib.figure import Figure

from superres.datasets.pictures import read_picture
from superres.errors import InputError
from superres.metrics.image import finite_psnr, ms_ssim, ssim

SIDES = ("left", "right")
KINDS = ("practice", "golden", "asked")
COLUMNS = ("rater", "question", "picture", "method", "truth", "answer", "fooled", "answered_ms", "shown_ms",
           "kind")


class Question(NamedTuple):
    """What a rater is asked: the picture, its two files, left and right, and which side is true."""

    picture: str
    method: str
    truth: str
    kind: str
    files: tuple[str, str]


class Study(NamedTuple):
    """What `prepare` has written.

    Attributes:
        seed: Of the raters' orders.
        methods: Names.
        pictures: Dicts of `name`, `kind` (of KINDS), `true` (a file) and `made` (method -> file).
    """

    folder: Path
    seed: int
    methods: list[str]
    pictures: list[dict[str, Any]]

    @classmethod
    def opened(cls, folder: Path | str) -> Self:
        """The study of a folder.

        Raises:
            InputError: if there is none.
        """
        try:
            return cls(Path(folder), **json.loads(Path(folder, "study.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{folder}: no study, as `study.py prepare` makes ({error})") from None

    def questions(self, rater: str) -> list[Question]:
        """All that a rater is asked, in order: a function of the study's seed and the rater's number.

        Methods and sides take turns over the shuffled pictures, so that no method, no side and no
        method's side has more than one question more than another.
        """
        rng = random.Random(f"{self.seed} {rater}")
        methods, sides = rng.sample(self.methods, len(self.methods)), rng.sample(SIDES, 2)
        plan = {}
        for kind in KINDS:
            some = [picture for picture in self.pictures if picture["kind"] == kind]
            plan[kind] = []
            for i, picture in enumerate(rng.sample(some, len(some))):
                turn, at = divmod(i, len(methods))
                method = methods[at] if methods[at] in picture["made"] else next(iter(picture["made"]))
                truth = sides[(turn + at) % 2]
                files = (picture["true"], picture["made"][method])
                plan[kind].append(Question(picture["name"], method, truth, kind,
                                           files if truth == "left" else files[::-1]))
        mixed = plan["golden"] + plan["asked"]
        return plan["practice"] + rng.sample(mixed, len(mixed))

    def read(self, file: str) -> np.ndarray:
        """A picture's pixels, (H, W, C) uint8."""
        return read_picture(self.folder / "pictures" / file).pixels

    def beside(self, files: tuple[str, str]) -> np.ndarray:
        """Two pictures side by side, (H, 2W, 3) uint8."""
        both = np.concatenate([self.read(file) for file in files], 1)
        return np.repeat(both, 3 // both.shape[-1], -1)


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The answers of a file, each once, numbers as int; damaged lines are left out with a warning."""
    if not path.exists():
        return []
    rows, seen = [], set()
    lines = path.read_bytes().decode(errors="surrogateescape").split("\n")
    for number, line in enumerate(lines[1:], start=2):
        if number == len(lines) and not line:
            break
        # No name has a line feed. A last line without one was being written when the machine stopped.
        try:
            values = next(csv.reader([line]), []) if number < len(lines) else []
        except csv.Error:
            values = []
        row = dict(zip(COLUMNS, values, strict=False))
        numbers = ("question", "fooled", "answered_ms", "shown_ms")
        if (len(values) != len(COLUMNS) or not all(re.fullmatch("[0-9]{1,9}", row[key]) for key in numbers)
                or row["kind"] not in KINDS or not {row["truth"], row["answer"]} <= set(SIDES)
                or row["fooled"] != str(int(row["truth"] != row["answer"]))):
            warnings.warn(f"left out: line {number} of {path.name} is damaged", stacklevel=2)
            continue
        row |= {key: int(row[key]) for key in numbers}
        if (row["rater"], row["question"]) not in seen:
            seen.add((row["rater"], row["question"]))
            rows.append(row)
    return rows


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share, which is right for few trials and shares near 0, too.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share, shrink = successes / trials, 1 + z**2 / trials
    centre = share + z**2 / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(0.0, (centre - half) / shrink), min(1.0, (centre + half) / shrink)


def careless(answers: Iterable[dict[str, Any]], share: float) -> set[str]:
    """The raters who failed more than this share of the golden questions that they answered."""
    golden = defaultdict(list)
    for row in answers:
        if row["kind"] == "golden":
            golden[row["rater"]].append(row["fooled"])
    return {rater for rater, failed in golden.items() if sum(failed) > share * len(failed)}


def measured(study: Study, answers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method: PSNR, SSIM and MS-SSIM over its pictures, and how often it fooled whom."""
    by_method = defaultdict(list)
    for row in answers:
        by_method[row["method"]].append(row["fooled"])
    rows = []
    for method in study.methods:
        fooled, count = sum(by_method[method]), len(by_method[method])
        pairs = [(study.read(picture["true"]), study.read(picture["made"][method]))
                 for picture in study.pictures if picture["kind"] == "asked"]
        low, high = wilson(fooled, count) if count else (0.0, 1.0)
        rows.append({
            "method": method,
            **{measure.__name__.removeprefix("finite_"): float(np.mean([measure(*pair) for pair in pairs]))
               for measure in (finite_psnr, ssim, ms_ssim)},
            "answers": count, "fooled": fooled, "share": fooled / count if count else math.nan,
            "low": low, "high": high})
    return rows


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The rows of `measured` as the paper's Table 1 has them, with intervals."""
    lines = ["| method | PSNR | SSIM | MS-SSIM | % fooled | 95 % interval | answers |", "|---" * 7 + "|"]
    for row in rows:
        share = f"{100 * row['share']:.1f} | {100 * row['low']:.1f} to {100 * row['high']:.1f}"
        lines.append(f"| {row['method']} | {row['psnr']:.2f} | {row['ssim']:.3f} | {row['ms_ssim']:.3f} | "
                     f"{share if row['answers'] else '- | -'} | {row['answers']} |")
    return "\n".join(lines)


def shares_figure(rows: list[dict[str, Any]]) -> Figure:
    """Each method's share with its interval."""
    rows = [row for row in rows if row["answers"]]
    figure = Figure(figsize=(7, 1.4 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    share, low, high = (100 * np.array([row[key] for row in rows]) for key in ("share", "low", "high"))
    sides = np.maximum(0, (share - low, high - share))  # a share of 0 or 1 may be an ulp outside
    axes.errorbar(share, range(len(rows)), xerr=sides, fmt="o", capsize=4)
    axes.axvline(50, color="grey", linestyle=":")
    axes.text(50, -0.85, "guessing ", ha="right", va="center", color="grey")
    axes.set_yticks(range(len(rows)), [row["method"] for row in rows], parse_math=False)
    axes.set(xlim=(0, max(60, high.max() + 2)), ylim=(len(rows) - 0.5, -1.1),
             xlabel="% fooled, with 95 % intervals")
    return figure


def pictures_figure(study: Study, answers: Iterable[dict[str, Any]], count: int = 4) -> Figure:
    """Of each method, the pictures that fooled most and least, the true one left of the made one."""
    fooled = defaultdict(list)
    for row in answers:
        fooled[row["method"], row["picture"]].append(row["fooled"])
    strips = []
    for method in study.methods:
        asked = [(votes, (picture["true"], picture["made"][method])) for picture in study.pictures
                 if (votes := fooled.get((method, picture["name"])))]
        for word, sign in (("most", -1), ("least", 1)):  # of equal shares, that of more answers
            asked.sort(key=lambda entry: (sign * np.mean(entry[0]), -len(entry[0])))
            if asked:
                strips.append((f"{method} fooled {word}: true, made", asked[:count]))
    figure = Figure(figsize=(2.6 * count, 1.75 * len(strips)), layout="constrained")
    for axes, (title, some) in zip(figure.subplots(len(strips), count, squeeze=False), strips, strict=True):
        axes[0].set_title(title, loc="left", fontsize=9, parse_math=False)
        for at, (votes, files) in zip(axes, some, strict=False):
            at.imshow(study.beside(files), interpolation="nearest")
            at.set_xlabel(f"{sum(votes)} of {len(votes)}", fontsize=8)
        for at in axes:
            at.set(xticks=[], yticks=[], frame_on=False)
    return figure
