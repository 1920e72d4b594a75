"""A page on which the shipped networks are tried: a picture before and after, under a slider.

    python page.py
    python page.py --host 0.0.0.0 --port 8080 --megapixels 64

Needs Gradio (`make page` installs it and starts the page). What is downloaded is the file that
upscale.py writes. Pictures are computed one at a time; visitors share nothing but the networks,
which stay loaded. Uploads and results lie in a temporary folder, for an hour at most, and the
folder goes when the program ends.
"""

import functools
import html
import itertools
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import ImageDraw

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
try:
    import gradio as gr
except ImportError as error:
    sys.exit(f"error: needs Gradio, pip install 'gradio>=6,<7' ({error})")

from superres.command_line import command
from superres.datasets import catalogue
from superres.datasets.degradations import imresize, imresize_clipped, mod_crop
from superres.datasets.pictures import (
    Picture,
    as_image,
    fill_invisible,
    read_picture,
    size_of,
    write_picture,
)
from superres.datasets.thumbnails import thumbnail
from superres.errors import InputError, check_range
from superres.models.engine import load
from superres.models.images import TILE, ImageUpscaler
from superres.precision import chosen_precision, native_precision
from superres.upscale import results, sample_paths, shipped_networks, stochasticity_map

SAMPLES = 4  # of networks that draw them
KEPT = 3600  # seconds that a visitor's files are kept
SHOWN = 384  # pixels that a thumbnail is shown at

# What a network expects, by a part of its name or figure; the first counts.
EXPECTS = {
    "random kernels": "It expects a photograph with a blur that nobody knows, as cameras and messengers "
                      "leave it, and takes it away. Pictures shrunk by bicubic interpolation want another "
                      "network.",
    "corners": "It knows nothing but digits of 8 x 8 pixels: take the example.",
    "celeba": "It sees 8 x 8 pixels of the square, and expects a face there as in CelebA's pictures: the "
              "whole of it, in the middle, with some hair. Whatever else it is given, it makes a face of it.",
    "x": "It expects a picture that was shrunk by bicubic interpolation, sharp at its size. In a photograph "
         "with a blur of its own it enlarges the blur, too: take a realworld network for that."}

CSS = """
#status {min-height: 3em} #status p {margin: 0 0 .4em} #status .bad {color: #dc2626; font-weight: 600}
#status progress {width: 100%; accent-color: var(--color-accent)}
.grid-wrap {height: auto !important; min-height: 0 !important}
.grid-container {grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)) !important;
                 padding-top: 1.8em}
"""


ONE_AT_A_TIME = threading.Lock()


class Left(Exception):
    """Nobody waits for the result any more."""


def in_background(work: Callable[[Callable], None]) -> Iterator[dict]:
    """Yield the keywords that `work(report)` reports, as it does so.

    Where the iterator is closed, as for a visitor who stops or goes, the next report ends the work.
    """
    reports, left = queue.SimpleQueue(), threading.Event()

    def report(**news):
        if left.is_set():
            raise Left
        reports.put(news)

    def run():
        try:
            with ONE_AT_A_TIME:  # one whose visitor has gone may still be on its way to its next report
                if not left.is_set():
                    work(report)
        except Left:
            pass
        finally:
            reports.put(None)

    threading.Thread(target=run, daemon=True).start()
    try:
        yield from iter(reports.get, None)
    finally:
        left.set()


@functools.lru_cache(maxsize=4)
def loaded(name: str, precision: str, blend: float) -> ImageUpscaler:
    """A shipped network, or an SRGAN's blend with the network before its adversarial training."""
    other = name.replace("srgan", "srresnet") if blend else ""
    return load(name, chosen_precision(precision), "auto", blend, other)


def opened(path: str | None, megapixels: float) -> Picture:
    """The picture of a file, or the first frame of an animation.

    Raises:
        InputError: if it cannot be read, or has more pixels, which is found out before they are decoded.
    """
    if not path:
        raise InputError("drop a picture first, or take an example")
    width, height = size_of(path)
    if width * height > megapixels * 1e6:
        raise InputError(f"{width} x {height} are {width * height / 1e6:.1f} megapixels, and this network "
                         f"takes up to {megapixels:g} here: shrink or crop it, or use upscale.py")
    return read_picture(path)


def cut(size: tuple[int, int], across: float, down: float, share: float) -> tuple[int, int, int]:
    """(left, top, side) of a square in a picture of (height, width): per cent of its room and of its side."""
    side = max(1, round(min(size) * share / 100))
    return int((size[1] - side) * across / 100), int((size[0] - side) * down / 100), side


