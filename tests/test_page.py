"""page.py in a real browser, against the files that upscale.py writes."""

import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
import tifffile
from conftest import ROOT

pytest.importorskip("gradio", reason="Gradio is not installed (make page)")
pytest.importorskip("playwright", reason="Playwright is not installed (make test-page)")

from PIL import Image, ImageCms
from playwright import sync_api as playwright

from superres import page, upscale
from superres.datasets.degradations import imresize_clipped
from superres.datasets.pictures import Picture, read_picture, write_picture
from superres.errors import InputError

CHROMIUM = shutil.which(os.environ.get("CHROMIUM", "chromium"))
in_browser = pytest.mark.skipif(not CHROMIUM, reason="no chromium (apt-get install chromium)")
PATIENCE = 180_000  # ms; networks are loaded and compiled


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address of a page for results up to four megapixels, the folder that its files lie in)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    log = folder.with_name("log.txt").open("w+")
    process = subprocess.Popen([sys.executable, ROOT / "page.py", "--port", str(port), "--megapixels", "4"],
                               env={**os.environ, "TMPDIR": str(folder)}, stdout=log, stderr=log)
    try:
        for _ in range(180):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None
            time.sleep(1)
        yield f"http://127.0.0.1:{port}", folder
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert not list(folder.glob("superres_page_*"))  # nothing is left
    log.seek(0)
    assert "Traceback" not in log.read()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        yield play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def visit(browser, server):
    """Function that opens the page as another visitor; at the end, no console may have had an error."""
    faults, contexts = [], []

    def run(width=1280):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(PATIENCE)
        tab.on("console", lambda message: message.type == "error" and faults.append(message.text))
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("response", lambda response: response.status >= 400 and faults.append(response.url))
        tab.goto(server[0])
        tab.wait_for_selector("#examples img")
        return tab

    yield run
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture
def picture(tmp_path, photo):
    """A JPEG file of 64 x 50 pixels with a profile and EXIF."""
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[271] = "a camera"
    Image.fromarray(photo[:50, :64]).save(path, exif=exif, icc_profile=ImageCms.ImageCmsProfile(
        ImageCms.createProfile("sRGB")).tobytes())
    return path


def choose(tab, network):
    tab.locator("#network input").click()
    tab.get_by_role("option", name=network, exact=True).click()
    tab.wait_for_timeout(1000)


def put(tab, path, network):
    tab.locator("#file input[type=file]").set_input_files(path)
    tab.locator("#file .file-preview").wait_for()
    choose(tab, network)


def start(tab, until="pixels in"):
    tab.locator("#start").click()
    tab.locator(f"#status :text('{until}')").wait_for()


def fetched(address):
    with urllib.request.urlopen(address) as answer:
        return answer.read()


def decoded(file):
    return np.asarray(Image.open(io.BytesIO(file)))


def images(tab, where):
    """The pictures that are shown there, decoded from what the browser has loaded."""
    tab.wait_for_function(f"[...document.querySelectorAll('{where} img')].every(image => image.complete)")
    addresses = tab.eval_on_selector_all(f"{where} img", "images => images.map(image => image.src)")
    return [decoded(fetched(address)) for address in addresses]


def downloads(tab):
    """The files that are offered: name -> contents."""
    links = tab.eval_on_selector_all("#download a", "links => links.map(link => [link.download, link.href])")
    return {name: fetched(address) for name, address in links}


