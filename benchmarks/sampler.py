"""Drawing speed of `models.sampler.Sampler` against one network call for every sub-pixel.

    python benchmarks/sampler.py
    python benchmarks/sampler.py --model runs/pixel_recursive/improved/model.keras

The rival is `NaiveSampler`'s loop, compiled, timed for some sub-pixels only: each costs the
same, so the whole picture's time is the mean times the number of sub-pixels. It is spared
what it does not need: only the one sub-pixel is drawn from the logits. All take turns.
Every batch size is a process of its own, whose peak resident memory is read before the rival
starts. Each run also checks that both draw the same pictures from the same noise.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import dataclasses
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from common import interleaved, peak_functions, randomise, resident, save, table
from keras import ops

import superres.models.sampler
from superres.errors import InputError
from superres.layers import GatedPixelCNNBlock
from superres.models.pixel_recursive import conditioning_network, pixel_recursive, prior_network
from superres.models.sampler import Sampler, draw
from superres.models.upscaler import load

PUBLISHED = {
    "source": "Ramachandran et al. 2017, cached against naive PixelCNN++",
    "speedup": {"1": 2, "32": 33, "256": 183},
}
LOGITS_GOAL = 1e-4
# Further than this from a border between two levels, another draw is no rounding error.
NEAR_TIE = 1e-3


@dataclasses.dataclass
class Network:
    """Which network draws: the file `model`, or the `reported` preset's with random weights."""

    model: str
    size: int
    filters: int
    blocks: int
    head: int

    def load(self):
        if self.model:
            network = load(self.model)
            if len(network.inputs) == 1:
                raise InputError(f"{self.model}: has no prior network: nothing is drawn one by one")
            return network
        keras.utils.set_random_seed(0)
        network = pixel_recursive(
            conditioning_network(self.size, filters=self.filters, blocks=min(6, self.blocks)),
            prior_network(4 * self.size, filters=self.filters, blocks=self.blocks, head=self.head),
        )
        randomise(network)
        return network


def inputs_of(network, batch, seed=0):
    """[lr, noise, temperature] of a batch, as `Sampler` takes them."""
    rng = np.random.default_rng(seed)
    lr = rng.random((batch, *network.input_shape[0][1:]), "float32")
    return [lr, rng.random((batch, *network.input_shape[1][1:]), "float32"), np.ones(batch, "float32")]


def naive_loop(network, jit_compile):
    """Compiled function (lr, noise, temperature, count): `NaiveSampler`, for `count` sub-pixels."""
    _, height, width, channels, levels = network.output_shape[0]
    order = np.arange(height * width * channels).reshape(1, height, width, channels)

    @tf.function(jit_compile=jit_compile)
    def loop(lr, noise, temperature, count):
        def step(i, hr):
            a, b = network([lr, hr], training=False)
            y, x, c = i // (width * channels), i // channels % width, i % channels
            level = draw(a[:, y, x, c] + b[:, y, x, c], noise[:, y, x, c], temperature)
            value = ops.cast(level, "float32")[:, None, None, None] / (levels - 1)
            return ops.where(ops.equal(order, i), value, hr)

        return ops.fori_loop(0, count, step, ops.zeros_like(noise))

    return loop


def faster_naive(network, inputs):
    """(name, function of count) of the naive loop that two steps show to be the faster here."""
    inputs, best = [tf.constant(x) for x in inputs], None
    for name, jit_compile in (("xla", True), ("graph", False)):
        loop = naive_loop(network, jit_compile)

        def run(count, loop=loop):
            return loop(*inputs, tf.constant(count)).numpy()

        run(1)
        start = time.perf_counter()
        run(2)
        seconds = time.perf_counter() - start
        if best is None or seconds < best[0]:
            best = seconds, name, run
    return best[1:]


def logits_of(network, lr, picture, chunk=32):
    """The model's logits at every sub-pixel, by one call of the whole network: (B, H, W, C, levels)."""
    hr = picture.astype("float32") / np.float32(network.output_shape[0][-1] - 1)
    return np.concatenate([
        np.add(*network.predict_on_batch([lr[i : i + chunk], hr[i : i + chunk]]))
        for i in range(0, len(lr), chunk)
    ])


def flips(network, inputs, picture):
    """Where the naive sampler, shown the picture's earlier sub-pixels, draws another level.

    Returns:
        For each such sub-pixel, how far its noise is from the nearest border between two
        levels, as a probability.
    """
    lr, noise, temperature = inputs
    margins = []
    for i in range(0, len(lr), 8):
        logits = logits_of(network, lr[i : i + 8], picture[i : i + 8])
        levels = draw(logits, noise[i : i + 8], temperature[i : i + 8, None, None, None])
        other = ops.convert_to_numpy(levels) != picture[i : i + 8]
        weights = np.exp(logits[other].astype("float64") - logits[other].max(-1, keepdims=True))
        below = np.cumsum(weights, -1) / weights.sum(-1, keepdims=True)
        margins += np.abs(below - noise[i : i + 8][other][:, None]).min(-1).tolist()
    return margins


