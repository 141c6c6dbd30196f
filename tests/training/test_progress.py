import contextlib
import dataclasses
import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from keras_mas.training import progress
from keras_mas.training.listening import TaskResult
from keras_mas.training.progress import DecodingLines, TaskLines, time_left
from keras_mas.training.run import train

# 80 examples a task, 6 epochs and one measurement of importance: 560 units a task.
UNITS = 80 * (6 + 1)


@pytest.fixture
def screen(monkeypatch):
    """A console that records; `screen(terminal)` makes it."""

    def make(terminal):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100, markup=False)
        monkeypatch.setattr(progress, "stderr_console", lambda: console)
        return console

    return make


def learned(stream, number, seconds=2.0):
    accuracies = [1.0, 0.5, 0.75][: len(stream.tasks)]
    return TaskResult(number, stream.tasks[number - 1], accuracies, {}, {}, seconds)


def shown(lines):
    """What the two bars show: (completed, total) of the run, and the status of the task."""
    run, now = lines.bars.tasks
    return (run.completed, run.total), now.fields["status"] if now.visible else None


def test_without_a_terminal_there_is_a_line_per_task(stream, screen):
    console = screen(False)
    with TaskLines(stream, "mas λ=1") as lines:
        assert lines.callbacks == ()
        lines.task_finished(learned(stream, 1, seconds=0))
        lines.task_started(2, stream.tasks[1], 6)
        for examples in range(0, 80, 10):
            lines.importance_measured(examples, 80)
        lines.task_finished(learned(stream, 2))
    assert console.file.getvalue().splitlines() == [
        "mas λ=1  task 1/3  ants  accuracy 1.000  mean so far 1.000  as saved",
        "mas λ=1  task 2/3  bees  accuracy 0.500  mean so far 0.750  2.0 s",
    ]


def test_a_strength_that_was_found_is_shown(stream, screen):
    console = screen(False)
    result = dataclasses.replace(learned(stream, 2), strength=67.0307, free=0.6398)
    with TaskLines(stream, "mas λ=auto") as lines:
        lines.task_finished(result)
    expected = "bees  accuracy 0.500  mean so far 0.750  λ 67  64% free  2.0 s"
    assert console.file.getvalue().splitlines() == [f"mas λ=auto  task 2/3  {expected}"]


def test_the_bars_count_tasks_epochs_and_importance(stream, screen):
    screen(True)
    lines = TaskLines(stream, "mas", epochs=[6, 6, 6])
    (epochs,) = lines.callbacks
    epochs.set_params({"steps": 4})
    assert shown(lines) == ((0, 3 * UNITS), None)
    lines.task_started(1, stream.tasks[0], 6)
    assert shown(lines) == ((0, 3 * UNITS), "epoch 1/6")
    epochs.on_epoch_begin(2)
    epochs.on_train_batch_end(1)
    assert shown(lines) == ((2.5 * 80, 3 * UNITS), "epoch 3/6")
    epochs.on_epoch_end(5)
    assert shown(lines) == ((6 * 80, 3 * UNITS), "epoch 6/6")
    lines.importance_measured(20, 80)
    assert shown(lines) == ((6.25 * 80, 3 * UNITS), "importance 20/80")
    lines.task_finished(learned(stream, 1))
    assert shown(lines) == ((UNITS, 3 * UNITS), None)


def test_importance_of_an_unknown_number_of_examples(stream, screen):
    screen(True)
    lines = TaskLines(stream, "mas")
    lines.task_started(1, stream.tasks[0], 6)
    lines.importance_measured(40, None)
    assert shown(lines) == ((6.5 * 80, 3 * UNITS), "importance 40")
    lines.importance_measured(100, None)  # more than the task's 80
    assert shown(lines) == ((UNITS, 3 * UNITS), "importance 100")


