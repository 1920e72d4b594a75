"""One training on several machines: two processes of this one, which talk over loopback."""

import json
import os
import pickle
import random
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from test_train import assert_same_run, rows
from test_train_pixel_recursive import small_settings as thumbnail_settings
from test_train_srgan import small_settings as srgan_settings
from test_train_srgan_runs import backup
from test_train_srmap import TINY

from superres.errors import InputError
from superres.train import devices
from superres.train.srmap import Settings as SRMAPSettings

KILLS = int(os.environ.get("SUPERRES_KILLS", "1"))  # how often the test that kills a machine does so
# Ten steps of each of the four systems, one after another, as their scripts train them, but without the table
# at the end and without compiling what draws samples.
TRAIN = """
import pickle, sys
from functools import partial
from superres.models import srmap as networks
from superres.train import devices, gan, lapsrn, pixel_recursive, srgan, srmap

distribution = devices.strategy()
networks.SIZES["reduced"], *several = pickle.load(open(sys.argv[1], "rb"))
srgan.generator = partial(srgan.generator, filters=6)
srgan.discriminator = partial(srgan.discriminator, filters=2)
gan.GANValidation.draw = lambda *given: None
pixel_recursive.ThumbnailValidation.__call__ = lambda *given: ({"val_bits": 1.0}, given[0].pictures.hr[0])
pixel_recursive.evaluate_thumbnails = lambda *given: ({}, {})
pixel_recursive.thumbnail_table = pixel_recursive.thumbnail_sheet = lambda *given: ""
pixel_recursive.write_picture = lambda *given: None
for module, settings in zip((lapsrn, srgan, srmap, pixel_recursive), several):
    settings.run.folder = sys.argv[2] + "/" + module.__name__.rpartition(".")[2]
    module.strategy = lambda *given: distribution
    module.evaluate, module.table = (lambda *given: None), (lambda *given: "")
    module.main("quick", settings)
"""


apart = pytest.mark.skipif("SUPERRES_MACHINES" not in os.environ,
                           reason="takes two minutes by itself (make test-machines)")


def free_ports(count):
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def started(*arguments, log, jobs=("worker", "worker")):
    """Two processes, each a machine of one cluster, that do the same; their output goes to files."""
    cluster, processes = {}, []
    for job, port in zip(jobs, free_ports(2), strict=True):
        cluster.setdefault(job, []).append(f"localhost:{port}")
    for index, job in enumerate(jobs):
        config = {"cluster": cluster, "task": {"type": job, "index": index if jobs[0] == job else 0}}
        with open(f"{log}.{index}", "w") as file:
            processes.append(subprocess.Popen(
                [sys.executable, *map(str, arguments)], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
                env={**os.environ, "TF_CONFIG": json.dumps(config)}))
    return processes


def outcome(processes, log):
    """(status, output) of each, when both have ended."""
    statuses = [process.wait(timeout=300) for process in processes]
    return [(status, open(f"{log}.{index}").read()) for index, status in enumerate(statuses)]


@apart
def test_two_machines_train_the_networks_that_one_does(settings_of, grain, tmp_path, run_command):
    small = {"steps": 5, "epochs": 2}
    settings = [
        TINY,
        settings_of("run", **small),
        srgan_settings(grain, adversarial_loss="relativistic", adversarial=0.1, r1=0.1, pixel_loss="l1",
                       ema=0.5, steps=5, warm_up=1, epochs=1),
        SRMAPSettings(data=(str(grain),), scale=2, size="reduced", crop=24, batch=8, val_pictures=1,
                      test_pictures=1, l1=3.0, energy=20.0, initial_noise=0.2, r1=0.1, r2=0.2, reuse=False,
                      consistent=True, learning_rate=1e-3, sample_every=4, scratch=True, **small),
        thumbnail_settings("run", norm="spade", hidden=4, conditioned=True, data={"flip": True}, **small),
    ]
    (tmp_path / "settings").write_bytes(pickle.dumps(settings))
    log = tmp_path / "log"
    one = run_command("-c", TRAIN, tmp_path / "settings", tmp_path / "one")
    assert one.returncode == 0, one.stderr[-3000:]
    both = outcome(started("-c", TRAIN, tmp_path / "settings", tmp_path / "two", log=log), log)
    assert [status for status, _ in both] == [0, 0], both[0][1][-2000:] + both[1][1][-2000:]
    for name in ("lapsrn", "srgan", "srmap", "pixel_recursive"):
        ours, theirs = (backup(tmp_path / folder / name) for folder in ("one", "two"))
        assert ours.keys() == theirs.keys()
        # All together: Adam makes a walk of a bias before a normalisation, whose gradient is rounding alone.
        one, two = (np.concatenate([run[key].ravel() for key in sorted(run)]) for run in (ours, theirs))
        assert np.linalg.norm(one - two) <= 1e-3 * np.linalg.norm(one), name
        for row, other in zip(rows(tmp_path / "one" / name), rows(tmp_path / "two" / name), strict=True):
            assert row.keys() == other.keys()
            for key in row.keys() - {"seconds", "step_seconds", "generator_gradient",
                                     "discriminator_gradient"}:  # norms of a device's gradients
                assert not row[key] or np.isclose(float(row[key]), float(other[key]), 1e-4, 2e-6), key
    assert (tmp_path / "two" / "srmap" / "samples" / "step_000004.png").exists()
    assert "psnr" in both[0][1]
    assert "psnr" not in both[1][1]


