"""The data of a run: the digits prepare themselves, the statistics are computed once."""

import jax
import numpy as np
import pytest

from alexnet_jax.input import stats
from alexnet_jax.preparation import digits
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.dataset import load
from configs import digits as digits_config
from tests.typed_config import typed


def section(dir, **fields):
    config = digits_config.get_config()
    config.data.update(dir=str(dir), **fields)
    return typed(config).data


def test_digits_are_prepared_and_the_statistics_kept(tmp_path, monkeypatch):
    given = section(tmp_path)
    dataset, statistics = load(given)
    images = np.stack([dataset.train[i]['image'] for i in range(1437)])
    np.testing.assert_allclose(statistics.mean_image, images.mean(0), rtol=1e-6)
    np.testing.assert_allclose(statistics.std, [images.std()], rtol=1e-6)
    monkeypatch.setattr(digits, 'prepare_digits', pytest.fail)
    monkeypatch.setattr(stats, 'compute_statistics', pytest.fail)
    again, kept = load(given)
    assert again.fingerprint() == dataset.fingerprint()
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), kept, statistics)


def test_nothing_else_is_prepared(tmp_path):
    with pytest.raises(UserError, match='is not in'):
        load(section(tmp_path, name='mnist'))
    assert not list(tmp_path.iterdir())
