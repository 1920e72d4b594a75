"""The trainings, a script for each paper."""

import importlib
import sys

PAPERS = ("lapsrn", "pixel_recursive", "srgan", "srmap")


def cli() -> None:
    """`superres-train PAPER ...`: run the paper's script."""
    paper = next(iter(sys.argv[1:]), "")
    if paper not in PAPERS:
        sys.exit(f"usage: superres-train PAPER [PRESET] [--help], PAPER one of {', '.join(PAPERS)}")
    sys.argv[:2] = [f"superres-train {paper}"]
    importlib.import_module(f"superres.train.{paper}").cli()
