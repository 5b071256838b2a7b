"""The command `report run`: the numbers of the page against a log made by hand, and its HTML."""

import datetime
import html.parser
import json
import os
import sys

import pytest
from etils import epath

from alexnet_jax import report
from alexnet_jax.reports import accounting, figures, page, workdirs
from alexnet_jax.runtime.errors import UserError
from configs import alexnet, digits
from tests.reports import saved_run

HOSTILE = '<script>alert("1")</script>&\'"'
PIXEL = 'data:image/png;base64,iVBORw0KGgo='


def event(step, time_s, name, **details):
    return {'step': step, 'epoch': step / 10, 'kind': 'event', 'time_s': time_s, 'event': name} | (
        details
    )


def train(step, time_s, speed=None, wait=0.0):
    row = {'step': step, 'epoch': step / 10, 'kind': 'train', 'time_s': time_s}
    row |= {'train/learning_rate': 0.01, 'train/loss': 2.0, 'train/top1_error': 0.5}
    if speed:
        row |= {'perf/images_per_second': speed, 'perf/data_wait': wait}
    return row


def evaluation(step, time_s, top1, **more):
    values = {'eval/loss': 1.0, 'eval/top1_error': top1, 'eval/top5_error': top1 / 2, **more}
    return {'step': step, 'epoch': step / 10, 'kind': 'eval', 'time_s': time_s, **values}


# With a batch of 100 images, 20 steps at 100 images/s, 10 at 50 and 10 at 100 are 50 s. The median
# is 100, so a step usually takes 1 s: step 1 of the first start, the 10 before the first row of the
# second and the 2 after its last row are 13 s more. 0.25 * 20 + 0.5 * 20 = 15 s of the 50 s waited
# for data, so 0.3 of the 63 s did, and 44.1 s computed.
ROWS = [
    event(0, 2.0, 'started', mesh='1x2x1'),
    train(1, 9.0),
    train(21, 31.0, 100.0, 0.25),
    train(31, 53.0, 50.0, 0.5),
    evaluation(31, 57.0, 0.25),
    event(31, 60.0, 'stopped', signal=15),
    event(31, 61.0, 'resumed', mesh='2x2x1', **{'optim.learning_rate': '0.01 -> 0.02'}),
    train(41, 75.0),
    train(51, 86.0, 100.0, 0.0),
    evaluation(53, 90.0, 0.5, **{'eval/top1_error_10_views': 0.375}),
]


def write_run(directory, rows=ROWS, fields=None, torn=False, environment=None):
    config = alexnet.get_config()
    usual = {'training.batch_size': 100, 'training.total_steps': 53, 'model.num_classes': 10}
    saved_run.change(config, usual | (fields or {}))
    saved_run.save(directory, config, rows)
    if environment is not None:
        (directory / 'environment.json').write_text(json.dumps(environment))
    if torn:
        with open(directory / 'metrics.jsonl', 'a') as file:
            file.write('{"step": 5')
    return epath.Path(directory)


def write_report(directory, confusion, names):
    classes = []
    for i, name in enumerate(names):
        total, predicted = sum(confusion[i]), sum(row[i] for row in confusion)
        row = {'index': i, 'name': name, 'examples': total}
        row |= {'recall': confusion[i][i] / total if total else None}
        row |= {'precision': confusion[i][i] / predicted if predicted else None, 'f1': None}
        classes.append(row)
    about = {'step': 53, 'examples': 20, 'data_set': 'd/1', 'split': 'test', 'predictions': 'x'}
    directory.mkdir()
    (directory / 'report.json').write_text(
        json.dumps({**about, 'classes': classes, 'confusion': confusion})
    )


