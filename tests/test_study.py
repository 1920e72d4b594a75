"""study.py: the pairs, what is asked and stored, the page in a real browser, the report."""

import contextlib
import csv
import functools
import http.client
import io
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import warnings
from collections import Counter
from concurrent import futures

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from scipy.stats import binomtest

from superres import study
from superres.datasets import catalogue
from superres.datasets.degradations import degraded, imresize
from superres.datasets.pictures import write_picture
from superres.datasets.thumbnails import Thumbnails
from superres.errors import InputError
from superres.metrics.image import ms_ssim, psnr, ssim
from superres.metrics.study import (
    COLUMNS,
    SIDES,
    Study,
    careless,
    pictures_figure,
    read_answers,
    shares_figure,
    wilson,
)
from superres.models import engine
from superres.models.lapsrn import lapsrn
from superres.models.pixel_recursive import conditioning_network, pixel_recursive, prior_network
from superres.models.srmap import generator

try:
    from playwright import sync_api as playwright
except ImportError:
    playwright = None

CHROMIUM = shutil.which(os.environ.get("CHROMIUM", "chromium"))
RATER, OTHER = "00000000000000a1", "00000000000000b2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photos):
    """A folder of seven pictures, 72 x 60."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(7):
        top, left = rng.integers(0, 440, 2)
        write_picture(folder / f"part {i:02}.png", photos["astronaut"][top : top + 60, left : left + 72])
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A study of four methods, whose pictures are noise: 25 pictures, 5 golden ones, 3 for practice."""
    output, rng = tmp_path_factory.mktemp("studies") / "study", np.random.default_rng(0)
    true, *made = rng.integers(0, 256, (5, 33, 32, 32, 3), "uint8")
    methods = ("bicubic", "lapsrn-x4", "srmap-x4 at 0.3", "srmap-x4 at 1")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(study, "load_network", lambda name: None)
        patched.setattr(study, "made_pictures", lambda *arguments: (
            [f"part {i}" for i in range(arguments[3])], true, dict(zip(methods, made, strict=True))))
        study.prepare(("lapsrn-x4", "srmap-x4"), "nowhere", str(output), (), 25, 0.2, seed=7)
    return output


@pytest.fixture
def made(prepared, tmp_path):
    """The same study, without answers, where a test may write."""
    return Study.opened(shutil.copytree(prepared, tmp_path / "study"))


@pytest.fixture
def served(made):
    """Function that serves the study, each pair for so long: the address."""
    servers = []

    def serve(seconds=0.05):
        servers.append(study.Server(("127.0.0.1", 0), made, seconds))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,)).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def load(monkeypatch):
    """`models.engine.load`, which compiles each network once for the test and for what it tests."""
    once = functools.cache(engine.load)
    monkeypatch.setattr(study, "load_network", once)
    return once


def fetch(address, content=None):
    """(status, body) of a request; a body that is JSON is decoded."""
    data = content if content is None or isinstance(content, bytes) else json.dumps(content).encode()
    try:
        with urllib.request.urlopen(address, data) as reply:
            kind, body = reply.headers["Content-Type"], reply.read()
            return 200, json.loads(body) if kind == "application/json" else body
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def answer(question, side="left", rater=RATER, **changes):
    return {"rater": rater, "question": question, "answer": side, "answered_ms": 700, "shown_ms": 1000,
            **changes}


def lines(made):
    return (made.folder / "answers.csv").read_text().splitlines()


# ------------------------------------------------------------------ pairs