class Recorder(Sampler):
    """`Sampler` that keeps the logits it draws from, in `kept`: (sub-pixels, B, levels)."""

    def __init__(self, network, batch, **kwargs):
        super().__init__(network, **kwargs)
        *size, levels = network.output_shape[0][1:]
        self.kept = tf.Variable(tf.zeros((np.prod(size), batch, levels)), trainable=False)
        self.drawn = tf.Variable(0, trainable=False)

    def call(self, inputs):
        def record(logits, noise, temperature):
            self.kept.scatter_nd_update([[self.drawn]], logits[None])
            self.drawn.assign_add(1)
            return draw(logits, noise, temperature)

        with mock.patch.object(superres.models.sampler, "draw", record):
            return super().call(inputs)


def logits_check(setup, batch):
    """The cached logits of a drawn picture against those of the whole network for that picture."""
    network = setup.load()
    inputs = inputs_of(network, batch)
    recorder = Recorder(network, batch)
    picture = recorder.predict_on_batch(inputs)
    if recorder.drawn.numpy() != picture[0].size:
        raise SystemExit(f"{recorder.drawn.numpy()} draws for {picture[0].size} sub-pixels")
    expected = logits_of(network, inputs[0], picture)
    kept = np.moveaxis(recorder.kept.numpy(), 1, 0).reshape(expected.shape)
    return {"pictures": batch, "max_difference": float(np.abs(kept - expected).max()),
            "largest_logit": float(np.abs(expected).max()), "goal": LOGITS_GOAL}


def multiply_adds(network, opened=True):
    """Multiplications and additions of a `pixel_recursive` network.

    Args:
        opened: Leave out weights that a mask closes: a sampler need not compute with them.

    Returns:
        Dict: `conditioning` of a whole LR picture, `vertical` and `horizontal` (head
        included) of the prior network for one HR pixel. One weight is used once a pixel,
        so the last two are numbers of weights too.
    """
    conditioning, prior = network.get_layer("conditioning"), network.get_layer("prior")
    total = 0
    for layer in conditioning.layers:
        for part in layer._flatten_layers():  # SPADE blocks hold convolutions
            if hasattr(part, "kernel_size"):
                # A transposed convolution uses its kernel once for every pixel it reads.
                transposed = isinstance(part, keras.layers.Conv2DTranspose)
                _, height, width, _ = (layer.input if transposed else layer.output).shape
                total += height * width * int(np.prod(part.kernel.shape))

    def count(kernel, mask):
        return int(mask.sum() if opened else np.prod(kernel.shape))

    blocks = [layer for layer in prior.layers if isinstance(layer, GatedPixelCNNBlock)]
    horizontal = sum(count(block.horizontal_kernel, block._horizontal_mask)
                     + count(block.output_kernel, block._output_mask) for block in blocks)
    horizontal += sum(count(layer.kernel, layer._mask) for layer in map(prior.get_layer, ("head", "last")))
    vertical = sum(int(np.prod(kernel.shape)) for block in blocks for kernel in block.weights
                   if kernel.name in ("vertical_kernel", "across_kernel", "condition_kernel"))
    return {"conditioning": total, "vertical": vertical, "horizontal": horizontal}


