"""tensorflow-addons cannot be imported with Keras 3: what replaces it computes the same.

Runs in a process of its own, where tensorflow-addons gets the Keras 2 that it needs, and
only where `requirements-addons.txt` is installed.
"""

import importlib.util
import os
import subprocess
import sys

import pytest

PARITY = {
    "InstanceNormalization": """
theirs = tfa.layers.InstanceNormalization(epsilon=1e-3)(x)
ours = keras.layers.GroupNormalization(groups=-1, epsilon=1e-3)(x)
""",
    "SpectralNormalization": """
theirs_layer = tfa.layers.SpectralNormalization(tf.keras.layers.Conv2D(4, 3))
theirs_layer.build(x.shape)
ours_layer = keras.layers.SpectralNormalization(keras.layers.Conv2D(4, 3))
ours_layer.build(x.shape)
ours_layer.layer.kernel.assign(theirs_layer.w.numpy())
ours_layer.vector_u.assign(theirs_layer.u.numpy())
theirs, ours = theirs_layer(x, training=True), ours_layer(x, training=True)
""",
    "gaussian_filter2d": """
theirs = tfa.image.gaussian_filter2d(x, filter_shape=5, sigma=1.5, padding="CONSTANT")
ours = keras.ops.image.gaussian_blur(x, kernel_size=(5, 5), sigma=(1.5, 1.5), data_format="channels_last")
""",
}
# Where a weight goes in twenty steps. Decay is decoupled in both, but tensorflow-addons does not multiply
# it by the learning rate.
OPTIMISERS = {
    "AdamW": ("tfa.optimizers.AdamW(weight_decay=2e-4, learning_rate=0.02)",
              "keras.optimizers.AdamW(learning_rate=0.02, weight_decay=0.01)"),
    "Lamb": ("tfa.optimizers.LAMB(learning_rate=0.02, epsilon=1e-6)",
             "keras.optimizers.Lamb(learning_rate=0.02, epsilon=1e-6)"),
}
PARITY |= {name: f"""
rng = np.random.default_rng(1)
start, gradients = rng.normal(size=7).astype("float32"), rng.normal(size=(20, 7)).astype("float32")
theirs, ours = tf.Variable(start), keras.Variable(start)
first, second = {first}, {second}
for gradient in gradients:
    first.apply_gradients([(tf.constant(gradient), theirs)])
    second.apply([tf.constant(gradient)], [ours])
assert np.abs(np.asarray(ours) - start).min() > 0.01, "a weight that stays proves nothing"
""" for name, (first, second) in OPTIMISERS.items()}
TEMPLATE = """
import numpy as np, keras, tensorflow as tf, tensorflow_addons as tfa
x = tf.constant(np.random.default_rng(0).random((2, 12, 16, 3), "float32"))
{body}
difference = float(np.abs(np.asarray(theirs) - np.asarray(ours)).max())
assert float(np.abs(np.asarray(theirs)).max()) > 0.01, "an output of zeros proves nothing"
assert difference < 1e-5, difference
"""


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_addons") is None,
    reason="requirements-addons.txt is not installed (make test-addons)",
)
@pytest.mark.parametrize("name", PARITY)
def test_replacement_equals_tensorflow_addons(name):
    result = subprocess.run(
        [sys.executable, "-c", TEMPLATE.format(body=PARITY[name])],
        env={**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True, text=True, check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
