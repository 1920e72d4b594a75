"""Training steps of the four systems compiled by XLA against the same steps as they run.

    python benchmarks/xla.py

Keras leaves XLA (`jit_compile`) off on processors, and so do the training scripts. Each step is
that of its system's own benchmark.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import dataclasses

import keras
import numpy as np
import srmap
import train_lapsrn
import train_pixel_recursive
import train_srgan
from common import interleaved, keras_step, keras_trainer, native, save, table

from superres.train import lapsrn as lapsrn_training
from superres.train import pixel_recursive as pixel_recursive_training
from superres.train import srgan as srgan_training
from superres.train import srmap as srmap_training

GAN = ["loss", "discriminator"]


def steps():
    """(system, its module of train/, settings, its benchmark, names of losses) of each."""
    yield ("lapsrn", lapsrn_training, train_lapsrn.settings_of(2), train_lapsrn, ["loss"])
    yield ("srgan", srgan_training, srgan_training.Settings(scale=4, crop=48, batch=16), train_srgan, GAN)
    yield ("srmap", srmap_training, dataclasses.replace(
        srmap_training.REPORTED, size="reduced", crop=96, batch=16, ema=0.0, reuse=False), srmap, GAN)
    yield ("pixel_recursive", pixel_recursive_training, pixel_recursive_training.PRESETS["reported"][1],
           train_pixel_recursive, ["loss"])


def main(rounds: int = 4):
    """Training steps of the four systems compiled by XLA against the same steps as they run.

    Args:
        rounds: Timed steps of each.
    """
    rows = []
    for system, training, settings, benchmark, losses in steps():
        batch, engines = benchmark.fixed_batch(settings), {}
        for precision in ("float32", "mixed_bfloat16"):
            for jit_compile in (False, True):
                model = keras_trainer(training.trainer, settings, precision)
                if system == "srgan":
                    model.discriminator_active = True
                model.jit_compile = jit_compile
                engines[f"{precision}{' xla' * jit_compile}"] = keras_step(model, batch, losses)
        engines = native(engines)
        first = {name: step() for name, step in engines.items()}
        if not np.allclose(first["float32 xla"], first["float32"], rtol=1e-4):
            raise SystemExit(f"{system}: the first losses are {first}: nothing to compare")
        seconds = interleaved(engines, rounds)
        for name, times in seconds.items():
            plain = seconds[name.removesuffix(" xla")]["median"]
            rows.append({"system": system, "step": name, "seconds": times["median"],
                         "seconds_min": times["min"], "over_plain": plain / times["median"]})
        keras.backend.clear_session()
    print(table(rows, {"system": "", "step": "", "seconds": ".3f", "over_plain": ".2f"}))
    save("xla", rows)


if __name__ == "__main__":
    command(main)
