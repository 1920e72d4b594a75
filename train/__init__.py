"""The trainings, a script for each paper."""

import importlib
import sys

PAPERS = ("lapsrn", "pixel_recursive", "srgan", "srmap")


def cli() -> None:
    """`superres-train PAPER ...`: run the paper's script."""
    paper = next(iter(sys.argv[1:]), "")
    if paper not in PAPERS:
        usage = f"usage: superres-train PAPER [PRESET] [--help], PAPER one of {', '.join(PAPERS)}"
        asked = paper in ("-h", "--help")
        print(usage, file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    sys.argv[:2] = [f"superres-train {paper}"]
    importlib.import_module(f"superres.train.{paper}").cli()