class Elements(html.parser.HTMLParser):
    """Collects the elements of a page, their attributes and its texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)

    def text(self):
        return ' '.join(' '.join(self.texts).split())


def error_of(capsys, *arguments):
    assert report.main(['run', '--examples=0', *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith('error: ')
    assert err.count('\n') == 1
    return err


def test_the_time_of_a_run_is_accounted_for():
    time = accounting.time_of(ROWS, batch_size=100, saved_starts=2)
    known_s, estimated_s = 20 * 1 + 10 * 2 + 10 * 1, 1 + 0 + 10 + 2
    share = (0.25 * 20 + 0.5 * 20 + 0.0 * 10) / known_s
    training_s = known_s + estimated_s
    assert time.estimated_steps == estimated_s
    assert time.waiting_s == pytest.approx(share * training_s)
    assert time.computing_s == pytest.approx((1 - share) * training_s)
    assert time.wait_share == pytest.approx(share)
    assert time.starting_s == pytest.approx((9 - 1) + (75 - 60 - 10))
    assert time.logged_s == 90
    assert time.other_s == pytest.approx(90 - training_s - 13)
    assert time.goodput == pytest.approx((1 - share) * training_s / 90)
    assert (time.evaluations, time.timed_evaluations, time.evaluation_s) == (2, 1, 4.0)
    assert (time.longest_s, time.longest_steps) == (22.0, (21, 31))
    assert time.steps_again == 0


def test_steps_without_a_speed_take_no_more_time_than_passed():
    # 20 of the 41 steps have a speed and take 20 s; those before took 5 s and those after 3 s.
    rows = [event(0, 1.0, 'started'), train(11, 5.0), train(31, 25.0, 100.0, 0.5)]
    time = accounting.time_of([*rows, evaluation(41, 28.0, 0.5)], batch_size=100, saved_starts=0)
    assert time.estimated_steps == 11 + 10
    assert (time.computing_s, time.waiting_s) == (14.0, 14.0)
    assert (time.starting_s, time.other_s, time.goodput) == (0.0, 0.0, 0.5)


def test_the_speed_is_that_of_the_rows_that_have_one():
    speed = accounting.speed_of(ROWS)
    assert (speed.rows, speed.median, speed.least, speed.largest) == (3, 100, 50, 100)
    assert speed.quartiles == (75, 100)
    assert accounting.speed_of(ROWS[:2]) is None
    assert accounting.time_of(ROWS[:2], 100, 1) is None
    assert accounting.time_of([], 100, 0) is None


@pytest.mark.parametrize(
    ('rows', 'saved', 'again'),
    [
        (ROWS, 2, 0),
        (ROWS, 3, None),  # a start of which the log knows nothing
        (ROWS[:5] + ROWS[6:], 2, None),  # killed
        ([*ROWS[:6], event(20, 61.0, 'resumed'), *ROWS[7:]], 2, None),  # from an older checkpoint
        (ROWS[:5], 1, 0),
        (ROWS[1:5], 0, 0),  # the log begins without an event
    ],
)
def test_the_log_can_say_only_after_a_signal_that_no_step_was_trained_twice(rows, saved, again):
    assert accounting.time_of(rows, 100, saved).steps_again == again


def test_the_starts_are_those_of_the_log(tmp_path):
    found = page.gather(write_run(tmp_path / 'run'))
    first, second = found.starts
    assert (first.first_step, first.last_step, first.logged_s) == (0, 31, 60)
    assert first.end == 'SIGTERM stopped it, and it saved step 31'
    assert (second.first_step, second.last_step, second.logged_s) == (31, 53, 30)
    assert second.end == 'it reached the end of training'
    assert second.changes == ['optim.learning_rate: 0.01 -> 0.02']
    assert found.conditions.mesh == '2x2x1'
    names = [(event.step, event.name) for event in found.events]
    assert names == [(0, 'started'), (31, 'stopped'), (31, 'resumed')]
    assert found.events[1].details == 'signal 15'


def test_last_and_best_evaluation(tmp_path):
    found = page.gather(write_run(tmp_path / 'run'))
    assert (found.best.step, found.best.errors['eval/top1_error']) == (31, 0.25)
    assert found.last.step == 53
    assert found.last.errors == {
        'eval/top1_error': 0.5,
        'eval/top5_error': 0.25,
        'eval/top1_error_10_views': 0.375,
    }
    assert (found.is_finished, found.evaluations, found.compared) == (True, 2, [])


def test_a_run_of_the_paper_stands_beside_the_paper(tmp_path):
    rows = [event(0, 0.0, 'started'), evaluation(900, 10.0, 0.42)]
    rows[1] |= {'epoch': 90.0, 'eval/top1_error_10_views': 0.41}
    config = alexnet.get_config()
    saved_run.save(tmp_path / 'run', config, rows)
    found = page.gather(epath.Path(tmp_path / 'run'))
    assert [(row.metric, row.paper, row.run_2012, row.ours) for row in found.compared] == [
        ('top-1 error with ten views', 40.7, 40.664, pytest.approx(41.0))
    ]
    rows[1]['epoch'] = 80.0  # too early
    saved_run.save(tmp_path / 'early', config, rows)
    assert not page.gather(epath.Path(tmp_path / 'early')).compared


def test_the_fields_that_differ_from_the_file(tmp_path):
    config = digits.get_config()
    saved_run.change(config, {'optim.learning_rate': 0.5})
    for name, file in (('a', 'somewhere/configs/digits.py'), ('b', '/tmp/digits.py')):
        saved_run.save(tmp_path / name, config, ROWS)
        environment = {'arguments': ['--config', file, '--config.optim.learning_rate=0.5 ']}
        (tmp_path / name / 'environment.json').write_text(json.dumps(environment))
    found = page.gather(epath.Path(tmp_path / 'a')).conditions
    assert found.compared_with == 'configs/digits.py'
    assert found.changes == {'optim.learning_rate': ('0.003', '0.5')}
    assert found.command[-1] == "'--config.optim.learning_rate=0.5 '"
    other = page.gather(epath.Path(tmp_path / 'b')).conditions
    assert other.compared_with == 'configs/alexnet.py'
    assert other.changes['data.name'] == ("'imagenet2012'", "'digits'")


def test_a_file_that_a_workdir_names_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'evil.py').write_text('raise SystemExit("it was run")')
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'evil.py').write_text('raise SystemExit("it was run")')
    for name in ('evil.py', 'configs/evil.py', '../configs/evil.py'):
        environment = {'arguments': [f'--config={name}']}
        run = write_run(tmp_path / str(len(name)), environment=environment)
        assert page.gather(run).conditions.compared_with == 'configs/alexnet.py'


def test_the_dates_of_the_starts(tmp_path):
    run = write_run(tmp_path / 'run')
    began = 1_000_000_000
    for number, at in ((1, began), (2, began + 200)):
        folder = tmp_path / 'run' / 'starts' / str(number)
        folder.mkdir(parents=True)
        (folder / 'environment.json').write_text('{}')
        os.utime(folder / 'environment.json', (at, at))
    os.utime(run / 'metrics.jsonl', (began + 300, began + 300))
    found = page.gather(run)
    assert found.begun_at[1] - found.begun_at[0] == datetime.timedelta(seconds=200)
    assert found.elapsed_s == 300
    os.utime(run / 'metrics.jsonl', (began + 50, began + 50))  # before the second start
    assert page.gather(run).elapsed_s is None
    for number in (1, 2):  # of a copy, whose files have the date of the copying
        os.utime(tmp_path / 'run' / 'starts' / str(number) / 'environment.json', (began, began))
    assert page.gather(run).elapsed_s is None


def test_the_classes_and_confusions_worst_first(tmp_path):
    run = write_run(tmp_path / 'run')
    confusion = [[8, 2, 0, 0], [0, 4, 0, 0], [3, 1, 2, 0], [0, 0, 0, 0]]
    write_report(tmp_path / 'run' / 'class_report', confusion, ['a', 'b', 'c', 'd'])
    found = page.gather(run).classes
    assert [(row.name, row.examples) for row in found.classes] == [('c', 6), ('a', 10), ('b', 4)]
    assert [row.error for row in found.classes] == pytest.approx([4 / 6, 0.2, 0.0])
    assert [row.precision for row in found.classes] == pytest.approx([1.0, 8 / 11, 4 / 7])
    assert (found.left_out, found.empty) == (0, 1)
    shown = [(row.true_name, row.predicted, row.count, row.share) for row in found.confusions]
    assert shown == [('c', 'a', 3, 0.5), ('a', 'b', 2, 0.2), ('c', 'b', 1, pytest.approx(1 / 6))]


def test_the_command_writes_a_page_that_loads_nothing(tmp_path, capsys):
    environment = {'arguments': [f'--config=configs/{HOSTILE}.py'], 'git': HOSTILE}
    run = write_run(tmp_path / 'run', environment=environment)
    write_report(tmp_path / 'run' / 'class_report', [[1, 2], [0, 3]], [HOSTILE, 'b'])
    assert report.main(['run', str(run), '--json']) == 0
    *_, wrote, last = capsys.readouterr().out.splitlines()
    assert wrote == f'wrote {run}/report.html'
    found = json.loads(last)
    assert found['path'] == f'{run}/report.html'
    assert found['time']['goodput'] == pytest.approx(44.1 / 90)
    assert found['last']['errors']['eval/top1_error'] == 0.5
    text = (run / 'report.html').read_text()
    elements = Elements(text)
    assert elements.tags.count('svg') == 4
    assert not {'script', 'iframe', 'object', 'embed'} & set(elements.tags)
    assert HOSTILE in elements.text()
    assert 'http' not in text
    assert '@import' not in text
    assert text.count('url(') == text.count('url(#')
    for name, value in elements.attributes:
        assert not name.startswith('on')
        if name in ('src', 'href'):
            assert value.startswith(('#', 'data:'))
    ids = [value for name, value in elements.attributes if name == 'id']
    assert len(ids) == len(set(ids))
    used = [value[1:] for name, value in elements.attributes if name == 'href' and value[0] == '#']
    assert set(used) <= set(ids)
    words = elements.text()
    assert 'gave 50.00 % top-1 error, 25.00 % top-5 error and 37.50 % top-1 error with ten' in words
    assert 'was at step 31: 25.00 % top-1 error and 12.50 % top-5 error' in words
    assert '49.0 % of the logged time' in words


def test_the_figures_have_the_colours_of_the_page(tmp_path):
    for drawing in figures.draw_run(workdirs.read_run(write_run(tmp_path / 'run'))):
        assert 'var(--ink)' in drawing.svg
        assert not [word for word in drawing.svg.split() if word.startswith('#0')]
        assert 'fill: #fff' not in drawing.svg


def test_examples_are_shown_only_if_there_are_some(tmp_path):
    run = write_run(tmp_path / 'run')
    example = page.Example(image=PIXEL, true_name=HOSTILE, predictions=[('cat', 0.75)])
    page.write(run, run / 'with.html', examples=lambda: [example])
    page.write(run, run / 'without.html')
    shown = Elements((run / 'with.html').read_text())
    assert ('src', PIXEL) in shown.attributes
    assert f'{HOSTILE} cat 75.0 %' in shown.text()
    assert 'Examples' not in Elements((run / 'without.html').read_text()).text()
    with pytest.raises(ValueError, match='not a PNG or JPEG'):
        page.Example(image='http://example.org/a.png', true_name='', predictions=[])


@pytest.mark.parametrize('count', [0, 1, 2, 3, 5])
def test_a_run_that_has_only_begun(tmp_path, count):
    run = write_run(tmp_path / 'run', ROWS[:count], torn=True)
    found = page.write(run, run / 'report.html')
    words = Elements((run / 'report.html').read_text()).text()
    assert not found.is_finished
    assert 'The last line of metrics.jsonl is incomplete and is not counted.' in words
    assert 'The run is not finished' in words
    assert ('has not been evaluated' in words) == (count < 5)
    assert ('The log has no row with a speed yet.' in words) == (count < 3)


def test_without_a_report_of_classes_the_page_says_how_to_get_it(tmp_path):
    run = write_run(tmp_path / 'run')
    page.write(run, run / 'report.html')
    words = Elements((run / 'report.html').read_text()).text()
    assert '--config.evaluation.report_dir=WORKDIR/class_report' in words
    assert 'Errors of each class' not in words


def test_a_hang_is_noted(tmp_path):
    run = write_run(tmp_path / 'run')
    (run / 'hang-0.txt').write_text('')
    assert 'hang-0.txt' in page.gather(run).notes[0]


def test_bad_input_is_one_line(tmp_path, capsys):
    assert 'is not the workdir of a run' in error_of(capsys, tmp_path / 'absent')
    (tmp_path / 'empty').mkdir()
    assert 'is not the workdir of a run' in error_of(capsys, tmp_path / 'empty')
    run = write_run(tmp_path / 'run')
    assert 'has no report.json' in error_of(capsys, run, '--class_report', tmp_path / 'empty')
    folder = tmp_path / 'damaged'
    write_report(folder, [[1, 0], [0, 1]], ['a', 'b'])
    good = json.loads((folder / 'report.json').read_text())
    for bad in ({'confusion': [[1]]}, {'confusion': [[1, 0], [0]]}, {'classes': [{'name': 1}] * 2}):
        (folder / 'report.json').write_text(json.dumps(good | bad))
        assert 'is damaged' in error_of(capsys, run, '--class_report', folder)
    for text in ('[]', '3'):
        (folder / 'report.json').write_text(text)
        assert 'is damaged' in error_of(capsys, run, '--class_report', folder)
    (folder / 'report.json').write_text('{')
    assert 'cannot be read' in error_of(capsys, run, '--class_report', folder)
    assert 'cannot write' in error_of(capsys, run, '--output', tmp_path / 'run')
    for text in ('[]', '{"arguments": 3}', '{"packages": 3}'):
        (run / 'environment.json').write_text(text)
        assert 'are damaged' in error_of(capsys, run)
    for change in ({'time_s': None}, {'perf/images_per_second': 0}, {'train/loss': 'much'}):
        other = write_run(
            tmp_path / next(iter(change)).replace('/', '_'), [*ROWS[:3], ROWS[2] | change]
        )
        assert 'are damaged' in error_of(capsys, other)


def test_without_jinja2_one_line_says_what_to_install(tmp_path, monkeypatch):
    found = page.gather(write_run(tmp_path / 'run'))
    monkeypatch.setitem(sys.modules, 'jinja2', None)
    with pytest.raises(UserError, match=r'pip install "jinja2>=3.1.6,<4"'):
        page.html(found, [])


@pytest.mark.parametrize(
    ('seconds', 'words'),
    [
        (0, '0.0 s'),
        (59.96, '1 min 0 s'),
        (3569, '59 min 29 s'),
        (3599.9, '1 h 0 min'),
        (86399, '1 d 0 h'),
        (200_000, '2 d 8 h'),
    ],
)
def test_durations_in_words(seconds, words):
    assert page.duration(seconds) == words
