"""precision.py: what the machine computes natively, and a warning where it does not."""

import warnings
from importlib import import_module

import pytest
import tensorflow as tf

from superres import precision
from superres.precision import chosen_precision, native_precision, processor_flags


@pytest.fixture
def machine(monkeypatch):
    """Pretend to a processor with these flags, and to GPUs of these compute capabilities."""

    def pretend(*flags, gpus=()):
        monkeypatch.setattr(precision, "gpus", lambda: list(gpus))
        monkeypatch.setattr(tf.config.experimental, "get_device_details",
                            lambda gpu: {"compute_capability": gpu} if gpu else {})
        monkeypatch.setattr(precision, "processor_flags", lambda: set(flags))

    return pretend


@pytest.mark.parametrize(("flags", "gpus", "expected"), [
    (["sse2", "avx2"], [], "float32"),
    (["avx2", "avx512f", "avx512_bf16"], [], "mixed_bfloat16"),
    (["avx2", "amx_bf16"], [], "mixed_bfloat16"),
    (["asimd", "bf16"], [], "mixed_bfloat16"),
    (["avx512_bf16"], [(6, 1)], "float32"),
    ([], [(7, 5)], "mixed_float16"),
    ([], [(8, 0)], "mixed_bfloat16"),
    ([], [(9, 0), (7, 0)], "mixed_float16"),
    (["avx512_bf16"], [None], "float32"),
])
def test_auto_is_what_the_machine_computes_natively(machine, flags, gpus, expected):
    machine(*flags, gpus=gpus)
    assert native_precision() == chosen_precision("auto") == expected


@pytest.mark.parametrize(("asked", "flags", "gpus", "emulated"), [
    ("mixed_bfloat16", ["avx2"], [], True),
    ("bfloat16", ["avx2"], [], True),
    ("bfloat16", ["avx512_bf16"], [], False),
    ("mixed_bfloat16", [], [(7, 5)], True),
    ("mixed_float16", ["avx512_bf16"], [], True),
    ("float32", ["avx2"], [], False),
    ("mixed_float16", [], [(8, 6)], False),
])
def test_a_precision_that_is_emulated_gets_a_warning(machine, asked, flags, gpus, emulated):
    machine(*flags, gpus=gpus)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert chosen_precision(asked) == asked
    assert [str(warning.message) for warning in caught] == emulated * [
        f"precision: this machine only emulates {asked}, which may be ten times slower than float32"]


@pytest.mark.parametrize("system", ["lapsrn", "pixel_recursive", "srgan", "srmap"])
def test_improved_presets_choose_the_precision_and_reported_ones_do_not(system):
    presets = import_module(f"superres.train.{system}").PRESETS
    assert "quick" in presets  # what a training without a preset takes
    for name, (_, settings) in presets.items():
        if name.startswith(("improved", "reported")):
            assert settings.run.precision == ("auto" if name.startswith("improved") else "float32"), name


def test_flags_are_read_from_the_system(tmp_path):
    (tmp_path / "x86").write_text("processor : 0\nflags\t\t: fpu avx2 amx_bf16\nbugs : none\n")
    (tmp_path / "arm").write_text("Features\t: fp asimd bf16\n")
    assert processor_flags(tmp_path / "x86") == {"fpu", "avx2", "amx_bf16"}
    assert processor_flags(tmp_path / "arm") == {"fp", "asimd", "bf16"}
    assert processor_flags(tmp_path / "none") == set()
