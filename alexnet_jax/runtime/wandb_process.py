"""The process that writes the rows of a run to Weights & Biases; `runtime/wandb_log.py` starts it.

It needs nothing but `wandb`. W&B replaces `sys.exit` and `sys.excepthook`, asks for a login on the
terminal and waits at the end of its process for as long as the network takes: here, none of that
can reach the training.

Each line of its standard input is JSON: first the settings of the run, then the rows, and last the
exit code of the run; where that is missing, the training was killed. A failure ends the process and
is written to its standard output.
"""

import json
import os
import signal
import sys
from collections.abc import Iterable
from typing import Any, NoReturn


def main() -> NoReturn:
    """Log what standard input says, and end the process."""
    # A scheduler may send the signals to all processes of a job. The training handles them, and
    # this process ends when the training does.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # W&B has a process of its own, which would keep the pipes open.
    lines = os.fdopen(os.dup(0), encoding='utf-8')
    report = os.fdopen(os.dup(1), 'w', encoding='utf-8')
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    sys.stdout = sys.stderr = open(os.devnull, 'w')  # noqa: SIM115
    code = 0
    try:
        log(map(json.loads, lines))
    except BaseException as error:  # W&B also raises SystemExit and KeyboardInterrupt
        report.write(_in_words(error))
        report.flush()
        code = 1
    os._exit(code)  # what W&B does at the end of a process may take for ever


def log(messages: Iterable[Any]) -> None:
    """Log a run: its settings, its rows and its exit code."""
    import wandb

    messages = iter(messages)
    start = next(messages)
    settings = wandb.Settings(
        init_timeout=start['init_s'],
        finish_timeout=start['finish_s'],
        finish_timeout_raises=True,
        silent=True,
        console='off',
        # no code, and nothing about the machine
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        host='',
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        stop_fn=lambda: None,  # the button `Stop run` of the web page
    )
    run = wandb.init(
        project=start['project'],
        id=start['id'],
        name=os.environ.get('WANDB_NAME') or start['name'],
        dir=start['workdir'],
        config=start['config'],
        allow_val_change=True,
        resume='allow',
        settings=settings,
    )
    # A row may be of a step that W&B has already: of the evaluation after it, or of a step that is
    # done again after a kill. W&B's own steps only rise, and would leave such a row out.
    run.define_metric('step')
    run.define_metric('*', step_metric='step')
    exit_code = 1
    for message in messages:
        if isinstance(message, int):
            exit_code = message
        else:
            run.log(message)
    run.finish(exit_code=exit_code)


def _in_words(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == 'wandb':
        return 'wandb is not installed; pip install "alexnet_jax[wandb]"'
    return str(error) or type(error).__name__


if __name__ == '__main__':
    main()
