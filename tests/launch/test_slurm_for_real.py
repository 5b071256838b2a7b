"""The sbatch files on a real Slurm on this machine; not part of a plain `pytest`.

    apt-get install slurm-wlm munge      # Debian, Ubuntu; nothing needs to be configured or started
    python -m pytest -m slurm
"""

import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.launch import slurm as slurm_lib

ROOT = Path(__file__).resolve().parents[2]
MISSING = [p for p in slurm_lib.PROGRAMS if not shutil.which(p, path=slurm_lib.PATH)]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(MISSING), reason=f'apt-get install slurm-wlm munge: no {MISSING}'),
]
STEPS = 60


@pytest.fixture(scope='module')
def slurm():
    # The path of a socket may have 107 characters, which pytest's directories can exceed.
    with tempfile.TemporaryDirectory() as directory, slurm_lib.running(Path(directory) / 's') as s:
        yield s
