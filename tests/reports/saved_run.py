"""Files of a run, as `train` leaves them in a workdir."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections


def change(config: ml_collections.ConfigDict, fields: Mapping[str, Any]) -> None:
    """Set fields by their dotted names, of any type and whether they are there or not."""
    with config.unlocked(), config.ignore_type():
        for name, value in fields.items():
            *path, last = name.split('.')
            section = config
            for part in path:
                section = section[part]
            section[last] = value


def save(
    directory: pathlib.Path, config: ml_collections.ConfigDict, rows: Sequence[Mapping[str, Any]]
) -> pathlib.Path:
    """Write config.json, environment.json and metrics.jsonl into a new folder; return it."""
    directory.mkdir(parents=True)
    (directory / 'config.json').write_text(json.dumps(config.to_dict()))
    (directory / 'environment.json').write_text('{"git": "abc"}')
    (directory / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return directory