def test_pairs_are_true_pictures_and_what_the_networks_make(folder, tmp_path, load, randomize, monkeypatch):
    monkeypatch.chdir(tmp_path)
    randomize(lapsrn(2, filters=4, depth=1)).save("sharp.keras")
    randomize(generator(2, stem=8, widths=(8, 8), blocks=(1,), initial_noise=0.5)).save("noisy.keras")
    study.prepare(("sharp.keras", "noisy.keras"), str(folder), "study", (0.3, 1), 2, 0.5, size=32, seed=7)
    made = Study.opened("study")
    assert made.methods == ["bicubic", "sharp", "noisy at 0.3", "noisy at 1"]
    kinds = [picture["kind"] for picture in made.pictures]
    assert kinds == ["asked"] * 2 + ["practice"] * 3 + ["golden"]
    sharp, noisy = load("sharp.keras"), load("noisy.keras")
    inside = np.s_[14:46, 20:52]
    triples = list(degraded(catalogue.load(folder), 2, "bicubic"))
    for number in (0, 1):
        name, lr, hr = triples[number]
        picture = made.pictures[number]
        assert picture["name"] == f"{number:04}_{name.replace(' ', '_')}"
        np.testing.assert_array_equal(made.read(picture["true"]), hr[inside])
        wanted = (imresize(lr, 2), sharp.upscale(lr), noisy.upscale(lr, temperature=0.3, seed=7 + number),
                  noisy.upscale(lr, temperature=1, seed=7 + number))
        assert len({pixels.tobytes() for pixels in wanted}) == 4
        for file, pixels in zip(picture["made"].values(), wanted, strict=True):
            np.testing.assert_array_equal(made.read(file), pixels[inside])
    golden, hr = made.pictures[5], triples[5][2][inside]
    assert list(golden["made"]) == ["mosaic"]
    np.testing.assert_array_equal(made.read(golden["true"]), hr)
    blocks = made.read(golden["made"]["mosaic"]).reshape(4, 8, 4, 8, 3)
    np.testing.assert_array_equal(blocks[:, 0, :, 0], imresize(hr, 1 / 8))
    assert (blocks == blocks[:, :1, :, :1]).all()


def test_pairs_of_networks_of_one_size(folder, tmp_path, load, monkeypatch):
    monkeypatch.chdir(tmp_path)
    regression = conditioning_network(8, 2, 3, 4, 1, head="gaussian", initializer="he_normal")
    regression.save("mean.keras")
    pixel_recursive(conditioning_network(8, 2, 3, 4, 1, "batch", hidden=3, initializer="he_normal"),
                    prior_network(16, 3, 6, 1, head=12, initializer="he_normal")).save("drawn.keras")
    study.prepare(("drawn.keras", "mean.keras"), str(folder), "study", (1, 1.5), crop="face", held_out=2,
                  seed=3)
    made = Study.opened("study")
    pictures = Thumbnails(catalogue.load(folder, "test", held_out=2), 8, 2, crop="face")
    drawn, mean = load("drawn.keras"), load("mean.keras")
    wanted = {"bicubic": [imresize(lr, 2) for lr in pictures.lr],
              "drawn at 1": drawn.sample(pictures.lr, 1, seed=3)[0],
              "drawn at 1.5": drawn.sample(pictures.lr, 1.5, seed=3)[0], "mean": mean.sample(pictures.lr)[0]}
    assert [picture["kind"] for picture in made.pictures] == ["asked"] + ["practice"] * 3
    assert made.methods == list(wanted)
    for i, picture in enumerate(made.pictures):
        np.testing.assert_array_equal(made.read(picture["true"]), pictures.hr[i])
        for method, pixels in wanted.items():
            np.testing.assert_array_equal(made.read(picture["made"][method]), pixels[i])
    lapsrn(2, filters=4, depth=1).save("any.keras")
    for network, temperature, message in (("any", 1.0, "one scale and LR of one kind, and any has others"),
                                          ("mean", -1.0, "temperature: must be 0 or more")):
        with pytest.raises(InputError, match=message):
            study.prepare(("drawn.keras", f"{network}.keras"), str(folder), "other", (temperature,))