def reader(size, total):
    """(function, bytes): reads an array of `size` bytes as often as makes `total`, as products
    of a matrix and a vector read weights."""
    matrix = np.ones((max(1, size // 4096), 1024), "float32")
    vector, times = np.ones(1024, "float32"), max(1, total // matrix.nbytes)

    def read():
        for _ in range(times):
            matrix @ vector

    return read, times * matrix.nbytes


def measure(setup, batch, rounds, naive_steps):
    """The row of one batch size. To be called in a fresh process."""
    network = setup.load()
    inputs = inputs_of(network, batch)
    _, height, width, channels, _ = network.output_shape[0]
    subpixels, pixels = height * width * channels, height * width
    naive_steps = min(naive_steps, subpixels)
    work = multiply_adds(network)

    sampler, graph = Sampler(network), Sampler(network, jit_compile=False)
    start = time.perf_counter()
    sampler.sample(inputs[0], batch=batch)
    first = time.perf_counter() - start
    peak = resident()
    picture = sampler.predict_on_batch(inputs)

    engine, naive = faster_naive(network, inputs)
    matmul, flop = peak_functions()["matmul float32"]
    weights = 4 * work["horizontal"]
    cache, cache_bytes = reader(weights, 2**30)
    memory, memory_bytes = reader(2**28, 2**28)
    times = interleaved({
        "sampler": lambda: sampler.sample(inputs[0], batch=batch),
        "graph": lambda: graph.predict_on_batch(inputs),
        "naive": lambda: naive(naive_steps),
        "matmul": matmul, "cache": cache, "memory": memory,
    }, rounds)
    seconds = times["sampler"]["median"]
    naive_seconds = times["naive"]["median"] * subpixels / naive_steps

    margins = flips(network, inputs, picture)
    if max(margins, default=0) > NEAR_TIE:
        raise SystemExit(f"batch {batch}: a draw differs, {max(margins):.1e} from the nearest border")
    # What is needed at least: each open weight of the prior network once for every pixel.
    arithmetic = work["conditioning"] + pixels * (work["vertical"] + work["horizontal"])
    rates = {
        "matmul_gflop_per_second": flop / times["matmul"]["min"] / 1e9,
        "cache_gb_per_second": cache_bytes / times["cache"]["min"] / 1e9,
        "memory_gb_per_second": memory_bytes / times["memory"]["min"] / 1e9,
    }
    return {
        "batch": batch, "seconds": seconds, "seconds_min": times["sampler"]["min"],
        "seconds_per_picture": seconds / batch, "graph_seconds": times["graph"]["median"],
        "compile_seconds": first - seconds, "naive_seconds": naive_seconds,
        "naive_timed_steps": naive_steps, "naive_timed_seconds": times["naive"]["median"],
        "naive_engine": engine, "speedup": naive_seconds / seconds, "peak_memory_mib": peak,
        **rates,
        "pixels": pixels, "draws": batch * subpixels, "flips": len(margins),
        "flip_margins": sorted(margins, reverse=True),
        "multiply_adds_per_picture": arithmetic, "weight_bytes_per_pixel": weights,
    }


def with_floors(rows):
    """Add to each row the least that the machine would need; returns the rates and counts behind it.

    The rates are the best of all rows: a single one may have been disturbed.
    """
    best = {rate: max(row[rate] for row in rows) for rate in rows[0] if rate.endswith("_per_second")}
    arithmetic, weights, pixels = (
        rows[0][key] for key in ("multiply_adds_per_picture", "weight_bytes_per_pixel", "pixels"))
    floor = {
        **best, "multiply_adds_per_picture": arithmetic, "weight_bytes_per_pixel": weights,
        "arithmetic_seconds_per_picture": 2 * arithmetic / best["matmul_gflop_per_second"] / 1e9,
        # The weights are few enough to stay in a cache; from main memory it would take longer.
        "reading_seconds": pixels * weights / best["cache_gb_per_second"] / 1e9,
        "main_memory_seconds": pixels * weights / best["memory_gb_per_second"] / 1e9,
    }
    for row in rows:
        row["arithmetic_floor_seconds"] = row["batch"] * floor["arithmetic_seconds_per_picture"]
        row["bandwidth_floor_seconds"] = floor["reading_seconds"]
        largest = max(row["arithmetic_floor_seconds"], row["bandwidth_floor_seconds"])
        row["of_floor"] = largest / row["seconds"]
    return floor


def main(
    model: str = "",
    batches: tuple[int, ...] = (1, 32, 128),
    rounds: int = 3,
    naive_steps: int = 16,
    checked: int = 4,
    size: int = 8,
    filters: int = 32,
    blocks: int = 20,
    head: int = 1024,
    json: str = "sampler",
):
    """Drawing speed of the cached sampler against one network call for every sub-pixel.

    Args:
        model: The trained network (.keras) to draw from, rather than one with random weights.
        batches: Pictures drawn at a time.
        rounds: How often everything is timed.
        naive_steps: Sub-pixels that the naive loop draws in a timed call.
        checked: Pictures whose cached logits are compared.
        size: Without a model: height and width of LR; HR's are four times as large.
        filters: Without a model: channels of both networks.
        blocks: Without a model: gated blocks of the prior network.
        head: Without a model: channels of its 1x1 convolution before the last.
        json: Name of the result file in benchmarks/results.
    """
    network = Network(model, size, filters, blocks, head)

    def alone(function, *arguments):
        # A fresh process, which starts with nothing of this one's memory.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(function, *arguments).result()

    check = alone(logits_check, network, checked)
    print(f"logits of {check['pictures']} pictures, as large as {check['largest_logit']:.1f}, agree to "
          f"{check['max_difference']:.1e} (goal {LOGITS_GOAL:.0e})")
    rows = [alone(measure, network, batch, rounds, naive_steps) for batch in batches]
    floor = with_floors(rows)
    print(table(rows, {
        "batch": "d", "seconds": ".3f", "seconds_per_picture": ".4f", "naive_seconds": ".1f",
        "naive_engine": "", "speedup": ".1f", "graph_seconds": ".3f", "compile_seconds": ".1f",
        "peak_memory_mib": ".0f", "of_floor": ".1%", "flips": "d",
    }))
    print(f"naive_seconds is extrapolated from {rows[0]['naive_timed_steps']} of "
          f"{rows[0]['draws'] // rows[0]['batch']} sub-pixels")
    for row in rows:
        print(f"batch {row['batch']}: floors {row['arithmetic_floor_seconds']:.4f} s of arithmetic, "
              f"{row['bandwidth_floor_seconds']:.4f} s of reading weights; {row['flips']} of "
              f"{row['draws']} draws flip, at most {max(row['flip_margins'], default=0):.1e} from a border")
    save(json, rows, network=dataclasses.asdict(network), logits=check, floor=floor, published=PUBLISHED,
         goals=[f"logits.max_difference <= {LOGITS_GOAL:.0e}",
                f"every flip within {NEAR_TIE:.0e} of a border between levels"])


if __name__ == "__main__":
    command(main)
