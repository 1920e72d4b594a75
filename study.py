"""Ask people which of two pictures a camera took, and count how often a network fools them.

    python study.py prepare pixel_recursive-celeba --data FACES --crop face --held-out 10 -o STUDY
    python study.py serve STUDY
    python study.py report STUDY

A question shows a true picture beside what a network, or bicubic interpolation, makes of its LR, for
one second; the rater says which one is true. Who takes the made one is fooled. Pictures that cannot be
told from true ones fool 50 %, as guessing does. Source: Dahl, Norouzi and Shlens, "Pixel Recursive Super
Resolution", arXiv 1702.00783, Table 1.

`serve` is a web page. Each rater sees every picture once, beside one method's, in an order, with methods
and on sides of their own, as many of each. Among them are golden questions, a picture beside a mosaic of
it, which tell who does not look. STUDY/answers.csv has a line for every answer: the rater (a random number,
and nothing else about them), the question's number, the picture, the method, the true side, the side that was
chosen, whether that fooled them, milliseconds from the end of the pair to the answer, milliseconds that the
pair was shown, and the kind of question: practice, golden or asked.
"""

import csv
import io
import json
import math
import os
import re
import shutil
import signal
import statistics
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from superres.command_line import command
from superres.datasets.catalogue import load
from superres.datasets.degradations import degraded, imresize
from superres.datasets.pictures import write_picture
from superres.datasets.thumbnails import Crop, Thumbnails
from superres.errors import InputError, check_range
from superres.files import printable, whole, write_figure
from superres.metrics.study import (
    COLUMNS,
    SIDES,
    Question,
    Study,
    as_markdown,
    careless,
    measured,
    pictures_figure,
    read_answers,
    shares_figure,
)
from superres.models.engine import load as load_network
from superres.models.images import TILE, ImageUpscaler

PRACTICE = 3  # questions that come first, with an answer to each
Folder = Annotated[str, tyro.conf.arg(metavar="STUDY")]
Output = Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")]


# ------------------------------------------------------------------ prepare


def middle(picture: np.ndarray, size: int) -> np.ndarray:
    """The middle square of (H, W, C), of `size` pixels or the shorter side if that is less."""
    height, width = picture.shape[:2]
    size = min(size, height, width)
    top, left = (height - size) // 2, (width - size) // 2
    return picture[top : top + size, left : left + size]


def mosaic(picture: np.ndarray, cells: int = 4) -> np.ndarray:
    """A square picture (S, S, C) shrunk to a few pixels and enlarged by nearest neighbour."""
    index = np.arange(len(picture)) * cells // len(picture)
    return imresize(picture, cells / len(picture))[index][:, index]


def made_pictures(networks: dict[str, ImageUpscaler], temperatures: Sequence[float], data: str, limit: int,
                  held_out: int | None, crop: Crop | None, size: int, seed: int
                  ) -> tuple[list[str], Sequence[np.ndarray], dict[str, Sequence[np.ndarray]]]:
    """(names, true pictures, method -> made pictures), all squares, uint8.

    Each picture is drawn once at each temperature, with noise of its own.
    """
    def kind(network):
        return network.scale, network.lr_size, network.lr_size and network.channels

    first = next(iter(networks.values()))
    methods = {"bicubic": (None, {})}
    for name, network in networks.items():
        if kind(network) != kind(first):
            raise InputError("networks of one study have one scale and LR of one kind, and "
                             f"{name} has others than {next(iter(networks))}")
        network.refuse("of one size", crop=crop, held_out=held_out)
        for temperature in temperatures if network.draws_samples else [None]:
            network.check(temperature=temperature)
            title = name if temperature is None else f"{name} at {temperature:g}"
            methods[title] = (network, {} if temperature is None else {"temperature": temperature})
    source = load(data, "test", limit, held_out)
    if first.lr_size:
        pictures = Thumbnails(source, first.lr_size, first.scale, channels=first.channels,
                              crop=crop or "centre")
        return pictures.names, pictures.hr, {
            title: network.sample(pictures.lr, seed=seed, **noise)[0] if network else
            np.stack([imresize(lr, first.scale) for lr in pictures.lr])
            for title, (network, noise) in methods.items()}
    names, true, made = [], [], {title: [] for title in methods}
    for name, lr, hr in tqdm(degraded(source, first.scale, "bicubic"), unit="picture", disable=None):
        for title, (network, noise) in methods.items():
            draw = {**noise, "seed": seed + len(names)} if noise else {}
            sr = network.upscale(lr, tile=TILE, **draw) if network else imresize(lr, first.scale)
            made[title].append(middle(sr, size))
        if min(hr.shape[:2]) < 7:
            raise InputError(f"{name}: a study takes 7 x 7 pixels or more, not {hr.shape[1]} x {hr.shape[0]}")
        names.append(name)
        true.append(middle(hr, size))
    return names, true, made


