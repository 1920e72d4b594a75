"""A run's folder: damaged, full, read-only, in use; nothing is lost, and one line says what is wrong."""

import dataclasses
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from matplotlib.figure import Figure

from superres.datasets.catalogue import load as load_pictures
from superres.datasets.degradations import degraded
from superres.datasets.pictures import write_picture
from superres.errors import InputError
from superres.files import whole, write_figure
from superres.train import folder as files
from superres.train import log, loop
from superres.train.folder import alone
from superres.train.lapsrn import LapSRNTrainer, Settings, main, trainer
from superres.train.log import Log
from superres.train.loop import RunSettings
from superres.train.validation import PictureValidation

HELD = """
import sys, time
from pathlib import Path
from superres.train.folder import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory, photos):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        write_picture(folder / f"{i}.png", photos["astronaut"][50 * i : 50 * i + 32, 60 * i : 60 * i + 40])
    return folder


@pytest.fixture(scope="module")
def make(data):
    def settings(folder):
        return Settings(data=(str(data),), filters=4, depth=(2,), patch=8, batch=2, steps=2, epochs=2,
                        val_pictures=1, test_pictures=0, run=RunSettings(str(folder)))

    return settings


@pytest.fixture(scope="module")
def finished(make, tmp_path_factory):
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    main("quick", make(folder))
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(settings, folder, message):
    before = contents(folder)
    with pytest.raises(InputError, match=message) as caught:
        main("quick", settings)
    assert "\n" not in str(caught.value)
    assert contents(folder) == before


@pytest.mark.parametrize("text", ["", "data:\n- photos\nsca", "data:\n- photos\nscale: 2\n", "- 1\n- 2\n",
                                  "scale", "a: [", "\0\0\0", b"\xff\xfe"])
def test_damaged_settings_are_named(make, run, text):
    (run / "settings.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_refused(make(run), run, r"settings\.yaml: damaged \(.+\); restore it, or remove it to go on")


@pytest.mark.parametrize(("cut", "message"), [
    (lambda text: b"", "damaged, it ends within a line"),
    (lambda text: text[: text.index(b"\n") + 1], "has 0 epochs, but the run's backup 2; restore the two, or"),
    (lambda text: text[: text.rindex(b"\n", 0, -1) + 1], "has 1 epochs, but the run's backup 2"),
    (lambda text: text[:-3], "damaged, it ends within a line"),
    (lambda text: text[: text.rindex(b",")] + b"\n", "damaged, row 2 has not a value for every column"),
])
def test_a_run_is_not_judged_by_a_part_of_its_log(make, run, cut, message):
    (run / "log.csv").write_bytes(cut((run / "log.csv").read_bytes()))
    assert_refused(make(run), run, rf"log\.csv: {message}")


def test_a_run_is_not_judged_without_its_log(make, run):
    (run / "log.csv").unlink()
    assert_refused(make(run), run, r"log\.csv: has 0 epochs, but the run's backup 2")


@pytest.mark.parametrize(("rows", "fault"), [
    (["1,3.0", "3,4.0"], "row 2 is not that of epoch 2"),
    (["1,3.0", "1,4.0"], "row 2 is not that of epoch 2"),
    (["2,3.0"], "row 1 is not that of epoch 1"),
    (["1,3.0", "2,"], "row 2 is not that of epoch 2"),
    (["1,nan", "2,4.0"], "row 1 has values that are not finite"),
    (["1,3.0", "2,inf"], "row 2 has values that are not finite"),
    (["1,3.0", "2,x"], "could not convert string to float: 'x'"),
    (["1,3.0", "2,4.0,5.0"], "row 2 has not a value for every column"),
    (["1,3.0", "2"], "row 2 has not a value for every column"),
])
def test_a_log_is_epoch_after_epoch_of_finite_numbers(tmp_path, rows, fault):
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["epoch,score", *rows, ""]))
    with pytest.raises(InputError, match=re.escape(f"{path}: damaged, {fault}; restore it, or choose")):
        Log(path, "score").rewind(2)


def test_a_log_of_many_epochs_without_a_backup_is_not_begun_anew(make, run):
    (run / "backup.weights.h5").unlink()
    assert_refused(make(run), run, r"log\.csv: has 2 epochs, but the run's backup 0; restore the two")


def test_one_process_at_a_time(make, run, tmp_path):
    with alone(run):
        assert_refused(make(run), run, "another process trains in this folder")
    main("quick", make(run))
    with pytest.raises(KeyboardInterrupt), alone(run):
        raise KeyboardInterrupt
    with alone(run):
        pass


def test_a_killed_process_holds_nothing(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HELD, tmp_path / "run"], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match="another process"), alone(tmp_path / "run"):
        pass
    (tmp_path / "run" / ".part_model.keras").write_bytes(b"half a network")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with alone(tmp_path / "run"):
        assert os.listdir(tmp_path / "run") == ["lock"]


@pytest.mark.parametrize("locks", [None, OSError(95, "Operation not supported")])
def test_without_locks_a_run_does_without(tmp_path, monkeypatch, locks):
    class Refused:
        LOCK_EX = LOCK_NB = 0

        def flock(*args):
            raise locks

    monkeypatch.setattr(files, "fcntl", locks and Refused)
    with alone(tmp_path), alone(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_named(make, data, tmp_path):
    (tmp_path / "file").write_text("no folder")
    for name in ("file", "file/run"):
        with pytest.raises(InputError, match=rf"{name}: cannot be written \((File exists|Not a directory)\)"):
            main("quick", make(tmp_path / name))


@pytest.mark.skipif(os.access("/", os.W_OK), reason="nothing is read-only to the superuser")
def test_a_read_only_run_is_named(make, run):
    run.chmod(0o500)
    try:
        assert_refused(make(run), run, r"run: cannot be written \(Permission denied\)")
    finally:
        run.chmod(0o700)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    for text in ("first", "second"):
        with whole(path) as part:
            part.write_text(text)

    # Two of one end, written at once
    names = [tmp_path / f"{number}_{'a' * 60}" for number in (1, 2)]
    with whole(names[0]) as one, whole(names[1]) as two:
        one.write_text("1")
        two.write_text("2")
    assert [name.read_text() for name in names] == ["1", "2"]
    for name in names:
        name.unlink()

    def fail(error):
        with whole(path) as part:
            part.write_text("third")
            raise error

    with pytest.raises(OSError, match=r"file: cannot be written \(No space left on device\)$"):
        fail(OSError(28, "No space left on device"))
    for error in (KeyboardInterrupt, TypeError):
        with pytest.raises(error):
            fail(error)
    assert contents(tmp_path) == {path.relative_to(tmp_path): b"second"}


@pytest.fixture
def limited():
    """A function that makes every file end, with an error, after so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_a_figure_that_does_not_fit_is_named(tmp_path, limited, suffix):
    figure = Figure(figsize=(1, 1))
    figure.text(0.5, 0.5, "text")  # whose fonts a PDF holds
    limited(100)
    with pytest.raises(OSError, match=rf"a\.{suffix}: cannot be written \(File too large\)$"):
        write_figure(tmp_path / f"a.{suffix}", figure)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def keeper(make, tmp_path):
    """A `Keeper` at the end of its first epoch; `end(epoch)` ends one."""
    folder, settings = tmp_path / "run", make(tmp_path / "run")
    folder.mkdir()
    model = trainer(settings)
    model.optimizer.build(model.network.trainable_variables)
    pairs = list(degraded(load_pictures(settings.data[0]), 2, "bicubic"))
    keeper = loop.Keeper(folder, model, PictureValidation(pairs), Log(folder / "log.csv", "val_psnr_y"),
                         settings.run, 2)
    keeper.set_model(model)
    keeper.set_params({"epochs": 9})

    def end(epoch):
        model.network.set_weights([weight + 1e-5 for weight in model.network.get_weights()])
        keeper.on_epoch_begin(epoch - 1)
        keeper.on_epoch_end(epoch - 1, {"loss": 1.0})

    keeper.end = end
    keeper.on_train_begin()
    return keeper


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize(("name", "room"), [("log.csv", 50), ("last.keras", 2000),
                                            ("epoch_{epoch:04}.png", 500), ("backup.weights.h5", 20000)])
