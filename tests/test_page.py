"""page.py in a real browser, against the files that upscale.py writes."""

import contextlib
import inspect
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
from superres.datasets.degradations import imresize, imresize_clipped
from superres.datasets.pictures import Picture, read_picture, write_picture
from superres.errors import InputError
from superres.models.images import ImageUpscaler

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


class Bicubic(ImageUpscaler):
    name, scale, channels = "bicubic", 2, 3

    def reach(self):
        return 3

    def _run(self, lr, noise=None):
        return imresize(lr, 2)


class Drawing:
    """A network of one size that draws samples, a function of seed, temperature and rows."""

    lr_size, scale, channels, draws_samples = 8, 2, 3, True

    def sample(self, lr, temperature=1.0, seed=0, samples=1, rows=None):
        self.seen = lr
        rng = np.random.default_rng((seed, int(10 * temperature)))
        sr = rng.integers(0, 256, (samples, 1, 16, 16, 3), "uint8")
        sr[:, :, 16 if rows is None else rows :] = 128
        return sr

    def draw(self, picture, samples, crop=None, temperature=None, seed=None):
        return (Picture(sr[0]) for sr in self.sample(None, temperature, seed, samples))


@pytest.fixture
def blocks(tmp_path, monkeypatch):
    (tmp_path / "visitors").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "visitors"))
    monkeypatch.setattr(page, "loaded", lambda *chosen: Bicubic())
    return page.build(tmp_path / "examples", 4)


def function(blocks, name):
    return next(function.fn for function in blocks.fns.values() if function.name == name)


def test_no_result_outlives_its_use(blocks, tmp_path):
    run, kept = function(blocks, "run"), {*(tmp_path / "visitors").iterdir()}  # of the page itself
    write_picture(tmp_path / "a.png", np.zeros((20, 600, 3), "uint8"))
    (tmp_path / "bad.png").write_text("no picture")

    def start(found, name):
        return run(found, "pixels", str(tmp_path / name), "lapsrn-x2", "float32", 0, 0, 1, 50, 50, 100)

    def found(updates):
        return [value for update in updates for key, value in update.items()
                if isinstance(key, page.gr.State) and value]

    (one,) = found(start(None, "a.png"))
    (two,) = found(start(one, "a.png"))
    assert {*(tmp_path / "visitors").iterdir()} - kept == {two["folder"]} != {one["folder"]}
    assert not found(start(two, "bad.png"))
    assert {*(tmp_path / "visitors").iterdir()} == kept
    (state,) = [block for block in blocks.blocks.values() if isinstance(block, page.gr.State)]
    assert (state.time_to_live, blocks.delete_cache) == (3600, (600, 3600))
    (tmp_path / "gone").mkdir()
    state.delete_callback({"folder": tmp_path / "gone"})
    assert not (tmp_path / "gone").exists()


def test_the_network_is_loaded_as_chosen(monkeypatch):
    asked = []
    monkeypatch.setattr(page, "load", lambda *given: asked.append(given))
    monkeypatch.setattr(page, "chosen_precision", lambda precision: precision)
    page.loaded.__wrapped__("srgan-x2", "bfloat16", 0.5)
    page.loaded.__wrapped__("lapsrn-x2", "float32", 0)
    assert asked == [("srgan-x2", "bfloat16", "auto", 0.5, "srresnet-x2"),
                     ("lapsrn-x2", "float32", "auto", 0, "")]


def test_a_reason_names_no_folder_and_is_no_markup():
    assert page.bad(InputError("/tmp/x/a.png: no\n <b>"), "/tmp/x") == "<p class=bad>a.png: no &lt;b&gt;</p>"
    full = OSError(28, "No space left on device", "/tmp/y/a_x2.png")
    assert page.bad(full, "/tmp/y", "/tmp/x") == (
        "<p class=bad>[Errno 28] No space left on device: &#x27;a_x2.png&#x27;</p>")
    assert page.bad(InputError("drop a picture"), "/tmp/y", "") == "<p class=bad>drop a picture</p>"


def test_the_frame_is_the_square_that_is_drawn(blocks, tmp_path):
    write_picture(tmp_path / "p.png", np.zeros((60, 90, 3), "uint8"))
    image, _ = function(blocks, "preview")(str(tmp_path / "p.png"), "pixel_recursive-corners", 100, 0, 50)
    rows, columns = np.nonzero((np.asarray(image.convert("RGB")) == (0xF9, 0x73, 0x16)).all(-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 29, 60, 89)


def test_rows_are_those_of_the_samples_to_come(tmp_path):
    news, whole = [], Drawing().sample(None, 0.6, 3, 4)[:, 0]
    page.upscaled(lambda **item: news.append(item), tmp_path, Picture(np.zeros((8, 8, 3), "uint8")), "a",
                  Drawing(), 3, 0.6, 50, 50, 100)
    parts = [item["drawn"][:, ::24, ::24] for item in news if "drawn" in item]
    assert len(parts) == 8
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(part[:, : 2 * i], whole[:, : 2 * i])


def test_what_alpha_hides_is_not_drawn(tmp_path):
    pixels, alpha = np.full((16, 16, 3), 200, "uint8"), np.full((16, 16, 1), 255, "uint8")
    pixels[:8], alpha[:8] = 0, 0
    network = Drawing()
    seen = []
    page.upscaled(lambda **item: "drawn" in item and seen.append(network.seen), tmp_path,
                  Picture(pixels, alpha), "a", network, 0, 1.0, 50, 50, 100)
    assert len(seen) == 8
    assert (np.array(seen) == 200).all()


def test_what_is_said_of_a_network_fits_its_training(blocks):
    for name in ("lapsrn-x2-realworld", "lapsrn-x4-reported"):
        assert "a blur that nobody knows" in function(blocks, "choose")(name)[0]
    for name in ("lapsrn-x4", "srgan-x2-reported", "srmap-x4"):
        assert "shrunk by bicubic interpolation, sharp at its size" in function(blocks, "choose")(name)[0]


def test_the_page_is_for_this_machine_alone_unless_told():
    assert inspect.signature(page.main).parameters["host"].default == "127.0.0.1"
