"""Peak memory of `upscale.py` on pictures up to 100 megapixels of output.

    python benchmarks/memory.py weights/lapsrn-x2.keras

Each row is a process of its own, whose peak resident size is read when it ends. Beside it
stands what the decoded input and output alone need: the rest is the program and one tile.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import save, table

from superres import commands
from superres.datasets.pictures import write_picture
from superres.models.upscaler import load

UPSCALE = str(Path(commands.__file__).parent / "upscale.py")


# A process's peak starts from its parent's size: a small one stands between.
BETWEEN = """
import resource, subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak(arguments):
    """(seconds, peak resident MiB) of a Python process."""
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", BETWEEN, *arguments], stdout=subprocess.PIPE, check=False)
    if result.returncode:
        sys.exit(f"error: {' '.join(arguments)} failed")
    return time.perf_counter() - start, int(result.stdout) / 1024


def main(
    model: str,
    /,
    megapixels: tuple[float, ...] = (1, 10, 100),
    tile: int = 256,
    precision: str = "bfloat16",
):
    """Peak memory of `upscale.py`.

    Args:
        model: The network, a .keras file.
        megapixels: Sizes of the output.
        tile: upscale.py's --tile.
        precision: upscale.py's --precision.
    """
    scale = load(model).scale
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in megapixels:
            side = round((size * 1e6) ** 0.5 / scale)
            lr = np.random.default_rng(0).integers(0, 255, (side // 8 + 1, side // 8 + 1, 3), "uint8")
            write_picture(Path(folder, "lr.png"), lr.repeat(8, 0).repeat(8, 1)[:side, :side])
            seconds, mib = peak([UPSCALE, model, str(Path(folder, "lr.png")), "-o", f"{folder}/{size:g}",
                                 "--tile", str(tile), "--precision", precision])
            pixels = 3 * side**2 * (1 + scale**2) / 2**20
            rows.append({
                "output_megapixels": size, "tile": tile, "precision": precision,
                "seconds": seconds, "peak_mib": mib, "pictures_mib": pixels,
            })
    print(table(rows, {"output_megapixels": "g", "seconds": ".1f", "peak_mib": ".0f", "pictures_mib": ".0f"}))
    save("memory", rows)


if __name__ == "__main__":
    command(main)