def prepare(
    networks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NETWORK...")],
    /,
    data: str,
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="STUDY")],
    temperatures: tuple[float, ...] = (),
    pictures: int = 283,
    golden: float = 0.1,
    crop: Crop | None = None,
    held_out: int | None = None,
    size: int = 128,
    seed: int = 0,
) -> None:
    """Make the pictures of a study: true ones, and of each what every network and bicubic make of its LR.

    Example: study.py prepare pixel_recursive-celeba --data FACES --crop face --held-out 10 -o STUDY

    Args:
        networks: Shipped networks' names, .keras files, or hf://user/name on the Hugging Face hub; all of one
            scale, and of any size or of one.
        data: A folder of HR pictures or a name of the catalogue (its test split). LR is made by bicubic.
        output: The study's folder, which must not exist.
        temperatures: Networks that draw samples: each of these is a method of its own; 1 unless given.
        pictures: How many are asked about; fewer where there are fewer. The paper asked about 283 faces.
        golden: Further pictures beside a mosaic of them, as a share of these.
        crop: Networks of one size: the square that is cut out of a picture, the largest in the middle
            unless given.
        held_out: Networks of one size: only one picture of a folder in so many, as training holds them out.
        size: Networks of any size: the middle square of so many pixels is shown.
        seed: Of the samples, and of the raters' orders.
    """
    if not networks:
        raise InputError("NETWORK: none is named")
    check_range({"pictures": pictures}, least=1)
    check_range({"size": size}, least=16)
    check_range({"golden": golden}, least=0, below=1)
    check_range({"seed": seed}, least=0, below=2**30)
    if held_out is not None and (held_out < 2 or not Path(data).is_dir()):
        raise InputError("--held-out: takes a number from 2 on, and --data a folder")
    folder = Path(output)
    if folder.exists():
        raise InputError(f"{output}: exists already; choose another --output, or remove it first")
    loaded = {printable(name.removesuffix(".keras")): load_network(name) for name in networks}
    if len(loaded) < len(networks):
        raise InputError("NETWORK: two have the same name")
    if temperatures and not any(network.draws_samples for network in loaded.values()):
        raise InputError("--temperatures: only for networks that draw samples, and none of these does")
    names, true, made = made_pictures(loaded, temperatures or (1.0,), data, PRACTICE + pictures
                                      + round(golden * pictures), held_out, crop, size, seed)
    if len(names) <= PRACTICE:
        raise InputError(f"{data}: a study needs {PRACTICE + 1} pictures or more, and {len(names)} are found")
    asked = min(pictures, math.ceil((len(names) - PRACTICE) / (1 + golden)))
    kinds = ["asked"] * asked + ["practice"] * PRACTICE + ["golden"] * (len(names) - asked - PRACTICE)
    with whole(folder.resolve()) as part:
        shutil.rmtree(part, ignore_errors=True)  # what a killed run left
        (part / "pictures").mkdir(parents=True)
        try:
            shown = []
            for i, kind in enumerate(kinds):
                beside = {"mosaic": mosaic(true[i])} if kind == "golden" else {
                    method: pixels[i] for method, pixels in made.items()}
                name, *files = [f"{i:04}_{word}" for word in ("_".join(names[i].split()), "true.png", *(
                    f"{number}.png" for number in range(len(beside))))]
                for file, pixels in zip(files, [true[i], *beside.values()], strict=True):
                    write_picture(part / "pictures" / file, pixels)
                shown.append({"name": name, "kind": kind, "true": files[0],
                              "made": dict(zip(beside, files[1:], strict=True))})
            (part / "study.json").write_text(json.dumps(
                {"seed": seed, "methods": list(made), "pictures": shown}, indent=1))
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    print(f"{output}: {asked} pictures, {kinds.count('golden')} golden ones, {PRACTICE} to practise; "
          f"methods: {', '.join(made)}")


