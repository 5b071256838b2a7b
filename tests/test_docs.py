"""The commands, fields, files and links that README.md and docs/ name are there and work.

A fenced `sh` block is run by this test, page by page, in a folder that looks like a fresh checkout,
unless the line above its fence says otherwise:

    <!-- slow -->                    by `-m slow`: it, or one before it, takes more than 10 s
    <!-- run by: FILE, which ... --> by another test or by .ci/run
    <!-- not run: REASON -->         by nobody, and why

The line `<!-- file: PATH -->` above a block has the test write it there.
"""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from alexnet_jax import benchmark, config_command, convert, figures, main, prepare, report
from alexnet_jax.runtime.config import fields
from alexnet_jax.training import config as config_lib
from alexnet_jax.training.config import Config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
COMMANDS = {'main': main, 'benchmark': benchmark, 'prepare': prepare, 'convert': convert}
COMMANDS |= {'report': report, 'figures': figures}
# What a mention such as `prepare folder --size=0` leaves out.
REQUIRED = {
    'prepare imagenet': ['--source=DIR'],
    'prepare folder': ['--source=DIR', '--name=photographs'],
    'report compare': ['--runs=DIR', '--baseline=RUN'],
}
SECTIONS = sorted({name.partition('.')[0] for name in fields(Config)} - {'seed'})
each_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)


class Block(NamedTuple):
    """A fenced block of a page and the comment above it."""

    language: str
    text: str
    comment: str  # 'slow', 'not run: ...', '' for none

    @property
    def file(self) -> str:
        """Where the block is to be written, '' for nowhere."""
        return self.comment.removeprefix('file: ') if self.comment.startswith('file: ') else ''


