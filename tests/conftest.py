"""What the tests share: pictures, a contract that every layer is held to, commands."""

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import pytest
import tensorflow as tf

from superres import command_line, upscale
from superres.datasets import catalogue
from superres.datasets.pictures import read_picture, write_picture
from superres.models.lapsrn import lapsrn
from superres.train.lapsrn import Settings
from superres.train.loop import RunSettings

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Networks that are converted are not kept among the user's."""
    os.environ["SUPERRES_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Every test starts from the same seed, and leaves the precision to fixtures as it was."""
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_dtype_policy("float32")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def photos():
    """scikit-image's photographs for testing: name -> (H, W, C) uint8."""
    return {example.name: example.hr for example in catalogue.load("photos", "test")}


@pytest.fixture(scope="session")
def photo(photos):
    """A piece of the astronaut, 160 x 128 RGB, uint8."""
    return photos["astronaut"][80:240, 150:278]


@pytest.fixture(scope="session")
def grain(tmp_path_factory):
    """A folder of five pictures of noise, where no network is much better, or worse, than grey."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(5):
        write_picture(folder / f"{i}.png", rng.integers(0, 256, (48, 64, 3), "uint8"))
    return folder


@pytest.fixture(scope="module")
def eagerly():
    """In the whole file nothing is compiled, which takes longer than all that such small networks compute."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session")
def settings_of(tmp_path_factory, photos):
    """Settings of a training of seconds in a folder: LapSRN on six small photographs."""
    data = tmp_path_factory.mktemp("pictures")
    for i in range(6):
        write_picture(data / f"{i}.png", photos["astronaut"][40 * i : 40 * i + 64, 60 * i : 60 * i + 80])

    def settings(folder, precision="float32", early_stopping=0, replicas=0, **changes):
        run = RunSettings(str(folder), precision, replicas, early_stopping=early_stopping)
        small = {"data": (str(data),), "filters": 4, "depth": (2,), "patch": 8, "batch": 4, "steps": 3,
                 "epochs": 3, "val_pictures": 1, "test_pictures": 1}
        return Settings(**{**small, **changes}, run=run)

    return settings


@pytest.fixture
def tiny(settings_of, tmp_path):
    """Function of a run's name, and of what is to be changed, to such settings."""

    def settings(name="run", *given, **changes):
        return settings_of(tmp_path / name, *given, **changes)

    return settings


@pytest.fixture
def randomize():
    """Give every weight of a network a random value: untrained residuals are all zero."""

    def run(network, size=0.1):
        weights = np.random.default_rng(7)
        network.set_weights([weights.normal(0, size, w.shape) for w in network.get_weights()])
        return network

    return run


@pytest.fixture
def run_layer_test(tmp_path):
    """Hold a layer to what every layer of the project must do."""

    def run(layer_class, arguments, input_shape, output_shape, weights, computes="bfloat16"):
        x = np.random.default_rng(1).random(input_shape, "float32")

        # Shapes: eager, symbolic with every size known, and with unknown sizes
        layer = layer_class(**arguments)
        assert layer(x).shape == output_shape
        assert layer.compute_output_shape(input_shape) == output_shape
        assert layer_class(**arguments)(keras.KerasTensor(input_shape)).shape == output_shape
        unknown = layer_class(**arguments)(keras.KerasTensor((None, None, None, input_shape[-1])))
        assert unknown.shape == (None, None, None, output_shape[-1])
        assert layer.count_params() == weights

        # Saving
        config = layer.get_config()
        assert layer_class.from_config(config).get_config() == config
        network = keras.Sequential([keras.Input((None, None, input_shape[-1])), layer_class(**arguments)])
        network.save(tmp_path / "layer.keras")
        again = keras.saving.load_model(tmp_path / "layer.keras")
        np.testing.assert_array_equal(network.predict_on_batch(x), again.predict_on_batch(x))

        # Training
        if weights:
            before = network.get_weights()
            network.compile("sgd", "mse")
            network.train_on_batch(x, np.ones(output_shape, "float32"))
            for old, new in zip(before, network.get_weights(), strict=True):
                assert np.abs(old - new).max() > 0

        # Mixed precision
        mixed = layer_class(**arguments, dtype="mixed_bfloat16")
        assert keras.backend.standardize_dtype(mixed(x).dtype) == computes
        assert all(weight.dtype == "float32" for weight in mixed.weights)
        mixed.set_weights(layer.get_weights())
        np.testing.assert_allclose(np.asarray(mixed(x), "float32"), layer(x), atol=0.02)

    return run


@pytest.fixture(scope="session")
def run_command():
    """Run a script of the project as a user does; returns the finished process."""

    def run(*arguments, cwd=ROOT, **environment):
        return subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False,
            env={**os.environ, **environment},
        )

    return run


@pytest.fixture
def call(monkeypatch):
    """Run a `main` with a command line in this process."""

    def run(main, *arguments, presets=None):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        command_line.command(main, presets)

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """An untrained x2 network: it upscales as bicubic interpolation does."""
    path = tmp_path_factory.mktemp("model") / "network.keras"
    lapsrn(2, filters=4, depth=1).save(path)
    return path


@pytest.fixture
def ended(capsys):
    """Call a function that may end the program: (status, lines of output, lines of errors)."""

    def ended(function, *arguments):
        status = 0
        try:
            function(*arguments)
        except SystemExit as stopped:
            status = stopped.code
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()

    return ended


@pytest.fixture
def run(call, model, ended):
    """Upscale with the options: (status, lines of output, lines of errors)."""
    return lambda *arguments: ended(call, upscale.main, model, *arguments)


@pytest.fixture
def draw(call, tmp_path):
    """Upscale with these options: the pictures made, by name."""

    def run(*arguments, out="out"):
        call(upscale.main, *arguments, "-o", tmp_path / out)
        return {path.name: read_picture(path).pixels for path in sorted((tmp_path / out).iterdir())}

    return run
