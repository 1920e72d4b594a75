"""Training on several machines: two processes of one core each against one process of two cores.

    python benchmarks/machines.py

A step of the same global batch, of `train/`'s own trainers, under MultiWorkerMirroredStrategy over
loopback. A third process, of one core and half of the batch, has nobody to talk to: what two take longer
than it is the share of communication. Networks that connect real machines are slower than loopback.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import time

import numpy as np
import tensorflow as tf
import train_lapsrn
import train_pixel_recursive
from common import randomise, save, table

from superres.train import lapsrn, pixel_recursive
from superres.train.devices import strategy

SYSTEMS = {
    "lapsrn": (lapsrn, dataclasses.replace(train_lapsrn.settings_of(2), batch=16), train_lapsrn),
    "pixel_recursive": (pixel_recursive, pixel_recursive.PRESETS["reported"][1], train_pixel_recursive),
}


def measure(system, part, rounds):
    """What a process of the measurement does: print the median time of a step of `part` of the batch."""
    distribution = strategy()
    training, settings, benchmark = SYSTEMS[system]
    batch = benchmark.fixed_batch(dataclasses.replace(settings, batch=int(settings.batch * part)))
    with distribution.scope():
        model = training.trainer(settings)
        model.optimizer.build(model.network.trainable_variables)
    randomise(model.network)
    batches = iter(distribution.distribute_datasets_from_function(
        lambda context: tf.data.Dataset.from_tensors(batch).cache().repeat().prefetch(2)))
    model.make_train_function()
    seconds = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        loss = float(model.train_function(batches)["loss"])
        seconds.append(time.perf_counter() - start)
    weights = sum(int(np.prod(w.shape)) for w in model.network.trainable_weights)
    print(json.dumps({"seconds": statistics.median(seconds[2:]), "loss": loss, "weights": weights}))


def run(system, part, rounds, cores, workers=()):
    """Start a process for each worker, or one, on so many cores each; what the first has measured."""
    processes, free = [], sorted(os.sched_getaffinity(0))
    for index in range(max(1, len(workers))):
        mine = ",".join(str(core) for core in free[index * cores : (index + 1) * cores])
        config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        processes.append(subprocess.Popen(
            ["taskset", "-c", mine, sys.executable, __file__, "--system", system, "--part", str(part),
             "--rounds", str(rounds)], text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, **({"TF_CONFIG": json.dumps(config)} if workers else {})}))
    output, *_ = [process.communicate()[0] for process in processes]
    return json.loads(output.splitlines()[-1])


def main(system: str = "", part: float = 1.0, rounds: int = 10):
    """Training on several machines: two processes of one core each against one process of two cores.

    Args:
        system: Measure a step of this one here and print it, which the benchmark itself does.
        part: Of the batch, that such a process computes.
        rounds: Timed steps.
    """
    if system:
        measure(system, part, rounds)
        return
    rows = []
    for system in SYSTEMS:
        sockets = [socket.create_server(("localhost", 0)) for _ in range(2)]
        workers = [f"localhost:{server.getsockname()[1]}" for server in sockets]
        for server in sockets:
            server.close()
        one, half = run(system, 1.0, rounds, 2), run(system, 0.5, rounds, 1)
        two = run(system, 0.5, rounds, 1, workers)
        rows.append({
            "system": system, "weights": two["weights"], "one_process": one["seconds"],
            "two_processes": two["seconds"], "over_one": one["seconds"] / two["seconds"],
            "half_alone": half["seconds"], "communication": 1 - half["seconds"] / two["seconds"]})
    print(table(rows, {"system": "", "weights": ",", "one_process": ".3f", "two_processes": ".3f",
                       "over_one": ".2f", "half_alone": ".3f", "communication": ".0%"}))
    save("machines", rows)


if __name__ == "__main__":
    command(main)