# ------------------------------------------------------------------ serve


class Answers:
    """The file of answers: a line each, on the disk before `add` returns.

    Attributes:
        done: Rater -> how many questions are answered, which is the number of the next.
    """

    def __init__(self, path: Path) -> None:
        self.lock = threading.Lock()
        self.done = Counter()
        for row in read_answers(path):
            self.done[row["rater"]] = max(self.done[row["rater"]], row["question"] + 1)
        self._file = path.open("ab+", buffering=0)
        self._file.seek(0)
        self._size = self._file.read().rfind(b"\n") + 1
        self._file.truncate(self._size)  # half a line
        if not self._size:
            self._write(COLUMNS)

    def add(self, number: int, rater: str, question: Question, answer: str, answered_ms: int,
            shown_ms: int) -> bool:
        """Store the answer to the rater's question of this number; False: it was stored before.

        Raises:
            InputError: if it is not that question's turn.
            OSError: if it cannot be written; then nothing is.
        """
        with self.lock:
            if number > self.done[rater]:
                raise InputError(f"question {number} comes after {self.done[rater]}")
            if number < self.done[rater]:
                return False
            self._write((rater, number, question.picture, question.method, question.truth, answer,
                         int(answer != question.truth), answered_ms, shown_ms, question.kind))
            self.done[rater] += 1
            return True

    def _write(self, row):
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(row)
        written = line.getvalue().encode(errors="surrogateescape")
        if os.fstat(self._file.fileno()).st_size != self._size:
            raise OSError(f"{self._file.name}: another program has written to it; serve a study once")
        try:
            if self._file.write(written) < len(written):
                raise OSError("the disk is full")
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(written)


class Server(ThreadingHTTPServer):
    """The page of a study. Neither what it sends nor where from tells which picture is the true one."""

    request_queue_size = 128  # raters who click at the same moment; the library's 5 turns the others away

    def __init__(self, address: tuple[str, int], study: Study, seconds: float) -> None:
        try:
            super().__init__(address, Handler)
        except OSError as error:
            raise InputError(f"{address[0]}:{address[1]}: {error.strerror or error}") from None
        self.study, self.seconds = study, seconds
        self.answers = Answers(study.folder / "answers.csv")
        self.page = Path(__file__).with_name("study.html").read_bytes()

    def state(self, rater: str) -> dict[str, Any]:
        """What the page may know: the number of the rater's next question, and of all."""
        return {"question": self.answers.done[rater], "of": len(self.study.pictures), "practice": PRACTICE,
                "seconds": self.seconds}

    def pair(self, question: Question) -> bytes:
        """Both pictures of a question as one PNG: two files would differ in size."""
        png = io.BytesIO()
        Image.fromarray(self.study.beside(question.files)).save(png, "PNG")
        return png.getvalue()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong, without whose request it was."""
        if not isinstance(sys.exception(), ConnectionError):
            traceback.print_exc()


class Handler(BaseHTTPRequestHandler):
    """GET / (the page), /state and /pair; POST /answer, which says what the state is then."""

    server: Server
    timeout = 30

    def do_GET(self) -> None:
        self._reply(self._get)

    def do_POST(self) -> None:
        self._reply(self._post)

    def _get(self):
        try:
            address = urlsplit(self.path)
        except ValueError:
            raise InputError("no such page") from None
        path, query = address.path, dict(parse_qsl(address.query))
        if path == "/":
            return "text/html; charset=utf-8", self.server.page
        rater = _checked_rater(query.get("rater"))
        if path == "/state":
            return _json(self.server.state(rater))
        questions, number = self.server.study.questions(rater), self.server.answers.done[rater]
        if path != "/pair" or query.get("question") != str(number) or number == len(questions):
            raise InputError("no such page, or not this question's turn")
        return "image/png", self.server.pair(questions[number])

    def _post(self):
        length = self.headers.get("Content-Length", "")
        if self.path != "/answer" or not re.fullmatch("[0-9]{1,3}", length):
            raise InputError("no answer")
        try:
            given = json.loads(self.rfile.read(int(length)))
            rater, number, answer = _checked_rater(given["rater"]), given["question"], given["answer"]
            times = given["answered_ms"], given["shown_ms"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise InputError("no answer") from None
        questions = self.server.study.questions(rater)
        if (answer not in SIDES or not all(type(x) is int and 0 <= x < 10**9 for x in (number, *times))
                or number >= len(questions)):
            raise InputError("no answer")
        new = self.server.answers.add(number, rater, questions[number], answer, *times)
        feedback = {"truth": questions[number].truth} if new and questions[number].kind == "practice" else {}
        return _json(self.server.state(rater) | feedback)

    def _reply(self, content):
        status = 200
        try:
            kind, body = content()
        except InputError as error:
            status, (kind, body) = 400, ("text/plain", str(error).encode())
        except OSError as error:
            status, (kind, body) = 500, ("text/plain", b"It cannot be read or stored.")
            print(f"error: {error}", file=sys.stderr)
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", len(body)),
                            ("Cache-Control", "no-store")):
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: it would tell the raters' addresses."""


