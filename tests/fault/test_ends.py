"""A run without an output, in a folder of an odd name; one at its end, past it, and longer."""

import pytest

from tests.fault import single

pytestmark = [pytest.mark.fault, pytest.mark.slow]
ARGUMENTS = ('--config.training.eval_every_epochs=0', '--config.optim.schedule=constant')


def test_a_run_without_an_output_then_at_its_end_past_it_and_longer(tmp_path):
    """Standard output is closed, and what is written to standard error finds no space."""
    workdir, data_dir = tmp_path / "a run's é #1", tmp_path / 'data'
    command = single.command(workdir, data_dir, *ARGUMENTS)
    code, _, _ = single.run(['sh', '-c', 'exec "$@" >&- 2>/dev/full', 'sh', *command])
    assert code == 0
    assert single.sealed_steps(workdir) == [9, 12]
    for steps in (12, 8):
        command = single.command(
            workdir, data_dir, *ARGUMENTS, f'--config.training.total_steps={steps}'
        )
        code, out, err = single.run(command)
        assert (code, out) == (0, f'nothing to train: {workdir} is at step 12 of {steps}\n'), err
    assert single.sealed_steps(workdir) == [9, 12]
    command = single.command(workdir, data_dir, *ARGUMENTS, '--config.training.total_steps=15')
    code, _, err = single.run(command)
    assert code == 0, err
    assert [step for step, _ in single.losses(workdir)] == list(range(1, 16))
    assert single.rows(workdir)[-1]['kind'] == 'eval'