def enlarged(planes: np.ndarray, factor: int, axis: int = 0) -> np.ndarray:
    """Every pixel as a square of so many; `axis` is that of the rows."""
    return planes.repeat(factor, axis).repeat(factor, axis + 1)


def bar(text: str, share: float | None = None) -> str:
    """A line of text above a bar, which goes to and fro where the share of the work is not known."""
    return f"<p>{text}</p><progress {'' if share is None else f'value={share:.3f}'}></progress>"


def bad(error: Exception, *folders: Path | str) -> str:
    """Why there is no result, in one line, without these folders of the server's."""
    if isinstance(error, MemoryError):
        error = "not enough memory for this picture"
    elif not isinstance(error, (InputError, OSError)):
        traceback.print_exception(error)
        error = "an error of the program's own, which its log describes"
    reason = " ".join(str(error).split())
    for folder in filter(None, folders):
        reason = reason.replace(f"{folder}/", "")
    return f"<p class=bad>{html.escape(reason)}</p>"


def write_examples(folder: Path) -> list[tuple[str, str, str]]:
    """Make the example pictures: (file, what it is, a network for it)."""
    photos = {photo.name: photo.hr for photo in catalogue.load("photos", "test")}
    plate, digit = (next(catalogue.load(source, "test")) for source in ("plates", "corners"))
    examples = [
        ("astronaut", "lapsrn-x4", photos["astronaut"], 4), ("coffee", "srgan-x4", photos["coffee"], 4),
        ("camera", "lapsrn-x2", photos["camera"], 2), ("cat", "srmap-x4", photos["chelsea"], 4),
        ("unshrunk", "lapsrn-x2-realworld", photos["chelsea"], 1), ("plate", "lapsrn-x4", plate.hr, 2),
        ("face", "pixel_recursive-celeba", photos["astronaut"][30:190, 142:302], 1),
        ("digit", "pixel_recursive-corners", digit.lr, 1)]
    folder.mkdir()
    for name, _, hr, factor in examples:
        lr = imresize(mod_crop(hr, factor), 1 / factor) if factor > 1 else hr
        write_picture(folder / f"{name}.png", lr)
    return [(str(folder / f"{name}.png"), name, network) for name, network, *_ in examples]


