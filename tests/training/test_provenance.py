"""What each start of a run rests on is kept, and what its network needs when the data are gone."""

import dataclasses
import hashlib
import json

import numpy as np
from etils import epath

from alexnet_jax.runtime.config import flatten
from alexnet_jax.training import provenance
from alexnet_jax.training.config import Config
from alexnet_jax.training.experiment import build
from configs import tiny
from tests.typed_config import typed


def _read(path):
    return json.loads(path.read_text())


def test_every_start_and_the_data_are_kept(tmp_path, monkeypatch):
    config = tiny.get_config()
    config.data.dir = str(tmp_path / 'data')
    first = build(typed(config))
    longer = dataclasses.replace(first.config.training, total_steps=13)
    second = dataclasses.replace(first, config=dataclasses.replace(first.config, training=longer))
    workdir = tmp_path / 'run'
    for start, experiment in enumerate((first, second), start=1):
        monkeypatch.setattr('sys.argv', ['main', f'--start={start}'])
        provenance.save(experiment, epath.Path(workdir))

    assert sorted(path.name for path in (workdir / 'starts').iterdir()) == ['1', '2']
    for start, experiment in (('1', first), ('2', second)):
        saved = _read(workdir / 'starts' / start / 'config.json')
        assert flatten(saved) == flatten(experiment.config.to_dict())
        assert Config.from_dict(saved) == experiment.config
        environment = _read(workdir / 'starts' / start / 'environment.json')
        assert environment['arguments'] == [f'--start={start}']
        assert environment['devices'] == ['cpu', 'cpu']
        assert environment['packages']['jax']
    for name in ('config.json', 'environment.json'):  # those of the newest start
        assert (workdir / name).read_bytes() == (workdir / 'starts' / '2' / name).read_bytes()

    about = _read(workdir / 'data' / 'data.json')
    assert about['class_names'] == list('0123456789')
    assert about['fingerprint'] == first.dataset.fingerprint()
    digest = hashlib.sha256(hashlib.sha256('\n'.join('0123456789').encode()).digest())
    assert about['fingerprint']['class_names'] == digest.hexdigest()[:16]
    assert about['preparation'] is None or isinstance(about['preparation'], dict)
    with np.load(workdir / 'data' / 'statistics.npz', allow_pickle=False) as saved:
        kept = dict(saved)
    assert kept.keys() == {'mean_image', 'eigenvectors', 'std'}
    images = np.stack([first.dataset.train[i]['image'] for i in range(1437)])
    np.testing.assert_allclose(kept['mean_image'], images.mean(0), rtol=1e-6)
    np.testing.assert_allclose(kept['std'], [images.std()], rtol=1e-6)
    for name, array in first.host_statistics._asdict().items():
        np.testing.assert_array_equal(kept[name], array)
    assert not list(workdir.rglob('*.tmp'))
