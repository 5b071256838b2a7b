"""A configuration made into its parts: what it leaves to the data, and what does not fit."""

import numpy as np
import pytest

from alexnet_jax.preparation import records
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import experiment as experiment_lib
from alexnet_jax.training.config import Config
from alexnet_jax.training.experiment import Experiment, build
from configs import folder, tiny
from tests.typed_config import typed


def _build(crop_px: int, **model: str) -> Experiment:
    config = tiny.get_config()
    config.augment.crop_px = crop_px
    config.model.update(model)
    return build(typed(config), with_data=False)


@pytest.mark.parametrize('forms', ['plain', 'fast'])
@pytest.mark.parametrize('crop_px', [1, 2, 3])
def test_a_crop_that_leaves_nothing_for_a_layer_is_one_line(crop_px, forms):
    _build(7, forms=forms)
    with pytest.raises(UserError, match=f'crop_px = {crop_px} is too small: .* has no output'):
        _build(crop_px, forms=forms)


def test_a_bug_of_the_network_is_no_matter_of_the_crop(monkeypatch):
    def broken(*arguments):
        raise TypeError('a bug')

    monkeypatch.setattr(experiment_lib, 'count_macs', broken)
    with pytest.raises(TypeError, match='a bug'):
        _build(7)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    """Photographs of three classes, with the split `val`, and the same with another name for it."""
    data_dir = tmp_path_factory.mktemp('data')
    random = np.random.default_rng(0)
    for name, split in (('photographs', 'val'), ('others', 'dev')):
        records.write_dataset(
            data_dir,
            name=name,
            version='1.0.0',
            description='random',
            image_shape=(256, 256, 3),
            class_names=['cat', 'dog', 'owl'],
            splits={'train': range(4), split: range(3)},
            shards={'train': 1, split: 1},
            read_example=lambda i: (random.integers(0, 256, (256, 256, 3), np.uint8), i % 3),
        )
    return data_dir


def _folder(data_dir, **fields) -> Config:
    config = folder.get_config()
    config.data.dir = str(data_dir)
    config.update_from_flattened_dict({'parallel.data': 1, **fields})
    return typed(config)


def test_a_folder_s_classes_and_split_are_taken_from_the_data(data_dir):
    config = _folder(data_dir)
    assert (config.model.num_classes, config.data.eval_split) == (0, '')
    experiment = build(config)
    assert experiment.config.model.num_classes == 3
    assert experiment.config.data.eval_split == 'val'
    assert experiment.abstract_state().params['fc8']['kernel'].shape == (4096, 3)
    assert len(experiment.dataset.eval) == 3
    # What is saved with the run is what was found; a resumed run finds the same.
    saved = experiment.config.to_dict()
    assert (saved['model']['num_classes'], saved['data']['eval_split']) == (3, 'val')
    assert not build(_folder(data_dir)).config.changes_since(saved)


def test_a_folder_without_a_split_to_evaluate_on_is_one_line(data_dir):
    words = r"data\.eval_split = '' looks for test, validation, val, but others/1\.0\.0 has "
    with pytest.raises(UserError, match=words + 'train, dev; choose one of these splits') as error:
        build(_folder(data_dir, **{'data.name': 'others'}))
    assert '\n' not in str(error.value)
    named = build(_folder(data_dir, **{'data.name': 'others', 'data.eval_split': 'dev'}))
    assert named.config.data.eval_split == 'dev'


def test_another_number_of_classes_is_one_line(data_dir):
    with pytest.raises(UserError, match=r'set --config\.model\.num_classes=3') as error:
        build(_folder(data_dir, **{'model.num_classes': 1000}))
    assert '\n' not in str(error.value)