@apart
def test_a_training_goes_on_after_a_machine_is_lost(settings_of, tmp_path):
    data = settings_of("run").data[0]
    command = ["train/lapsrn.py", "quick", "--data", data, "--filters", 4, "--depth", 2, "--patch", 8,
               "--batch", 4, "--steps", 60, "--epochs", 3 + 3 * KILLS, "--val-pictures", 1,
               "--test-pictures", 1, "--run.folder"]
    run, log, chance = tmp_path / "killed", tmp_path / "log", random.Random()
    epochs = 0
    for _ in range(KILLS):
        # As Kubernetes' TFJob names them where one is asked for
        processes, began = started(*command, run, log=log, jobs=("chief", "worker")), time.monotonic()
        while not (run / "log.csv").exists() or len(rows(run)) <= epochs:
            time.sleep(0.05)
            assert not any(map(subprocess.Popen.poll, processes))
            assert time.monotonic() < began + 200
        time.sleep(chance.uniform(0, 1))
        how = chance.choice((signal.SIGKILL, signal.SIGTERM))
        processes[chance.randrange(2)].send_signal(how)
        (status, output), (killed, _) = sorted(outcome(processes, log), reverse=True)
        assert (status, killed) == (2, -how), output[-2000:]
        assert re.fullmatch(r"error: .*: another machine was lost .*; unless that one says why, the same "
                            "command on all machines goes on after the last finished epoch",
                            output.splitlines()[-1])
        epochs = len(rows(run))
    log = tmp_path / "again"
    both = outcome(started(*command, run, log=log), log)
    assert [status for status, _ in both] == [0, 0], both[0][1][-2000:] + both[1][1][-2000:]
    assert f"going on after {epochs} of" in both[0][1] or f"going on after {epochs - 1} of" in both[0][1]
    log = tmp_path / "whole"
    assert [status for status, _ in outcome(started(*command, tmp_path / "whole", log=log), log)] == [0, 0]
    assert_same_run(run, tmp_path / "whole")


@apart
def test_machines_that_were_told_different_things_do_not_train(settings_of, tmp_path):
    code = """
import json, os
from superres.command_line import command
from superres.train.lapsrn import RunSettings, Settings, main
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
command(lambda: main("quick", Settings(
    data=({data!r},), filters=4, depth=(2,), patch=8, batch=4, steps=1, epochs=1, val_pictures=1,
    test_pictures=1, {changes})))
"""
    for changes, message in (
            ("learning_rate=(1e-3, 1e-2)[index]", "error: settings: this machine's differ from"),
            ("run=RunSettings(precision=('float32', 'mixed_bfloat16')[index])", "error: run.precision: ")):
        run, log = code.format(data=settings_of("run").data[0], changes=changes), tmp_path / "log"
        for status, output in outcome(started("-c", run, log=log), log):
            assert (status, message in output) == (2, True), output[-2000:]


def test_a_machine_finds_its_place_among_the_addresses():
    port, other = free_ports(2)
    workers = f"203.0.113.1:{port}", f"localhost:{port}", f"localhost:{other}"  # the first is nobody's
    cluster = devices._cluster(workers)
    assert (cluster.task_type, cluster.task_id) == ("worker", 1)
    assert cluster.cluster_spec().as_dict() == {"worker": list(workers)}
    with socket.create_server(("localhost", port)):
        assert devices._cluster(workers).task_id == 2
    assert devices._cluster((f"localhost:{port}",)) is None  # a machine alone


@pytest.mark.parametrize(("workers", "config", "message"), [
    (("203.0.113.1:40", "203.0.113.2:40"), "", "none of 203.0.113.1:40, 203.0.113.2:40 is an address of"),
    (("here", "there:1"), "", "each is HOST:PORT, not here"),
    (("here:65536", "there:1"), "", "each is HOST:PORT, not here:65536"),
    ((), "{", "TF_CONFIG: cannot be read"),
    ((), '{"cluster": {"worker": ["a:1", "b:1"]}}', "TF_CONFIG: cannot be read"),
    ((), '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}', "TF_CONFIG"),
])
def test_machines_that_are_not_there_are_named(monkeypatch, workers, config, message):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(InputError, match=message):
        devices.strategy(0, workers)


def test_replicas_are_for_one_machine(monkeypatch):
    port, other = free_ports(2)
    with pytest.raises(InputError, match=r"run\.replicas: on several machines"):
        devices.strategy(2, (f"localhost:{port}", f"localhost:{other}"))