def test_the_run_never_goes_back(stream, screen):
    # The first task has fewer epochs than the others: 2 + 1, then 6 + 1 passes of 80 examples.
    screen(True)
    lines = TaskLines(stream, "mas", epochs=[2, 6, 6])
    seen = []
    for number, count in enumerate([2, 6, 6], 1):
        lines.task_started(number, stream.tasks[number - 1], count)
        for epoch in range(count):
            lines.epochs_done(epoch + 1)
            seen.append(shown(lines)[0])
        lines.importance_measured(80, 80)
        lines.task_finished(learned(stream, number))
        seen.append(shown(lines)[0])
    assert {total for _, total in seen} == {80 * 17}
    assert [done for done, _ in seen] == [80 * n for n in range(1, 18)]


def test_tasks_read_from_disk_are_not_taken_for_speed(stream, screen):
    screen(True)
    lines = TaskLines(stream, "mas", epochs=[6, 6, 6])
    lines.task_finished(learned(stream, 1, seconds=0))
    run = lines.bars.tasks[0]
    assert (run.completed, run.fields["skipped"]) == (UNITS, UNITS)
    assert run.elapsed is None
    lines.task_started(2, stream.tasks[1], 6)
    assert run.elapsed is not None


@pytest.mark.parametrize(
    ("elapsed", "completed", "total", "skipped", "text"),
    [
        (None, 0, 10, 0, ""),  # not started
        (5.0, 0, 10, 0, ""),  # nothing to measure the speed by
        (5.0, 4, 10, 4, ""),
        (60.0, 1, 61, 0, "1:00:00 left"),
        (10.0, 6, 10, 4, "0:00:20 left"),
        (10.0, 10, 10, 0, "0:00:00 left"),
    ],
)
def test_time_left(elapsed, completed, total, skipped, text):
    assert time_left(elapsed, completed, total, skipped) == text


def test_keras_shows_its_own_bars_if_asked_to(stream, screen):
    console = screen(True)
    with TaskLines(stream, "mas", verbose=1) as lines:
        assert lines.callbacks == ()
        lines.task_started(1, stream.tasks[0], 6)
    assert console.file.getvalue() == ""


def test_a_real_run_reaches_the_end(stream, settings, screen, tmp_path):
    screen(True)
    for done in (True, False):  # the second time, all tasks are read from disk
        with TaskLines(stream, "mas") as lines:
            train(stream, settings, tmp_path / "run", listeners=[lines])
            run = lines.bars.tasks[0]
            assert run.completed == run.total
            assert (run.fields["skipped"] == 0) == done
    assert not lines.bars.live.is_started


@pytest.mark.slow
def test_an_interrupted_run_leaves_the_terminal_clean():
    code = """
from types import SimpleNamespace
from keras_mas.training.progress import TaskLines
task = SimpleNamespace(name="ants", train=range(80), validation=range(20))
with TaskLines(SimpleNamespace(tasks=[task]), "mas") as lines:
    lines.task_started(1, task, 6)
    lines.epochs_done(2.5)
    lines.bars.refresh()
    raise KeyboardInterrupt
"""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    os.close(theirs)
    text = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while chunk := os.read(ours, 1 << 16):
            text += chunk
    process.wait()
    os.close(ours)
    assert b"epoch 3/6" in text
    assert text.rindex(b"\x1b[?25h") > text.rindex(b"\x1b[?25l")  # the cursor is shown again
    after = re.split(rb"\x1b\[2K", text)[-1]  # after the last line that was erased
    assert b"epoch" not in after and b"Traceback" in after


def test_decoding_is_told_of_once_for_many_inputs(capsys):
    with DecodingLines() as lines:
        for done in range(1, 1001):
            lines.decoded("'photos/train'", Path("cache"), done, 1000)
        for done in range(1, 1001):
            lines.decoded("'photos/test'", None, done, 1000)
        lines.decoded("'photos/val'", None, 1, 999)
    assert capsys.readouterr().err == (
        "decoding 1,000 inputs of 'photos/train' to 'cache'\n"
        "decoding 1,000 inputs of 'photos/test' into memory\n"
    )
