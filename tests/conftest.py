"""Eight CPU devices; ranks and dtypes are never promoted in silence; float64 where asked for."""

import os
import platform
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]
# Memory is kept by glibc's mallopt only.
collect_ignore = [] if platform.libc_ver()[0] == 'glibc' else ['runtime/test_memory.py']

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')
assert jax.device_count() == 8  # starts the backend: no test may choose another number after this


@pytest.fixture
def x64():
    """Switch 64-bit types on for one test."""
    jax.config.update('jax_enable_x64', True)
    yield
    jax.config.update('jax_enable_x64', False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line how many tests lack the real photographs, which are not in the repository."""
    failed = terminalreporter.stats.get('failed', [])
    count = sum('photographs' in report.keywords for report in failed)
    folder = ROOT.parent / 'shared' / 'data'
    if count and not folder.exists():
        line = f'photographs are missing in {folder}; tests that need them: {count}'
        terminalreporter.write_line(line, red=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skipped test fails the run: nothing may stay unrun unnoticed."""
    reporter = session.config.pluginmanager.get_plugin('terminalreporter')
    if os.environ.get('CI') == 'true' and reporter and reporter.stats.get('skipped'):
        reporter.write_line('\nskipped tests fail in CI', red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