def _json(value):
    return "application/json", json.dumps(value).encode()


def _checked_rater(rater):
    if not isinstance(rater, str) or not re.fullmatch("[0-9a-f]{16}", rater):
        raise InputError("no rater")
    return rater


def serve(study: Folder, /, host: str = "127.0.0.1", port: int = 7861, seconds: float = 1.0) -> None:
    """Ask: a web page for any number of raters, who may stop and go on, as may this program (Ctrl-C).

    Args:
        study: The folder that `prepare` has made; answers.csv in it gets the answers.
        host: The address it is served at; 0.0.0.0 serves everybody who reaches this machine.
        port: The port.
        seconds: How long a pair is shown. The paper showed it for one second.
    """
    check_range({"seconds": seconds}, least=0.01, below=3601)
    check_range({"port": port}, least=0, below=65536)
    server = Server((host, port), Study.opened(study), seconds)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    done = server.answers.done
    print(f"http://{host}:{server.server_port}  {sum(done.values())} answers of {len(done)} raters so far",
          flush=True)
    try:
        server.serve_forever()
    finally:
        server.answers.lock.acquire()  # no answer is half written when the program ends


# ------------------------------------------------------------------ report


def report(study: Folder, /, output: Output = "", golden_failed: float = 0.2) -> None:
    """Print how often each method fooled the raters, and write it as tables and figures.

    Args:
        study: The folder that `prepare` has made and `serve` has filled.
        output: STUDY/report unless given.
        golden_failed: Raters who failed more than this share of the golden questions that they answered
            are left out.
    """
    check_range({"golden-failed": golden_failed}, least=0)
    opened, folder = Study.opened(study), Path(output or Path(study, "report"))
    answers = read_answers(opened.folder / "answers.csv")
    raters, out = {row["rater"] for row in answers}, careless(answers, golden_failed)
    kept = [row for row in answers if row["kind"] == "asked" and row["rater"] not in out]
    if not kept:
        raise InputError(f"{study}: no answers to report, of {len(raters)} raters, {len(out)} left out")
    rows = measured(opened, kept)
    times = {key: statistics.median(row[key] for row in kept) for key in ("answered_ms", "shown_ms")}
    text = (f"{as_markdown(rows)}\n\n{len({row['rater'] for row in kept})} raters, {len(kept)} answers; "
            f"left out: {len(out)} raters who failed more than {100 * golden_failed:g} % of the golden "
            f"questions that they answered. Medians: {times['answered_ms']:.0f} ms to answer, shown for "
            f"{times['shown_ms']:.0f} ms.")
    folder.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    for name, content in (("table.csv", table.getvalue()), ("table.md", f"{text}\n")):
        with whole(folder / name) as part:
            part.write_text(content, errors="surrogateescape", newline="")
    write_figure(folder / "shares.png", shares_figure(rows), dpi=150)
    write_figure(folder / "pictures.png", pictures_figure(opened, kept), dpi=150)
    print(f"{text}\n{folder}: table.csv, table.md, shares.png, pictures.png")


def cli() -> None:
    command({"prepare": prepare, "serve": serve, "report": report})


if __name__ == "__main__":
    cli()