@pytest.mark.parametrize(("change", "message"), [
    ({"times": 2}, "two have the same name"),
    ({"times": 0}, "none is named"),
    ({"temperatures": (1.0,)}, "only for networks that draw samples"),
    ({"crop": "face"}, "crop: only for networks of one size"),
    ({"data": "nowhere"}, "neither a folder nor a known name"),
    ({"pictures": 0}, "pictures: must be at least 1"),
    ({"held_out": 10}, "held-out: only for networks of one size"),
    ({"output": "."}, "exists already"),
])
def test_studies_that_cannot_be(tmp_path, folder, model, change, message):
    settings = {"times": 1, "data": str(folder), "output": str(tmp_path / "study"), **change}
    with pytest.raises(InputError, match=message):
        study.prepare((str(model),) * settings.pop("times"), **settings)
    assert not list(tmp_path.iterdir())


def test_a_study_appears_whole_or_not_at_all(tmp_path, folder, model, monkeypatch):
    written = []

    def full(*arguments):
        written.append(arguments)
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        write_picture(*arguments)

    monkeypatch.setattr(study, "write_picture", full)
    with pytest.raises(OSError, match="No space left"):
        study.prepare((str(model),), str(folder), str(tmp_path / "study"), pictures=2)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ questions


def test_methods_and_sides_are_balanced_and_every_picture_is_asked_once(made):
    for rater in range(20):
        questions = made.questions(f"{rater:016x}")
        names = [picture["name"] for picture in made.pictures]
        assert sorted(question.picture for question in questions) == names
        assert [question.kind for question in questions[:3]] == ["practice"] * 3
        for kind, count in (("asked", 25), ("golden", 5)):
            sides = Counter(question.truth for question in questions if question.kind == kind)
            assert sorted(sides.values()) == [count // 2, count // 2 + 1]
        asked = Counter((question.method, question.truth) for question in questions
                        if question.kind == "asked")
        assert set(asked) == {(method, side) for method in made.methods for side in SIDES}
        assert set(asked.values()) <= {3, 4}
        files = {picture["name"]: picture for picture in made.pictures}
        for question in questions:
            true = question.files[SIDES.index(question.truth)]
            false = question.files[1 - SIDES.index(question.truth)]
            assert true == files[question.picture]["true"]
            assert false == files[question.picture]["made"][question.method]


def test_orders_are_a_function_of_seed_and_rater(made):
    questions = made.questions(RATER)
    assert questions == made.questions(RATER)
    assert questions != made.questions(OTHER) != made._replace(seed=8).questions(OTHER)
    # All methods of a picture, and golden questions everywhere, come up among the raters.
    plans = [made.questions(f"{rater:016x}") for rater in range(40)]
    first = {question.method for plan in plans for question in plan if question.picture.startswith("0000_")}
    assert first == set(made.methods)
    places = Counter(i for plan in plans for i, question in enumerate(plan) if question.kind == "golden")
    assert len(places) == 30
    assert max(places.values()) < 20


# ------------------------------------------------------------------ the server


def test_nothing_tells_the_answer_before_it_is_given(made, served):
    address, questions = served(), made.questions(RATER)
    for number, question in enumerate(questions[:8]):
        status, state = fetch(f"{address}/state?rater={RATER}")
        assert (status, state) == (200, {"question": number, "of": 33, "practice": 3, "seconds": 0.05})
        status, png = fetch(f"{address}/pair?rater={RATER}&question={number}")
        image = Image.open(io.BytesIO(png))
        assert (image.format, image.info, image.size) == ("PNG", {}, (64, 32))
        pixels = np.asarray(image)
        for side, file in zip((pixels[:, :32], pixels[:, 32:]), question.files, strict=True):
            np.testing.assert_array_equal(side, made.read(file))
        # What is to come, is over, or is nobody's cannot be looked at; nor are there files.
        for bad in (f"pair?rater={RATER}&question={number + 1}", f"pair?rater={RATER}&question={number - 1}",
                    f"pair?question={number}", "study.json", "answers.csv", f"pictures/{question.files[0]}",
                    "../study.json", "pair?rater=..&question=0"):
            assert fetch(f"{address}/{bad}")[0] == 400
        status, reply = fetch(f"{address}/answer", answer(number))
        assert reply == {**state, "question": number + 1,
                         **({"truth": question.truth} if question.kind == "practice" else {})}
    page = fetch(address)[1].decode()
    assert not any(word in page for word in (*made.methods, "mosaic", "golden"))


def test_an_answer_is_a_line_and_a_resent_one_none(made, served):
    address, questions = served(), made.questions(RATER)
    side = questions[0].truth
    assert fetch(f"{address}/answer", answer(0, side))[1]["question"] == 1
    for again in (side, "left", "right"):  # a double click, and one who thinks again
        status, reply = fetch(f"{address}/answer", answer(0, again))
        assert (status, reply["question"]) == (200, 1)
        assert "truth" not in reply
    fetch(f"{address}/answer", answer(0, rater=OTHER))
    wrong = SIDES[1 - SIDES.index(questions[1].truth)]
    fetch(f"{address}/answer", answer(1, wrong, answered_ms=432, shown_ms=1016))
    rows = list(csv.DictReader(lines(made)))
    assert len(rows) == 3
    assert rows[2] == {"rater": RATER, "question": "1", "picture": questions[1].picture, "fooled": "1",
                       "method": questions[1].method, "truth": questions[1].truth, "answer": wrong,
                       "answered_ms": "432", "shown_ms": "1016", "kind": "practice"}
    assert (rows[0]["fooled"], rows[1]["rater"]) == ("0", OTHER)


@pytest.mark.parametrize("nonsense", [
    b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe", b"[" * 400, b"x" * 5000,
    answer(1), answer(-1), answer("0"), answer(0.0), answer(True), answer(None), answer(10**9),
    answer(0, "up"), answer(0, ["left"]), answer(0, None), answer(0, rater="../../etc"), answer(0, rater=""),
    answer(0, rater=RATER + "\n"), answer(0, rater=5), answer(0, answered_ms=-1), answer(0, shown_ms=1.5),
    answer(0, shown_ms=float("nan")), {"rater": RATER},
])
def test_nonsense_is_refused_and_loses_nothing(made, served, nonsense):
    address = served()
    before = lines(made)
    assert fetch(f"{address}/answer", nonsense)[0] == 400
    assert lines(made) == before == [",".join(COLUMNS)]
    assert fetch(f"{address}/elsewhere", answer(0))[0] == 400
    assert fetch(f"{address}/answer", answer(0))[0] == 200
    assert len(lines(made)) == 2


def test_a_request_without_a_length_is_refused(served):
    connection = http.client.HTTPConnection(served().removeprefix("http://"))
    connection.putrequest("POST", "/answer")
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()


def test_raters_at_once_are_all_stored_once(made, served):
    address = served()
    raters = [f"{n:016x}" for n in range(8)]

    def send(rater, number):
        return fetch(f"{address}/answer", answer(number, rater=rater))

    with futures.ThreadPoolExecutor(2 * len(raters)) as pool:  # each answer comes twice, as a double click's
        for number in range(10):
            for status, state in pool.map(send, 2 * raters, [number] * 2 * len(raters)):
                assert (status, state["question"]) == (200, number + 1)
    rows = list(csv.DictReader(lines(made)))
    assert sorted((row["rater"], int(row["question"])) for row in rows) == [
        (rater, number) for rater in raters for number in range(10)]


def test_a_full_disk_stores_no_half_line(made, served, monkeypatch, capsys):
    address = served()
    fetch(f"{address}/answer", answer(0))
    before = lines(made)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert fetch(f"{address}/answer", answer(1))[0] == 500
    assert lines(made) == before
    assert "No space left" in capsys.readouterr().err
    assert fetch(f"{address}/answer", answer(1))[1]["question"] == 2


def test_two_servers_of_one_study_lose_nothing(made):
    first, second = (study.Answers(made.folder / "answers.csv") for _ in range(2))
    question = made.questions(RATER)[0]
    assert first.add(0, RATER, question, "left", 1, 1)
    with pytest.raises(OSError, match="another program has written to it"):
        second.add(0, OTHER, question, "left", 1, 1)
    assert first.add(0, OTHER, question, "left", 1, 1)
    assert len(read_answers(made.folder / "answers.csv")) == 2


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_stopped_goes_on(made, end):
    @contextlib.contextmanager
    def running():
        process = subprocess.Popen([sys.executable, ROOT / "study.py", "serve", made.folder, "--port", "0"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   # Where a shell runs the tests in the background, they ignore it.
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        try:
            yield process, process.stdout.readline().split()
        finally:
            process.kill()
            process.communicate()

    with running() as (process, (address, *_)):
        for number in range(5):
            assert fetch(f"{address}/answer", answer(number))[0] == 200
        process.send_signal(end)
        _, err = process.communicate(timeout=30)
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 0, signal.SIGINT: 130}[end]
        assert err == ("stopped\n" if end == signal.SIGINT else "")  # no traceback, and nobody's address
    stored = lines(made)
    assert len(stored) == 6
    with (made.folder / "answers.csv").open("a") as file:
        file.write(stored[-1].replace(",4,", ",5,")[:-9])  # the machine stopped as it wrote
    answers = None
    with warnings.catch_warnings(record=True) as caught:
        answers = study.Answers(made.folder / "answers.csv")
    assert [str(warning.message) for warning in caught] == ["left out: line 7 of answers.csv is damaged"]
    assert answers.done == {RATER: 5}
    assert answers.add(5, RATER, made.questions(RATER)[5], "left", 1, 1)
    assert lines(made)[:6] == stored
    assert len(read_answers(made.folder / "answers.csv")) == 6


def test_an_address_in_use_is_one_line(made, served, call, ended):
    port = served().rpartition(":")[2]
    status, _, err = ended(call, {"serve": study.serve}, "serve", made.folder, "--port", port)
    assert (status, err) == (2, [f"error: 127.0.0.1:{port}: Address already in use"])


# ------------------------------------------------------------------ the report


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 30), (3, 30), (15, 30), (111, 1000)])
def test_wilson_s_interval_is_scipy_s(successes, trials):
    for confidence in (0.95, 0.8):
        wanted = binomtest(successes, trials).proportion_ci(confidence, "wilson")
        np.testing.assert_allclose(wilson(successes, trials, confidence), wanted, atol=1e-12)