def upscaled(report: Callable, folder: Path, picture: Picture, stem: str, network: ImageUpscaler, seed: float,
             temperature: float, *square: float) -> None:
    """Upscale a picture into a folder; report `status`, the samples `drawn` so far, and at last `found`.

    That is a dict: `folder`; `before`, by name what can stand on the left of the slider; `after`, what
    stands on its right for each sample; `files`, to download; `shown`, which sample it is.
    """
    samples = SAMPLES if network.draws_samples else None
    noise = {"temperature": temperature, "seed": int(seed or 0)} if samples else {}
    lr, factor = picture, 1  # what the network sees, and how much larger than it is a pixel is shown
    if network.lr_size:
        left, top, side = cut(picture.pixels.shape[:2], *square)
        picture = Picture(fill_invisible(picture).pixels[top : top + side, left : left + side])
        lr = Picture(thumbnail(picture.pixels, network.lr_size, network.channels))
        rows = network.lr_size * network.scale
        factor = SHOWN // rows
        for row in range(0, rows, 2) if samples else ():  # the same samples, as far as there
            drawn = network.sample(lr.pixels[None], samples=samples, rows=row, **noise)[:, 0]
            report(status=bar(f"Row {row} of {rows}", row / rows), drawn=enlarged(drawn, factor, 1))
    height, width = lr.pixels.shape[:2]
    tiles, done = (samples or 1) * -(-height // TILE) * -(-width // TILE), itertools.count(1)

    def tile(pixels=0):
        number = next(done)
        report(status=bar(f"Tile {number} of {tiles}", number / tiles))

    files = sample_paths(folder / f"{stem}_x{network.scale}.png", samples)
    made, seconds, start = [], 0, time.perf_counter()
    for file, frames in zip(files, results(network, lambda: iter([picture]), samples, tile=TILE,
                                            progress=tile, **noise),
                            strict=True):
        made += frames
        seconds += time.perf_counter() - start
        write_picture(file, made[-1])
        start = time.perf_counter()
    if samples and not network.lr_size:
        files.append(folder / f"{stem}_x{network.scale}_std.png")
        made.append(Picture(stochasticity_map([sr.pixels for sr in made])))
        write_picture(files[-1], made[-1])

    def shown(name, picture, factor=factor):
        write_picture(folder / name, picture.each(lambda planes: enlarged(planes, factor)))
        return str(folder / name)

    bicubic = lr.each(lambda planes: imresize_clipped(planes, network.scale))
    before = {"bicubic": shown("bicubic.png", bicubic),
              "pixels": shown("pixels.png", lr, network.scale * factor)}
    after = [str(file) if factor == 1 else shown(f"large_{file.name}", sr)
             for file, sr in zip(files, made, strict=True)]
    size = "{} x {} to {} x {} pixels".format(width, height, *made[0].pixels.shape[1::-1])
    report(status=f"<p>{size} in {seconds:.1f} s</p>", found={
        "folder": folder, "before": before, "after": after, "files": [*map(str, files)], "shown": 0})


def build(folder: Path, megapixels: float) -> gr.Blocks:
    """The page.

    Args:
        folder: For the examples.
        megapixels: Of the largest result.
    """
    networks = {name: (scale, what, figure) for name, scale, what, figure in shipped_networks()[1:]}
    examples = write_examples(folder)

    def limit(name):
        scale = networks[name][0]
        return megapixels / (int(scale[1:]) ** 2 if scale[0] == "x" else 1)

    def choose(name):
        """What there is to know and to choose of a network."""
        scale, what, figure = networks[name]
        recursive, noisy = name.startswith("pixel"), name in ("srmap-x4", "srmap-x4-reported")
        expects = next(text for part, text in EXPECTS.items() if part in f"{name} {figure}")
        return [f"**{scale}, {what.replace(', --crop face', '')}.** {expects} {figure and figure + '.'}",
                gr.update(visible=name in ("srgan-x2", "srgan-x4"), value=0),
                gr.update(visible=recursive),
                gr.update(visible=noisy or (recursive and "regression" not in name)),
                gr.update(value=0.5 if noisy else 1, info="Strength of the noise; at 1 the most texture"
                          if noisy else "1 is what the network learned; above it, samples vary less")]

    def preview(path, name, *square):
        if not path:
            return None, ""
        try:
            image = as_image(opened(path, limit(name))).convert("RGBA")
        except Exception as error:
            return None, bad(error, os.path.dirname(path))
        if name.startswith("pixel"):
            left, top, side = cut(image.size[::-1], *square)
            ImageDraw.Draw(image).rectangle((left, top, left + side - 1, top + side - 1), outline="#f97316",
                                            width=max(1, min(image.size) // 80))
        image.thumbnail((1024, 1024))
        return image, ""

    def run(found, how, path, name, precision, blend, *options):
        forget(found)
        folder = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]))

        def work(report):
            try:
                picture = opened(path, limit(name))
                report(status=bar(f"Loading {name}"))
                network = loaded(name, precision, round(blend, 1))
                upscaled(report, folder, picture, Path(path).stem, network, *options)
            except BaseException as error:
                if isinstance(error, Left):
                    raise
                report(status=bad(error, folder, os.path.dirname(path or "")))

        yield {result: None, slider: None, drawing: gr.update(value=None, visible=False),
               files: gr.update(value=None, visible=False)}
        found = None
        try:
            for news in in_background(work):
                update = {status: news["status"]}
                if "drawn" in news:
                    drawn = [as_image(Picture(sr)) for sr in news["drawn"]]
                    update[drawing] = gr.update(value=drawn, visible=True, columns=SAMPLES)
                if found := news.get("found"):
                    many = len(found["after"])
                    update |= {result: found, slider: show(found, how),
                               drawing: gr.update(value=found["after"], visible=many > 1, columns=many),
                               files: gr.update(value=found["files"], visible=True)}
                yield update
        finally:
            if not found:  # it failed, or nobody waits for it
                shutil.rmtree(folder, ignore_errors=True)

    def forget(found):
        if found:
            shutil.rmtree(found["folder"], ignore_errors=True)

    def show(found, how):
        return found and (found["before"][how], found["after"][found["shown"]])

    def pick(found: dict | None, how: str, event: gr.SelectData):
        found = found and {**found, "shown": event.index}
        return found, show(found, how)

    def take(event: gr.SelectData):
        path, _, network = examples[event.index]
        return path, network

    def switch(running):
        return gr.update(visible=not running), gr.update(visible=running)

    with gr.Blocks(title="Super-resolution", delete_cache=(600, KEPT)) as page:
        result = gr.State(None, time_to_live=KEPT, delete_callback=forget)
        gr.Markdown("# Super-resolution\nDrop a picture or take an example, choose a network.")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                file = gr.File(label="Picture", elem_id="file", height=120)
                gallery = gr.Gallery([example[:2] for example in examples], label="Examples", columns=4,
                                     height="auto", allow_preview=False, buttons=[], elem_id="examples")
                name = gr.Dropdown(list(networks), value="lapsrn-x4", label="Network", elem_id="network")
                about = gr.Markdown(choose("lapsrn-x4")[0])
                fast = "does" if native_precision() == "mixed_bfloat16" else "does not"
                precision = gr.Radio(["float32", "bfloat16"], value="float32", label="Precision", info=(
                    f"bfloat16 is faster where a processor has it, as this {fast}; loses hundredths of a dB"))
                blend = gr.Slider(0, 1, 0, step=0.1, visible=False, label="From sharpness to PSNR", info=(
                    "0: after adversarial training, 1: before it, between: a blend"), elem_id="blend")
                with gr.Column(visible=False) as cutting:
                    seen = gr.Image(label="The square that is drawn", interactive=False, buttons=[],
                                    format="png", height=240)
                    with gr.Group():
                        square = [gr.Slider(low, 100, at, step=1, label=f"{way} (%)", elem_id=way)
                                  for low, at, way in [(0, 50, "Across"), (0, 50, "Down"), (5, 100, "Size")]]
                with gr.Group(visible=False) as noise:
                    seed = gr.Number(0, label="Seed", info="Another draws other samples", precision=0,
                                     minimum=0, maximum=2**31 - SAMPLES, elem_id="seed")
                    temperature = gr.Slider(0, 2, 1, step=0.1, label="Temperature", elem_id="temperature")
                start = gr.Button("Upscale", variant="primary", elem_id="start")
                stop = gr.Button("Stop", elem_id="stop", visible=False)
            with gr.Column(scale=3, min_width=320):
                status = gr.HTML(elem_id="status")
                slider = gr.ImageSlider(label="Before and after", type="filepath", interactive=False,
                                        max_height=640, buttons=["fullscreen"], elem_id="slider")
                how = gr.Radio([("the input's pixels", "pixels"), ("bicubic interpolation", "bicubic")],
                               value="pixels", label="Left side")
                drawing = gr.Gallery(label="Samples: a click shows one above", visible=False, height="auto",
                                     format="png", allow_preview=False, buttons=[], elem_id="samples")
                files = gr.File(label="Download, in full quality", visible=False, interactive=False,
                                elem_id="download")

        on = functools.partial(gr.on, show_progress="hidden")
        on(name.change, choose, name, [about, blend, cutting, noise, temperature])
        on([file.change, name.change, *(part.release for part in square)], preview, [file, name, *square],
           [seen, status])
        on(gallery.select, take, None, [file, name])
        running = on(start.click, lambda: (bar("In line"), *switch(True)), None, [status, start, stop],
                     queue=False).then(
            run, [result, how, file, name, precision, blend, seed, temperature, *square],
            [status, slider, drawing, files, result], show_progress="hidden")
        running.then(lambda: switch(False), None, [start, stop], queue=False)
        on(stop.click, lambda: ("<p>Stopped.</p>", *switch(False)), None, [status, start, stop],
           cancels=running, queue=False)
        on(how.change, show, [result, how], slider)
        on(drawing.select, pick, [result, how], [result, slider])
    return page.queue(max_size=20)


def main(host: str = "127.0.0.1", port: int = 7860, megapixels: float = 32) -> None:
    """A page on which the shipped networks are tried.

    Args:
        host: The address it is served at; 0.0.0.0 serves everybody who reaches this machine.
        port: The port.
        megapixels: Of the largest result; a picture may have a sixteenth for networks x4, a quarter for x2.
    """
    check_range({"port": port}, least=1, below=2**16)
    check_range({"megapixels": megapixels}, least=0.01)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the folder is deleted
    with tempfile.TemporaryDirectory(prefix="superres_page_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = f"{folder}/visitors"
        Path(folder, "visitors").mkdir()
        gr.set_static_paths(f"{folder}/examples")
        build(Path(folder, "examples"), megapixels).launch(
            server_name=host, server_port=port, css=CSS, theme=gr.themes.Default(font="system-ui"),
            max_file_size="100mb", footer_links=[], run_history=False, enable_monitoring=False)


def cli() -> None:
    command(main)


if __name__ == "__main__":
    cli()
