"""Does the data pipeline keep up with the network?

    python benchmarks/pipeline.py --data FOLDER
    python benchmarks/pipeline.py --data SHARDS/*.tfrecord --cache 64

Batches a second of `datasets.Patches(...).dataset()` alone, against the training steps a
second on a fixed batch, for the shapes of the `improved` presets at both precisions. The
goal is three times as many, which leaves the processor to the network.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import dataclasses

import keras
from common import interleaved, keras_step, keras_trainer, native, save, table
from train_lapsrn import fixed_batch, settings_of

from superres.datasets.catalogue import as_needed, is_shards
from superres.datasets.patches import Patches
from superres.errors import InputError
from superres.train.lapsrn import trainer

DEGRADATIONS = ("bicubic", "realworld-fresh")
# Batches that `Patches.dataset` has ready or in work before a timing starts: they do not count.
AHEAD = 10


def batches_of(settings, examples, count, cache):
    """A function that draws `count` batches of the pipeline."""
    patches = Patches(
        examples, settings.scale, settings.patch, settings.batch, channels=settings.channels,
        degradation=settings.degradation, pyramid=settings.levels == "all", cache=cache,
    )
    batches = iter(patches.dataset())

    def draw():
        for _ in range(count):
            next(batches)

    return draw


def main(data: tuple[str, ...] = ("photos",), scales: tuple[int, ...] = (2, 4), rounds: int = 7,
         count: int = 50, cache: int = 2048):
    """Does the data pipeline keep up with the network?

    Args:
        data: Folders of pictures, shards, or names of the catalogue.
        scales: Which of the presets improved-x2, improved-x4, improved-x8.
        rounds: How often each is timed.
        count: Batches of the pipeline that are timed together.
        cache: MiB of decoded pictures that are kept of shards.
    """
    if count <= AHEAD:
        raise InputError(f"count: more than the {AHEAD} batches prepared ahead are needed, not {count}")
    # All steps before any batch: a pipeline goes on in the background until it has enough ahead.
    steps = {}
    for scale in scales:
        settings = settings_of(scale)
        batch = fixed_batch(settings)
        steps[scale] = interleaved(native({
            precision: keras_step(keras_trainer(trainer, settings, precision), batch)
            for precision in ("float32", "mixed_bfloat16")
        }), rounds)
        keras.backend.clear_session()
    examples = list(as_needed(data))
    rows = []
    for scale in scales:
        for degradation in DEGRADATIONS:
            settings = dataclasses.replace(settings_of(scale), degradation=degradation)
            draw = batches_of(settings, examples, count, cache)
            rate = (count - AHEAD) / interleaved({degradation: draw}, rounds)[degradation]["median"]
            rows += [
                {"scale": scale, "degradation": degradation, "precision": precision,
                 "batches_per_second": rate, "steps_per_second": 1 / seconds["median"],
                 "ratio": rate * seconds["median"]}
                for precision, seconds in steps[scale].items()
            ]
    print(table(rows, {"scale": "d", "degradation": "", "precision": "", "batches_per_second": ".1f",
                       "steps_per_second": ".2f", "ratio": ".1f"}))
    name = "pipeline-shards" if any(map(is_shards, data)) else "pipeline"
    save(name, rows, goal="ratio >= 3", pictures=len(examples), cache_mib=cache)


if __name__ == "__main__":
    command(main)
