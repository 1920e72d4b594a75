"""Pictures a second of `upscale_beam.py`, with one worker process and with two, against `upscale.py`.

    python benchmarks/beam.py                          after `make beam`
    python benchmarks/beam.py --pictures 10000 --kill  one of the two workers is killed, and the job run again

The pictures are small, so that what Beam adds shows; one in a hundred is broken. Each row is a command of
its own: `seconds` are all that it takes, `pictures_per_second` counts from the first result to the last,
`peak_mib` is the memory of the largest process that upscales.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from common import save, table

from superres import commands
from superres.datasets.pictures import write_picture
from superres.models.lapsrn import lapsrn

ROOT = Path(commands.__file__).parent


def write_pictures(folder, count, size):
    """Pictures of noise; every hundredth is cut off."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for k in range(count):
        write_picture(folder / f"{k:06}.png", rng.integers(0, 256, (size, size, 3), "uint8"))
        if k % 100 == 99:
            os.truncate(folder / f"{k:06}.png", 60)


def processes(group):
    """Those of a process group: dict of number -> (words of the command line, peak memory in MiB)."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(path.name)) == group:
                words = (path / "cmdline").read_text().split("\0")
                status = dict(line.split(":", 1) for line in (path / "status").read_text().splitlines())
                found[int(path.name)] = words, int(status.get("VmHWM", "0").split()[0]) / 1024
        except OSError:  # it has ended
            continue
    return found


def watched(arguments, out, kill_at=None):
    """Run a command of the project's: (seconds, exit status, peak MiB of a process that upscales).

    Args:
        out: Its folder of results.
        kill_at: Kill one worker when so many results are there.
    """
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, *map(str, arguments)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None:
        running = processes(process.pid)
        workers = [number for number, (words, _) in running.items()
                   if "apache_beam.runners.worker.sdk_worker_main" in words]
        peak = max([peak, *(running[number][1] for number in workers or running)])
        if kill_at and workers and len(list(out.glob("*.png"))) > kill_at:
            os.kill(min(workers), signal.SIGKILL)
            kill_at = None
        time.sleep(0.2)
    return time.perf_counter() - start, process.returncode, peak


def report(out):
    """What the job says: dict of outcome -> pictures."""
    with open(out / "report.csv", newline="") as file:
        return {outcome: int(pictures) for outcome, pictures in list(csv.reader(file))[1:]}


def main(model: str = "", pictures: int = 2000, size: int = 32, kill: bool = False):
    """Pictures a second of `upscale_beam.py`.

    Args:
        model: The network; a small LapSRN x2 unless given.
        pictures: How many.
        size: Height and width of each.
        kill: Kill a worker when a third is done, run the job again, and count.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "in", pictures, size)
        if not model:
            keras.utils.set_random_seed(0)
            model = folder / "small.keras"
            lapsrn(2, filters=16, depth=2).save(model)
        beam = [ROOT / "upscale_beam.py", model, folder / "in" / "*.png"]
        several = ["--runner", "DirectRunner", "--direct_running_mode", "multi_processing",
                   "--direct_num_workers"]
        if kill:
            out = folder / "out"
            first = watched([*beam, out, *several, 2], out, kill_at=pictures // 3)
            before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
            second = watched([*beam, out, *several, 2], out)
            after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
            print(f"killed: status {first[1]} after {first[0]:.1f} s, {len(before)} written; again: status "
                  f"{second[1]} after {second[0]:.1f} s, {report(out)}; {len(after)} results, "
                  f"{sum(after[name] != time for name, time in before.items())} of them written twice")
            return
        upscale = [ROOT / "upscale.py", model, folder / "in" / "*.png", "-o"]
        watched([*upscale[:2], folder / "in" / "000000.png", "-o", folder / "first"], folder)  # converts it
        rows = []
        for number, (engine, words, flags) in enumerate([
            ("upscale.py", upscale, []),
            ("upscale_beam.py, one process", beam, []),
            ("upscale_beam.py, 1 worker process", beam, [*several, 1]),
            ("upscale_beam.py, 2 worker processes", beam, [*several, 2]),
        ]):
            out = folder / str(number)
            seconds, _, peak = watched([*words, out, *flags], out)
            times = [path.stat().st_mtime_ns / 1e9 for path in out.glob("*.png")]
            rows.append({"engine": engine, "pictures": len(times), "size": size, "seconds": seconds,
                         "pictures_per_second": len(times) / (max(times) - min(times)), "peak_mib": peak})
        print(table(rows, {"engine": "s", "seconds": ".1f", "pictures_per_second": ".1f", "peak_mib": ".0f"}))
        save("beam", rows)


if __name__ == "__main__":
    command(main)
