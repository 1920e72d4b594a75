"""One picture through every format that a network is exported to, each by its own runtime.

    pip install -r requirements-export.txt
    python benchmarks/formats.py

`savedmodel` is the signature `serving_default`, from RGB to RGB and in tiles; the others are the network
alone, from the channels that it has.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from common import interleaved, save, table

from superres import export
from superres.models import formats
from superres.models.upscaler import load


def runtimes(network, name, folder, lr):
    """Dict of format -> function without arguments that computes LR (1, H, W, 3)."""
    export.export(name, folder, None, 1)
    signature = tf.saved_model.load(str(folder / name / "1")).signatures["serving_default"]
    noise = {"temperature": tf.ones(1), "seed": tf.zeros(1, tf.int32)} if network.draws_samples else {}
    functions = {"savedmodel": lambda: signature(lr=tf.constant(lr), **noise)["sr"].numpy()}
    given = [lr[..., :network.channels]]
    if noise:
        given += [np.zeros(1, "int32"), np.ones(1, "float32"), np.zeros((1, 2), "int32")]
    for kind, writer in formats.WRITERS.items():
        if not noise or kind == "openvino":  # the others have no noise
            run = writer(network, folder / f"{name}{formats.SUFFIXES[kind]}")
            functions[kind] = lambda run=run: run(*given)
    return functions


def main(networks: tuple[str, ...] = ("lapsrn-x4", "srgan-x4", "srmap-x4-l1", "srmap-x4"), size: int = 128,
         rounds: int = 5):
    """One picture through every format that a network is exported to.

    Args:
        networks: Shipped networks' names.
        size: Height and width of LR.
        rounds: How often each is timed.
    """
    lr, rows = np.random.default_rng(0).random((1, size, size, 3), "float32"), []
    for name in networks:
        with tempfile.TemporaryDirectory() as folder:
            seconds = interleaved(runtimes(load(name), name, Path(folder), lr), rounds)
        rows.append({"network": name, **{kind: times["median"] for kind, times in seconds.items()}})
    print(table(rows, {"network": "", "savedmodel": ".3f", **dict.fromkeys(formats.WRITERS, ".3f")}))
    save("formats", rows, lr_size=[size, size], unit="seconds")


if __name__ == "__main__":
    command(main)