def by_command(draw, tmp_path, *arguments):
    draw(*arguments)
    return {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def enlarged(pixels, factor):
    return pixels.repeat(factor, 0).repeat(factor, 1)


@in_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_before_and_after(visit, picture, draw, tmp_path, width):
    tab = visit(width)
    put(tab, picture, "lapsrn-x2")
    start(tab)
    assert tab.locator("#status").inner_text().startswith("64 x 50 to 128 x 100 pixels in ")
    wanted = by_command(draw, tmp_path, "lapsrn-x2", picture)
    assert downloads(tab) == wanted
    assert Image.open(io.BytesIO(wanted["photo_x2.png"])).getexif()[271] == "a camera"
    lr, sr = (read_picture(path).pixels for path in (picture, tmp_path / "out" / "photo_x2.png"))
    left, right = images(tab, "#slider")
    np.testing.assert_array_equal(left, enlarged(lr, 2))
    np.testing.assert_array_equal(right, sr)
    tab.get_by_label("bicubic interpolation").click()
    tab.locator("#slider img[src$='bicubic.png']").wait_for()
    left, right = images(tab, "#slider")
    np.testing.assert_array_equal(left, imresize_clipped(lr, 2))
    np.testing.assert_array_equal(right, sr)
    # No part stands out of the window.
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


@in_browser
def test_samples_and_where_they_differ(visit, picture, draw, tmp_path):
    tab = visit()
    put(tab, picture, "srmap-x4")
    tab.locator("#seed input").fill("3")
    tab.locator("#temperature input[type=number]").fill("0.6")
    tab.keyboard.press("Tab")
    start(tab)
    wanted = by_command(draw, tmp_path, "srmap-x4", picture, "--samples", 4, "--seed", 3,
                        "--temperature", 0.6, "--stochasticity")
    assert downloads(tab) == wanted
    shown = images(tab, "#samples")
    for pixels, name in zip(shown, sorted(wanted), strict=True):
        np.testing.assert_array_equal(pixels, decoded(wanted[name]))
    tab.locator("#samples button[class*=thumbnail]").nth(2).click()
    tab.locator("#slider img[src*=x4_3]").wait_for()
    np.testing.assert_array_equal(images(tab, "#slider")[1], shown[2])


@in_browser
def test_a_blend(visit, picture, draw, tmp_path):
    tab = visit()
    put(tab, picture, "srgan-x2")
    tab.locator("#blend input[type=number]").fill("0.5")
    tab.keyboard.press("Tab")
    start(tab)
    assert downloads(tab) == by_command(draw, tmp_path, "srgan-x2", picture, "--blend", 0.5, "--blend-with",
                                        "srresnet-x2")


@in_browser
def test_a_square_is_cut_out_and_drawn(visit, tmp_path, photo, draw):
    write_picture(tmp_path / "whole.png", photo[:60, :90])
    tab = visit()
    put(tab, tmp_path / "whole.png", "pixel_recursive-corners")
    for name, per_cent in (("Across", 100), ("Down", 0), ("Size", 50)):
        tab.locator(f"#{name} input[type=number]").fill(str(per_cent))
        tab.keyboard.press("Tab")
    tab.evaluate("""() => {window.seen = new Set(); new MutationObserver(() => seen.add(
        document.querySelector('#status').innerText)).observe(document.querySelector('#status'),
        {childList: true, subtree: true, characterData: true})}""")
    start(tab)
    rows = {text.strip() for text in tab.evaluate("[...window.seen]") if "Row" in text}
    assert len(rows) >= 4, rows
    (tmp_path / "cut").mkdir()
    write_picture(cut := tmp_path / "cut" / "whole.png", photo[:30, 60:90])
    wanted = by_command(draw, tmp_path, "pixel_recursive-corners", cut, "--samples", 4)
    assert downloads(tab) == wanted
    for pixels, name in zip(images(tab, "#samples"), sorted(wanted), strict=True):
        np.testing.assert_array_equal(pixels, enlarged(decoded(wanted[name]), 24))


@in_browser
def test_faults_are_one_line_of_text(visit, tmp_path):
    tab = visit()
    start(tab, "drop a picture first, or take an example")
    (tmp_path / "bad.png").write_text("no picture")
    put(tab, tmp_path / "bad.png", "lapsrn-x2")
    start(tab, "bad.png: not a readable picture")
    write_picture(tmp_path / "large.png", np.zeros((600, 500, 1), "uint8"))
    tab.locator("#file button[aria-label*=lear]").click()
    put(tab, tmp_path / "large.png", "lapsrn-x4")
    start(tab, "500 x 600 are 0.3 megapixels, and this network takes up to 0.25 here")
    assert "/" not in tab.locator("#status").inner_text()
    assert tab.locator("#slider img").count() == 0


@in_browser
def test_a_visitor_stops_and_another_waits(visit, tmp_path, photo, picture, server):
    write_picture(tmp_path / "wide.png", np.tile(photo[:100, :100], (10, 9, 1)))  # 16 tiles
    tab, other = visit(), visit()
    put(tab, tmp_path / "wide.png", "lapsrn-x2")
    put(other, picture, "lapsrn-x2")
    start(tab, " of 16")
    start(other, "In line")
    tab.locator("#stop").click()
    tab.locator("#status :text('Stopped.')").wait_for()
    other.locator("#status :text('128 x 100 pixels in')").wait_for()
    assert tab.locator("#status").inner_text() == "Stopped."
    assert list(downloads(other)) == ["photo_x2.png"]
    assert not downloads(tab)
    assert len(list(server[1].rglob("wide_x2.png"))) == 0
    start(tab)  # and it goes on
    assert list(downloads(tab)) == ["wide_x2.png"]


# ------------------------------------------------------------------ without a browser


def test_work_ends_where_nobody_waits():
    done = []

    def work(report):
        for number in range(1000):
            report(number=number)
            done.append(number)
            time.sleep(0.01)

    news = page.in_background(work)
    assert [next(news)["number"] for _ in range(3)] == [0, 1, 2]
    news.close()
    time.sleep(0.1)
    count = len(done)
    time.sleep(0.1)
    assert len(done) == count < 50
    assert [item["number"] for item in page.in_background(lambda report: report(number=7))] == [7]


def test_no_two_compute_at_once():
    began, go_on = [], threading.Event()

    def work(name):
        def run(report):
            began.append(name)
            report(name=name)
            go_on.wait(10)
            report(name=name)
        return run

    first, second = (page.in_background(work(name)) for name in "ab")
    assert next(first) == {"name": "a"}
    waiting = threading.Thread(target=next, args=(second,))
    waiting.start()
    time.sleep(0.1)
    assert began == ["a"]
    first.close()  # its visitor has gone, but it computes
    time.sleep(0.1)
    assert began == ["a"]
    go_on.set()
    waiting.join(10)
    assert began == ["a", "b"]


def test_the_square_without_choice_is_the_one_in_the_middle():
    assert page.cut((60, 90), 50, 50, 100) == (15, 0, 60)
    assert page.cut((60, 90), 100, 0, 50) == (60, 0, 30)
    assert page.cut((1, 5), 100, 100, 5) == (4, 0, 1)


def test_large_pictures_are_not_decoded(tmp_path, monkeypatch):
    write_picture(tmp_path / "a.png", np.zeros((30, 40, 3), "uint8"))
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((30, 40, 3), "float32"), photometric="rgb")  # not Pillow's
    for name in ("a.png", "a.tif"):
        assert isinstance(page.opened(tmp_path / name, 0.0012), Picture)
        with monkeypatch.context() as patch:
            patch.setattr(page, "read_picture", None)
            with pytest.raises(InputError, match=r"^40 x 30 are 0.0 megapixels, and .* up to 0.001 here"):
                page.opened(tmp_path / name, 0.001)


def test_every_network_has_its_place(tmp_path):
    examples = page.write_examples(tmp_path / "examples")
    names = {row[0] for row in upscale.shipped_networks()[1:]}
    assert {network for *_, network in examples} <= names
    assert all(read_picture(path).pixels.size for path, *_ in examples)
    assert page.build(tmp_path / "again", 4)