def rate(made, rater, fooled_by):
    """A rater who answers all; fooled_by(question) says whether he takes the made picture."""
    answers = study.Answers(made.folder / "answers.csv")
    for number, question in enumerate(made.questions(rater)):
        side = SIDES[(question.truth == "left") == bool(fooled_by(question))]
        answers.add(number, rater, question, side, 500 + number**2, 1000)


def test_the_report_counts_who_was_fooled_and_leaves_the_careless_out(made, tmp_path, capsys):
    for rater in range(3):  # all take srmap at 0.3, and of lapsrn the pictures with even numbers
        rate(made, f"{rater:016x}", lambda question: question.method == "srmap-x4 at 0.3" or (
            question.method == "lapsrn-x4" and int(question.picture[:4]) % 2 == 0))
    rate(made, RATER, lambda question: True)  # golden ones, too
    study.report(str(made.folder), str(tmp_path / "report"))
    out = capsys.readouterr().out
    plans = [made.questions(f"{rater:016x}") for rater in range(3)]
    asked = [question for plan in plans for question in plan if question.kind == "asked"]
    counts = Counter(question.method for question in asked)
    even = sum(question.method == "lapsrn-x4" and int(question.picture[:4]) % 2 == 0 for question in asked)
    wanted = {"bicubic": 0, "lapsrn-x4": even, "srmap-x4 at 0.3": counts["srmap-x4 at 0.3"],
              "srmap-x4 at 1": 0}
    with open(tmp_path / "report" / "table.csv", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert {method: int(row["fooled"]) for method, row in rows.items()} == wanted
    assert {method: int(row["answers"]) for method, row in rows.items()} == counts
    for method, row in rows.items():
        low, high = wilson(wanted[method], counts[method])
        assert (float(row["low"]), float(row["high"])) == (low, high)
    low, high = wilson(even, counts["lapsrn-x4"])
    assert (f"| {100 * even / counts['lapsrn-x4']:.1f} | {100 * low:.1f} to {100 * high:.1f} | "
            f"{counts['lapsrn-x4']} |") in out
    assert "3 raters, 75 answers; left out: 1 raters who failed more than 20 % of the golden" in out
    took = [500 + n**2 for plan in plans for n, question in enumerate(plan) if question.kind == "asked"]
    assert f"Medians: {statistics.median(took):.0f} ms to answer, shown for 1000 ms." in out
    assert (tmp_path / "report" / "table.md").read_text().strip() in out
    for figure in ("shares.png", "pictures.png"):
        assert Image.open(tmp_path / "report" / figure).size[0] > 500
    asked = made.pictures[:25]
    pairs = [(made.read(picture["true"]), made.read(picture["made"]["lapsrn-x4"])) for picture in asked]
    for measure in (psnr, ssim, ms_ssim):
        mean = np.mean([measure(*pair) for pair in pairs])
        np.testing.assert_allclose(float(rows["lapsrn-x4"][measure.__name__]), mean)
    # With every rater kept, each count grows by his.
    study.report(str(made.folder), golden_failed=1)
    assert "4 raters, 100 answers; left out: 0 raters" in capsys.readouterr().out
    assert (made.folder / "report" / "table.md").exists()


def test_a_rater_may_fail_a_share_of_golden_questions():
    rows = [{"rater": rater, "kind": "golden", "fooled": int(i < failed)}
            for rater, failed in (("a", 0), ("b", 1), ("c", 2)) for i in range(5)]
    rows += [{"rater": "d", "kind": "asked", "fooled": 1}]
    assert careless(rows, 0.2) == {"c"}
    assert careless(rows, 0) == {"b", "c"}
    assert careless(rows, 1) == set()


def test_damaged_lines_are_passed_over_with_a_warning(made, call, ended):
    rate(made, RATER, lambda question: False)
    path = made.folder / "answers.csv"
    good = path.read_text().splitlines()
    bad = good[2].split(",")
    bad[COLUMNS.index("fooled")] = "1"  # though the true one was taken
    path.write_text("\n".join([*good, ",".join(bad), "\0", good[1], good[-1][:-3]]))
    status, out, err = ended(call, {"report": study.report}, "report", made.folder)
    assert status == 0
    assert err == [f"warning: left out: line {n} of answers.csv is damaged" for n in (35, 36, 38)]
    assert any(line.startswith("1 raters, 25 answers") for line in out)  # each once


def test_nothing_to_report(made, tmp_path, call, ended):
    def report(folder):
        status, _, (line,) = ended(call, {"report": study.report}, "report", folder)
        assert status == 2
        return line

    assert "no study" in report(tmp_path / "nowhere")
    assert "no answers to report, of 0 raters" in report(made.folder)
    rate(made, RATER, lambda question: True)
    assert "no answers to report, of 1 raters, 1 left out" in report(made.folder)


# ------------------------------------------------------------------ the page


in_browser = pytest.mark.skipif(not (CHROMIUM and playwright), reason="no Playwright (make test-page) or no "
                                "chromium (apt-get install chromium)")
# Waits are a twentieth as long, and what is shown is kept: [left, right], RGBA.
SCRIPT = """
const later = setTimeout;
setTimeout = (run, ms, ...more) => later(run, ms / 20, ...more);
addEventListener("DOMContentLoaded", () => new MutationObserver(() => {
    if (document.body.dataset.state !== "showing") return;
    window.shown = ["left", "right"].map(side => {
        const canvas = document.getElementById(side), {width, height} = canvas;
        const copy = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
        copy.drawImage(canvas, 0, 0);
        return [...copy.getImageData(0, 0, width, height).data];
    });
}).observe(document.body, {attributes: true}));
"""
# Frames come without time going on, so that a pair is shown until window.go.
STILL = """
window.go = 0;
const real = requestAnimationFrame;
requestAnimationFrame = run => real(now => run(window.go && now));
"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        yield play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def visit(browser):
    """Function that opens a page as another rater; at the end, no console may have had an error."""
    faults, contexts = [], []

    def run(address, rater=RATER, width=1280, script=""):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, has_touch=width < 500))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(60_000)
        tab.on("console", lambda said: said.type in ("error", "warning") and faults.append(said.text))
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.add_init_script(SCRIPT + script + f"localStorage.rater ||= '{rater}';")
        tab.goto(address)
        until(tab, "reading")
        return tab

    run.faults = faults
    yield run
    for context in contexts:
        context.close()
    assert not faults


def until(tab, *states):
    tab.wait_for_function(f"{list(states)}.includes(document.body.dataset.state)", polling=10)


def seen(tab):
    """The pair that was shown last, (32, 32, 3) each."""
    return [np.array(side, "uint8").reshape(32, 32, 4)[..., :3] for side in tab.evaluate("window.shown")]


def answer_all(tab, decide):
    """Answer by the keyboard until the page says thanks; decide(left, right), of pixels, gives a side."""
    tab.keyboard.press("Enter")
    while True:
        until(tab, "asking", "reading")
        if tab.evaluate("document.body.dataset.state") == "reading":
            break
        tab.keyboard.press({"left": "ArrowLeft", "right": "ArrowRight"}[decide(*seen(tab))])
    assert "Thank you" in tab.locator("main").inner_text()


def stored(made, rater=RATER):
    return [row for row in read_answers(made.folder / "answers.csv") if row["rater"] == rater]


@in_browser
def test_who_guesses_is_fooled_half_the_time(made, served, visit):
    tab, rng = visit(served()), random.Random(1)
    given = []

    def guess(*pair):
        given.append(rng.choice(SIDES))
        return given[-1]

    answer_all(tab, guess)
    rows = [row for row in stored(made) if row["kind"] == "asked"]
    assert [row["answer"] for row in stored(made)] == given
    low, high = wilson(sum(row["fooled"] for row in rows), len(rows))
    assert low < 0.5 < high
    assert high - low < 0.4
    assert all(row["shown_ms"] >= 42 for row in rows)  # 50 ms, to half a frame


@in_browser
def test_who_knows_the_true_pictures_is_never_fooled(made, served, visit):
    true = {made.read(picture["true"]).tobytes() for picture in made.pictures}

    def know(*pair):
        known = [pixels.tobytes() in true for pixels in pair]
        assert sum(known) == 1
        return SIDES[known.index(True)]

    answer_all(visit(served()), know)
    assert len(stored(made)) == 33
    assert not any(row["fooled"] for row in stored(made))


@in_browser
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_both_pictures_are_enlarged_by_nearest_neighbour_and_then_gone(made, served, visit, width):
    tab, question = visit(served(), width=width, script=STILL), made.questions(RATER)[0]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.locator("button").first.click()
    until(tab, "showing")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    for side, file in zip(SIDES, question.files, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(tab.locator(f"#{side}").screenshot())).convert("RGB"))
        zoom = len(pixels) // 32
        assert zoom == {1280: 10, 390: 5, 320: 4}[width]
        np.testing.assert_array_equal(pixels, made.read(file).repeat(zoom, 0).repeat(zoom, 1))
    tab.evaluate("window.go = true")
    until(tab, "asking")
    for side, file in zip(SIDES, question.files, strict=True):
        masked = np.asarray(Image.open(io.BytesIO(tab.locator(f"#{side}").screenshot())).convert("RGB"))
        assert abs(np.corrcoef(masked[::zoom, ::zoom].ravel(), made.read(file).ravel())[0, 1]) < 0.15
    if width < 500:
        tab.locator(f"#take-{question.truth}").tap()
    else:
        tab.locator(f"#{question.truth}").dblclick()
    tab.locator("#status", has_text=f"Yes, a camera took the one on the {question.truth}.").wait_for()
    assert [row["fooled"] for row in stored(made)] == [0]


@in_browser
def test_a_rater_who_reloads_goes_on_and_another_begins(made, served, visit):
    tab = visit(served(), rater=OTHER)
    tab.keyboard.press("Enter")
    for number in range(5):
        until(tab, "asking")
        for pixels, file in zip(seen(tab), made.questions(OTHER)[number].files, strict=True):
            np.testing.assert_array_equal(pixels, made.read(file))
        if number in (1, 3):  # not answered yet: it is asked again
            tab.reload()
            until(tab, "reading")
            assert f"{number} of 33 pairs are answered" in tab.locator("main").inner_text()
            tab.keyboard.press("Enter")
            until(tab, "asking")
        tab.keyboard.press("ArrowLeft")
        tab.keyboard.press("ArrowRight")
    until(tab, "asking")
    answers = [(row["question"], row["answer"]) for row in stored(made, OTHER)]
    assert answers == [(number, "left") for number in range(5)]
    tab.reload()
    until(tab, "reading")
    tab.get_by_role("button", name="I am somebody else").click()
    tab.get_by_role("button", name="Start").wait_for()
    assert tab.evaluate("localStorage.rater") != OTHER


@in_browser
def test_an_answer_that_is_lost_on_its_way_is_sent_again(made, served, visit):
    tab, requests = visit(served()), []

    def lose(route):
        requests.append(route.request.post_data)
        if len(requests) == 1:  # it arrives, but the reply does not
            route.fetch()
            route.abort()
        elif len(requests) == 2:
            route.fulfill(status=500, body="")
        else:
            route.continue_()

    tab.route("**/answer", lose)
    tab.keyboard.press("Enter")
    until(tab, "asking")
    tab.keyboard.press("ArrowLeft")
    for number in (1, 2):
        tab.wait_for_function(f"document.querySelector('h1')?.innerText.includes('not stored') && {number}")
        tab.get_by_role("button", name="Try again").click()
    until(tab, "asking")
    assert len(set(requests)) == 1
    assert [row["question"] for row in stored(made)] == [0]
    assert len(visit.faults) == 2
    visit.faults.clear()


def test_the_figures_show_what_was_answered(made):
    names = [picture["name"] for picture in made.pictures[:4]]
    answers = [{"method": "bicubic", "picture": name, "fooled": int(k < i)}
               for i, name in enumerate(names) for k in range(3)]
    figure = pictures_figure(made, answers, 2)
    assert [at.get_title(loc="left") for at in figure.axes[::2]] == [
        f"bicubic fooled {word}: true, made" for word in ("most", "least")]
    assert [at.get_xlabel() for at in figure.axes] == ["3 of 3", "2 of 3", "0 of 3", "1 of 3"]
    rows = [{"method": "a", "answers": 4, "share": 0.25, "low": 0.1, "high": 0.5},
            {"method": "b", "answers": 4, "share": 0.5, "low": 0.3, "high": 0.8}]
    (axes,) = shares_figure(rows).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [25, 50])
    np.testing.assert_allclose(axes.collections[0].get_segments(), [[[10, 0], [50, 0]], [[30, 1], [80, 1]]])
