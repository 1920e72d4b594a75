"""Load on a server of an exported network: pictures of mixed sizes, bad and enormous ones, many clients.

    python benchmarks/serving.py lapsrn-x2 http://localhost:8501                 TensorFlow Serving, over REST
    python benchmarks/serving.py lapsrn-x2 http://localhost:3000 --bento-server --pid PID

BentoML's server, with adaptive batching, in an environment with benchmarks/requirements-serving.txt:

    python export.py lapsrn-x2 exported --version 1
    cd benchmarks && SAVED_MODEL=../exported/lapsrn-x2/1 bentoml serve bento.py:Upscaler --port 3000

Every answer is compared with what `upscale.py` makes of the file: a picture to one level of 255, a bad one
is a status. Rows: one client, then twelve; `milliseconds` are of good pictures, `peak_mib` is the memory
of the process `--pid` and those that it started.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import base64
import collections
import io
import json
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from common import save, table
from PIL import Image

from superres.datasets import catalogue
from superres.models.engine import load

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
import rest


def bento(url, model, pictures):
    """`rest.upscale` of the service in bento.py."""
    body = json.dumps({"pictures": [base64.b64encode(picture).decode() for picture in pictures]}).encode()
    request = urllib.request.Request(f"{url}/upscale", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return [(base64.b64decode(file), status) for file, status in json.load(response)]


def encoded(picture, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    return file.getvalue()


def good_pictures(count, largest, rng):
    """Cuts of photographs, PNG and JPEG, of every size from 1 x 1."""
    photos = [example.hr for example in catalogue.load("photos", "test") if example.hr.shape[-1] == 3]
    for k in range(count):
        hr = photos[k % len(photos)]
        height, width = (int(rng.integers(1, min(largest, size) + 1)) for size in hr.shape[:2])
        y, x = int(rng.integers(hr.shape[0] - height + 1)), int(rng.integers(hr.shape[1] - width + 1))
        yield encoded(hr[y : y + height, x : x + width], ("PNG", "JPEG")[k % 2])


def bad_pictures(good):
    """Kind -> file: damaged, of other kinds, and those that say, or are, too large."""
    png = good[0]
    return {"empty": b"", "text": b"no picture", "truncated PNG": png[: len(png) // 2],
            "truncated JPEG": good[1][: len(good[1]) // 2], "GIF": encoded(np.zeros((8, 8), "uint8"), "GIF"),
            "30 megapixels": encoded(np.zeros((5000, 6000), "uint8")),
            "3,000 megapixels": png[:16] + (60000).to_bytes(4, "big") + (50000).to_bytes(4, "big") + png[24:]}


def memory(pid):
    """MiB, at most, of a process and those that it started."""
    status = Path(f"/proc/{pid}/status").read_text()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024 + sum(map(memory, children))


def main(model: str, url: str, /, bento_server: bool = False, pid: int | None = None, clients: int = 12,
         pictures: int = 40, largest: int = 160, requests: int = 600):
    """Load on a server of an exported network.

    Args:
        model: The network, at the server by the same name.
        url: Where the server is.
        bento_server: It is the one in bento.py, not TensorFlow Serving.
        pid: Its process, on this machine.
        clients: How many ask at once.
        pictures: How many different good ones.
        largest: Of their heights and widths.
        requests: How many with one client, and as many with all; one in five is bad.
    """
    rng = np.random.default_rng(0)
    network = load(model)
    good = list(good_pictures(pictures, largest, rng))
    expected = [network.upscale(np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))) for file in good]
    bad = list(bad_pictures(good).items())
    ask = bento if bento_server else rest.upscale

    def one(k):
        """(seconds, what came of it, whether a picture was wanted)."""
        wanted = k % 5 > 0
        number = k // 5 * 4 + k % 5 - 1 if wanted else k // 5
        kind, file = ("good", good[number % len(good)]) if wanted else bad[number % len(bad)]
        start = time.perf_counter()
        try:
            ((sr, status),) = ask(url, model.rpartition("/")[2].removesuffix(".keras"), [file])
        except (OSError, RuntimeError) as error:
            return time.perf_counter() - start, f"{kind}: {type(error).__name__} {error}"[:100], wanted
        seconds = time.perf_counter() - start
        if not wanted:
            return seconds, f"{kind}: {status}" if not sr and status else f"{kind}: WRONG, no status", False
        if status:
            return seconds, f"good: WRONG, {status}", True
        sr, of_upscale = np.asarray(Image.open(io.BytesIO(sr))).astype(int), expected[number % len(good)]
        same = sr.shape == of_upscale.shape and np.abs(sr - of_upscale).max() <= 1
        return seconds, "good: as upscale.py's" if same else "good: WRONG picture", True

    rows = []
    list(map(one, range(20)))  # warm
    for count in (1, clients):
        start = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            answers = list(pool.map(one, range(requests)))
        seconds = time.perf_counter() - start
        times = [1000 * s for s, _, wanted in answers if wanted]
        row = {"clients": count, "requests_per_second": requests / seconds, "wrong": sum(
            "WRONG" in outcome for _, outcome, _ in answers)}
        row |= {f"milliseconds_{p}": float(np.percentile(times, p)) for p in (50, 95, 99)}
        rows.append({**row, "peak_mib": memory(pid) if pid else None,
                     "outcomes": collections.Counter(outcome for _, outcome, _ in answers)})
    print(table(rows, {"clients": "d", "requests_per_second": ".1f", "milliseconds_50": ".0f",
                       "milliseconds_95": ".0f", "milliseconds_99": ".0f", "peak_mib": ".0f", "wrong": "d"}))
    for outcome, number in sorted(sum((row["outcomes"] for row in rows), collections.Counter()).items()):
        print(f"{number:6}  {outcome}")
    save("serving", rows, server="bentoml" if bento_server else "tensorflow serving", model=model)


if __name__ == "__main__":
    command(main)