def test_a_full_disk_leaves_the_files_before_and_no_part(keeper, limited, monkeypatch, name, room, epoch):
    name, before = name.format(epoch=epoch), {}
    if epoch == 2:
        keeper.end(1)

    def filling(write):
        def run(path, *arguments):
            if path.name == name:
                before.update(contents(keeper.folder))
                limited(room)
            return write(path, *arguments)

        return run

    def save_weights(self, path):
        assert not before, "HDF5 would crash this process"
        keras.Model.save_weights(self, path)

    monkeypatch.setattr(loop, "whole", filling(whole))
    monkeypatch.setattr(log, "whole", filling(whole))
    monkeypatch.setattr(loop, "write_picture", filling(write_picture))
    monkeypatch.setattr(LapSRNTrainer, "save_weights", save_weights, raising=False)
    with pytest.raises(OSError, match=rf"{name}: cannot be written \(File too large\)$"):
        keeper.end(epoch)
    assert before
    assert contents(keeper.folder) == before


def test_a_hand_that_stops_a_save_leaves_the_files_before_and_no_part(keeper, monkeypatch):
    keeper.end(1)
    before = contents(keeper.folder)[Path("last.keras")]

    def save(self, path, **options):
        path.write_bytes(b"half a network")
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "save", save)
    with pytest.raises(KeyboardInterrupt):
        keeper.end(2)
    assert contents(keeper.folder)[Path("last.keras")] == before
    assert not list(keeper.folder.glob(".part_*"))


def test_room_for_a_backup_is_what_it_takes(keeper):
    expected = keeper.backup_size()
    keeper.end(1)
    size = os.path.getsize(keeper.folder / "backup.weights.h5")
    assert size == keeper.backup_size() <= expected < 2 * size


def test_tensorboards_files_are_files_too(tmp_path, limited):
    limited(10)
    with pytest.raises(OSError, match=r"board: cannot be written \(File too large\)$"), \
            loop._written_by_tensorflow(tmp_path / "board") as folder:
        tf.summary.create_file_writer(str(folder))
    with pytest.raises(tf.errors.ResourceExhaustedError), loop._written_by_tensorflow(tmp_path / "board"):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating a tensor")


@pytest.mark.parametrize("changes", [{"folder": "x"}, {"replicas": 2}, {"workers": ("a:1", "b:1")},
                                     {"cache": 1}, {"precision": "mixed_bfloat16"}], ids=str)
def test_what_another_machine_may_change_does_not_stop_a_run(make, run, changes):
    settings = make(run)
    settings.run = dataclasses.replace(settings.run, **changes)
    files.keep_settings(run / "settings.yaml", settings, settings.run.precision, begun=True)


def test_a_run_goes_on_with_a_setting_that_it_does_not_know(make, run):
    text = (run / "settings.yaml").read_text()
    (run / "settings.yaml").write_text(text.replace("ema: 0.0\n", ""))
    assert (run / "settings.yaml").read_text() != text
    files.keep_settings(run / "settings.yaml", make(run), "float32", begun=True)
