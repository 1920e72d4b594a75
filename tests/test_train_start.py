"""train/start.py: a network starts from the weights of another."""

import dataclasses

import keras
import numpy as np
import pytest

from superres.errors import InputError
from superres.models.lapsrn import lapsrn
from superres.train.lapsrn import trainer
from superres.train.start import take_weights, weights_of


def test_a_network_starts_from_the_levels_of_another(tiny, tmp_path, randomize):
    source = randomize(lapsrn(2, filters=4, depth=2, residual="features"))
    source.save(tmp_path / "x2.keras")
    settings = tiny(scale=4, start=str(tmp_path / "x2.keras"), start_partial=True)
    keras.utils.set_random_seed(1)
    started = trainer(settings).network
    keras.utils.set_random_seed(1)
    plain = trainer(dataclasses.replace(settings, start="")).network
    for layer in started.layers:
        owner = plain if layer.name.startswith("level2") else source
        for one, two in zip(layer.get_weights(), owner.get_layer(layer.name).get_weights()
                            if layer.weights else [], strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_network_that_shares_nothing_cannot_be_started_from():
    with pytest.raises(InputError, match="start: the network has no layer in common with lapsrn_x2"):
        take_weights(lapsrn(2, filters=4, depth=1), weights_of(lapsrn(4, filters=5, depth=1, channels=3)))


def test_a_part_is_taken_only_where_it_is_asked_for(tmp_path, tiny, capsys):
    lapsrn(2, filters=4, depth=2, residual="features").save(tmp_path / "x2.keras")
    settings = tiny(scale=4, start=str(tmp_path / "x2.keras"))
    with pytest.raises(InputError, match=r"only 5 of 8 layers find weights .* level2_conv1 does not"):
        trainer(settings)
    trainer(dataclasses.replace(settings, start_partial=True))
    assert "start: took 5 of 8 layers, 965 of 1,665 weights" in capsys.readouterr().out


def test_networks_of_one_structure_need_no_names_in_common():
    def network(width=3):
        inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(width), keras.layers.Dense(1)])
        x = keras.Input((2,))
        return keras.Model(x, keras.layers.Dense(2)(inner(x)))

    one, two, other = network(), network(), network(4)
    assert not weights_of(one).keys() & weights_of(two).keys()
    take_weights(two, weights_of(one))
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="no layer in common"):
        take_weights(other, weights_of(one))


def test_layers_that_may_be_new_are_no_part():
    source, target = (keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="same"), *more])
                      for more in ([], [keras.layers.BatchNormalization(name="new")]))
    with pytest.raises(InputError, match="only 1 of 2 layers find weights"):
        take_weights(target, weights_of(source))
    take_weights(target, weights_of(source), new=(keras.layers.BatchNormalization,))
    np.testing.assert_array_equal(target.get_weights()[0], source.get_weights()[0])
