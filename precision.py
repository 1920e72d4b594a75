"""Which precision the machine computes in by itself, and not by emulation."""

import sys
import warnings
from pathlib import Path

# Flags of x86 and ARM processors whose instructions multiply bfloat16.
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def gpus() -> list:
    """TensorFlow's GPUs; where the system has none, TensorFlow is not imported to say so."""
    devices = ("nvidiactl", "kfd", "dxg")  # NVIDIA's, AMD's, and either's under Windows
    if sys.platform == "linux" and not any(Path("/dev", device).exists() for device in devices):
        return []
    import tensorflow as tf

    import superres.commands  # noqa: F401  # it quietens TensorFlow

    return tf.config.list_physical_devices("GPU")


def native_precision() -> str:
    """The fastest that the machine computes natively: mixed_bfloat16, mixed_float16 or float32.

    GPUs multiply bfloat16 from compute capability 8.0 on, and float16 fast from 7.0 on;
    of several, the oldest counts. Of processors, some with AVX512 or AMX multiply bfloat16.
    Where it is emulated, a training step may take ten times as long as in float32.
    """
    if found := gpus():
        import tensorflow as tf

        oldest = min(tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
                     for gpu in found)
        return "mixed_bfloat16" if oldest >= (8, 0) else "mixed_float16" if oldest >= (7, 0) else "float32"
    return "mixed_bfloat16" if processor_flags() & BFLOAT16_FLAGS else "float32"


def processor_flags(path: Path | str = "/proc/cpuinfo") -> set[str]:
    """What the processor says it can do: a set of words, empty where the system does not tell."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return set()
    return {word for line in lines if line.lower().startswith(("flags", "features"))
            for word in line.partition(":")[2].split()}


def chosen_precision(asked: str) -> str:
    """The precision to compute in: what was asked for, or for `"auto"` the `native_precision`.

    Warns where the machine only emulates what was asked for.
    """
    native = native_precision()
    if asked == "auto":
        return native
    # A GPU that has bfloat16 has float16 too.
    computed = {"float32", native.removeprefix("mixed_")}
    if native != "float32" and gpus():
        computed.add("float16")
    if asked.removeprefix("mixed_") not in computed:
        warnings.warn(f"precision: this machine only emulates {asked}, which may be ten times slower than "
                      "float32", stacklevel=2)
    return asked
