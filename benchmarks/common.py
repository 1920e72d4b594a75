"""What the benchmarks share: the machine, fair timing, tables, and the result files."""

import datetime
import gc
import importlib.metadata
import json
import os
import platform
import re
import statistics
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from superres.precision import native_precision, processor_flags

RESULTS = Path(__file__).parent / "results"
FEATURES = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # of x86 processors, the fastest first
PACKAGES = ("keras", "tensorflow", "openvino", "torch", "numpy", "scipy", "pillow",
            "opencv-contrib-python-headless")


def machine():
    """Processor, the cores this process may use, memory in GiB, and GPUs by name."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
                 if line.startswith("model name")]
        cpu = names[0] if names else cpu
    flags = processor_flags()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
            for gpu in tf.config.list_physical_devices("GPU")]
    return {"cpu": cpu, "features": [feature for feature in FEATURES if feature in flags],
            "held_to": os.environ.get("ONEDNN_MAX_CPU_ISA"), "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(memory, 1), "gpus": gpus}


def processor_kind():
    """The best instructions that the processor has, or is held to: the folder of its results."""
    held = os.environ.get("ONEDNN_MAX_CPU_ISA")
    found = machine()["features"]
    return f"held-to-{held.lower()}" if held else found[0] if found else platform.machine()


def native(engines):
    """The engines of a dict, but those in bfloat16 only where the machine has it, and may use it."""
    has = native_precision() == "mixed_bfloat16" and os.environ.get("ONEDNN_MAX_CPU_ISA") != "AVX2"
    return {name: engine for name, engine in engines.items() if has or "bfloat16" not in name}


def versions():
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def interleaved(functions, rounds):
    """Time functions in turn, so that a slow moment of the machine meets them all.

    Args:
        functions: Dict of name -> function without arguments.
        rounds: How often each is timed, after one call that is not (it compiles).

    Returns:
        Dict of name -> {"median": seconds, "min": seconds}.
    """
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            gc.collect()
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: {"median": statistics.median(s), "min": min(s)} for name, s in seconds.items()}


def peak_functions():
    """What the machine can do at best in TensorFlow: dict of name -> (function, FLOP).

    A convolution 3x3, 64 -> 64 channels, of 640 x 360 pixels, and a product of two
    matrices of 2048 x 2048, each in float32 and bfloat16.
    """
    functions = {}
    for dtype in ("float32", "bfloat16"):
        features, kernel, matrix = (
            tf.cast(tf.random.stateless_normal(shape, seed=(0, 0)), dtype)
            for shape in ((1, 360, 640, 64), (3, 3, 64, 64), (2048, 2048))
        )
        conv = tf.function(lambda x, k: tf.nn.conv2d(x, k, 1, "SAME"))
        product = tf.function(tf.matmul)
        # Reading one value back waits for the whole, on a GPU too.
        functions[f"conv {dtype}"] = (
            lambda f=conv, x=features, k=kernel: f(x, k)[0, 0, 0, 0].numpy(), 2 * 9 * 64 * 64 * 640 * 360
        )
        functions[f"matmul {dtype}"] = (lambda f=product, m=matrix: f(m, m)[0, 0].numpy(), 2 * 2048**3)
    return native(functions)


def flop(network, height, width):
    """FLOP of all convolutions of a network for one picture, two a multiplication and addition."""
    import keras

    layers = [layer for layer in network.layers if hasattr(layer, "kernel_size")]
    parts = keras.Model(network.inputs, [layer.output for layer in layers])
    shapes = parts.compute_output_shape((1, height, width, network.input_shape[-1]))
    # A pixel shuffle keeps the number of values, so this holds for sub-pixel convolutions.
    return sum(2 * int(np.prod(layer.kernel.shape[:3])) * int(np.prod(shape))
               for layer, shape in zip(layers, shapes, strict=True))


def randomise(network, seed=0):
    """Add noise to all weights: zero-initialised layers would hide what does not agree."""
    rng = np.random.default_rng(seed)
    network.set_weights([w + rng.normal(0, 0.01, w.shape).astype("float32") for w in network.get_weights()])


def keras_trainer(trainer, settings, precision):
    """The trainer that a training script's `trainer` builds of its settings, at a precision."""
    keras.utils.set_random_seed(0)
    keras.mixed_precision.set_dtype_policy(precision)
    model = trainer(settings)
    keras.mixed_precision.set_dtype_policy("float32")
    randomise(model)
    return model


def keras_step(model, batch, losses=()):
    """A function that does one training step, compiled as `fit` does, and returns its loss.

    Or a list of the losses named.
    """
    batches = iter(tf.data.Dataset.from_tensors(batch).cache().repeat().prefetch(2))
    model.make_train_function()

    def step():
        # Metrics are means over the steps so far, and fit resets them every epoch.
        model.reset_metrics()
        logs = model.train_function(batches)
        return [float(logs[name]) for name in losses] if losses else float(logs["loss"])

    return step


def training_rows(seconds, work, batch, apart=("bfloat16",)):
    """The rows of a training benchmark, and the machine's best rates at that time, in GFLOP a second.

    Args:
        seconds: Dict of engine -> {"median": seconds a step, "min": seconds}, as `interleaved` gives.
        work: FLOP of a step.
        batch: Pictures in a step.
        apart: What stands in the names of the PyTorch engines that are not to be beaten.
    """
    peaks = peak_functions()
    peak_seconds = interleaved({name: function for name, (function, _) in peaks.items()}, 5)
    peak = {name: flop / peak_seconds[name]["min"] / 1e9 for name, (_, flop) in peaks.items()}
    best = min(s["median"] for name, s in seconds.items()
               if "torch" in name and not any(word in name for word in apart))
    rows = []
    for name, s in seconds.items():
        gflops = work / s["median"] / 1e9
        dtype = "bfloat16" if "bfloat16" in name else "float32"
        rows.append({
            "engine": name, "step_seconds": s["median"], "step_seconds_min": s["min"],
            "pictures_per_second": batch / s["median"], "over_best_torch_float32": best / s["median"],
            "over_keras_float32": seconds["keras float32"]["median"] / s["median"],
            "gflop_per_second": gflops, "of_peak_conv": gflops / peak[f"conv {dtype}"],
            "of_peak_matmul": gflops / peak[f"matmul {dtype}"],
        })
    return rows, peak


def table(rows, columns):
    """Rows (dicts) as aligned text; `columns` maps a key to its format, such as ".2f"."""
    lines = [list(columns)]
    for row in rows:
        lines.append(["-" if row.get(key) is None else format(row[key], spec)
                      for key, spec in columns.items()])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                  for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def resident(peak=True):
    """MiB that this process has had at most, or has; getrusage's figure starts from its parent's."""
    found = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024


def save(name, rows, **more):
    """Write benchmarks/results/KIND/NAME.json, KIND of the processor."""
    path = RESULTS / processor_kind() / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    result = {"machine": machine(), "versions": versions(), "date": date, **more, "rows": rows}
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path.relative_to(RESULTS.parents[1])}")