def blocks(page: Path) -> list[Block]:
    pattern = r'(?:^<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$'
    found = re.findall(pattern, page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [Block(language, text, comment) for comment, language, text in found]


def code_spans(page: Path) -> list[str]:
    text = re.sub(r'^```.*?^```$', '', page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [' '.join(span.split()) for span in re.findall(r'`([^`]+)`', text)]


def documented_commands() -> Iterator[str]:
    """Yield the command lines of the package that pages, docstrings and scripts show."""
    for page in PAGES:
        texts = [block.text for block in blocks(page) if block.language == 'sh']
        texts += code_spans(page)
        names = '|'.join(COMMANDS)
        texts += [f'python -m alexnet_jax.{s}' for s in texts if re.match(rf'({names}) -?\w', s)]
        yield from _commands('\n'.join(texts), page.name)
    for file in sorted((ROOT / 'configs').glob('*.py')):
        yield from _commands(ast.get_docstring(ast.parse(file.read_text())) or '', file.name)
    for file in sorted((ROOT / 'launch').rglob('*')):
        if file.suffix in ('.sh', '.sbatch'):
            yield from _commands(file.read_text().replace('\n#', '\n'), file.name)


def _commands(text: str, where: str) -> Iterator[str]:
    for line in text.replace('\\\n', ' ').splitlines():
        for part in re.split(r'&&|;|\||`', re.sub(r'\s#.*', '', line)):
            if found := re.search(r'python -m alexnet_jax\.(\w.*)', part):
                yield f'{where}: {" ".join(found[1].split())}'


@each_page
def test_each_command_is_run_or_says_why_not(page):
    for block in blocks(page):
        if block.language == 'sh' and block.comment not in ('', 'slow'):
            kind, _, rest = block.comment.partition(': ')
            assert kind in ('run by', 'not run'), f'{page}: <!-- {block.comment} -->'
            assert len(rest) > 5, f'{page}: <!-- {block.comment} --> says too little'
            if kind == 'run by':
                assert (ROOT / rest.split(',')[0]).is_file(), f'{page}: there is no {rest}'


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Make a folder that looks like a fresh checkout: what a command writes stays there."""
    for name in ('alexnet_jax', 'launch', 'results'):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'data'))
    monkeypatch.setenv('PATH', f'{Path(sys.executable).parent}:{os.environ["PATH"]}')
    return tmp_path


def run(page: Path, checkout: Path, *comments: str) -> None:
    """Run the blocks of a page with one of these comments, in order."""
    for block in blocks(page):
        if block.file:
            (checkout / block.file).write_text(block.text)
        if block.language == 'sh' and block.comment in comments:
            done = subprocess.run(
                ['bash', '-euxo', 'pipefail', '-c', block.text],
                cwd=checkout,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f'{page.name}: {done.stderr[-2000:]}'


def _with(comment: str) -> list[Path]:
    return [p for p in PAGES if any(b.language == 'sh' and b.comment == comment for b in blocks(p))]


@pytest.mark.parametrize('page', _with(''), ids=lambda page: page.name)
def test_the_commands_run(page, checkout):
    run(page, checkout, '')


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize('page', _with('slow'), ids=lambda page: page.name)
def test_the_slow_commands_run(page, checkout):
    run(page, checkout, '', 'slow')


@pytest.mark.slow
def test_the_digits_run_on_the_devices_that_jax_finds(checkout):
    """As the pages have it for one GPU, here for the one device that JAX finds of the CPU."""
    command = next(
        line
        for block in blocks(ROOT / 'docs' / 'running.md')
        if block.comment.startswith('run by: tests/test_docs.py')
        for line in block.text.splitlines()
    )
    words = [*shlex.split(command), '--config.training.total_steps=2']
    words += ['--config.evaluation.batch_size=360', '--config.optim.milestone_epochs=()']
    words += ['--config.optim.schedule=constant']
    subprocess.run(words, cwd=checkout, check=True)
    assert '"devices": "1 of 1"' in (checkout / 'runs/digits_gpu/metrics.jsonl').read_text()


@pytest.mark.parametrize('command', sorted(set(documented_commands())))
def test_each_command_line_can_be_parsed(command, monkeypatch):
    """By the command's own parser, and its overrides by the configuration that it names."""
    name, *words = _with_values(command.partition(': ')[2])
    parser = COMMANDS[name]._parser()
    monkeypatch.setattr(parser, 'exit', lambda status=0, message='': pytest.fail(message))
    monkeypatch.chdir(ROOT)
    if name not in ('main', 'benchmark'):
        parser.parse_args(words)
        return
    if not any(word.startswith('--config=') for word in words):
        words.append('--config=configs/alexnet.py')
    arguments, rest = parser.parse_known_args(words)
    overrides, unknown = config_command._split(rest)
    assert not unknown
    for override in overrides:
        path = override.removeprefix('--config.').partition('=')[0]
        assert path in fields(Config), f'{path} is not a field'
    file = Path(arguments.config)
    assert file.is_file() or file.name in _written_by_a_page(), f'there is no {file}'
    if overrides and file.name not in _written_by_a_page():
        config_lib.load(file, overrides)


def _with_values(command: str) -> list[str]:
    """Return the words of a command with a value for each placeholder."""
    command = re.sub(r'\[.*', '', command)  # what may follow
    command = command.replace('--config=FILE', '--config=configs/digits.py')
    command = command.replace('$unit', 'relu').replace('$rate', '0.01')
    command = command.replace('=CLASSES', '=1').replace('=N ', '=1 ')
    words = shlex.split(command)
    return [*words[:2], *REQUIRED.get(' '.join(words[:2]), []), *words[2:]]


def _written_by_a_page() -> set[str]:
    return {Path(block.file).name for page in PAGES for block in blocks(page) if block.file}


def test_each_field_that_is_named_is_a_field():
    """`optim.schedule`, `optim.schedule='steps'`, `--config.optim.schedule=steps`, and sections."""
    known = set(fields(Config))
    known |= {'.'.join(f.split('.')[:n]) for f in known for n in range(1, 3)}
    pattern = rf'(?:--config\.)?((?:{"|".join(SECTIONS)})(?:\.[a-z]\w*)+)(?: ?=.*)?'
    named = {
        (page.name, found[1])
        for page in PAGES
        for span in code_spans(page)
        for word in (span, *span.split())
        if (found := re.fullmatch(pattern, word))
    }
    for file in [*PAGES, *(ROOT / 'configs').glob('*.py'), *(ROOT / 'launch').rglob('*')]:
        if file.is_file():
            overrides = re.findall(r'--config\.([a-z][\w.]*\w)=', file.read_text())
            named |= {(file.name, field) for field in overrides}
    assert len(named) > 50
    unknown = {(page, name) for page, name in named if name not in known and not _is_code(name)}
    assert not unknown - {('tutorial.md', 'model.dropuot')}  # a mistake on purpose


def _is_code(name: str) -> bool:
    """Say whether a name is a module of the package, `training.step.train_step`, or a pattern."""
    package, module, *_ = name.split('.')
    module_file = ROOT / 'alexnet_jax' / package / f'{module}.py'
    return module_file.exists() or package == 'section' or 'convN' in name


def _anchors(page: Path) -> set[str]:
    text = re.sub(r'^```.*?^```$', '', page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r'^#+ (.*)$', text, flags=re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def _links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield (file, anchor) of each link of a page that leads into the repository."""
    for link in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
        if not re.match(r'https?:|mailto:', link):
            file, _, anchor = link.partition('#')
            yield (page.parent / file).resolve() if file else page, anchor


@each_page
def test_each_link_leads_somewhere(page):
    for target, anchor in _links(page):
        assert target.exists(), f'{page.name} links to {target}, which is not there'
        assert not anchor or anchor in _anchors(target), f'{page.name}: {target.name}#{anchor}'


def test_each_page_can_be_reached_from_the_readme():
    reached, waiting = set(), [ROOT / 'README.md']
    while waiting:
        page = waiting.pop()
        if page not in reached and page.suffix == '.md':
            reached.add(page)
            waiting += [target for target, _ in _links(page)]
    assert not {page.name for page in PAGES} - {page.name for page in reached}


@each_page
def test_each_file_that_is_named_is_there(page):
    """`configs/x.py`, `tests/fault`, `results/chance/*`; in docs/ also `network/model.py`."""
    written = {block.file for block in blocks(page)}
    for span in set(code_spans(page)) - written:
        if re.fullmatch(r'(configs|launch|tests|results|docs|alexnet_jax)/[a-z0-9_/.*-]*', span):
            assert list(ROOT.glob(span.rstrip('/'))), f'{page.name}: there is no {span}'
        elif re.fullmatch(r'[a-z_]+/[a-z_]+\.py', span):
            found = (ROOT / 'alexnet_jax' / span).exists() or (ROOT / span).exists()
            assert found, f'{page.name}: there is no {span}'
