"""Training by a formula, with which a search takes no time."""

import pytest

from keras_mas.metrics import average_accuracy, forgetting
from keras_mas.training.divergence import DivergedError
from keras_mas.training.listening import TaskResult
from keras_mas.training.run_directory import is_finished, read_json, write_json
from keras_mas.training.search import trials as trials_module


def rows_of(settings):
    """Rows of a run over three tasks: it forgets where λ is weak, and learns less where strong."""
    keeps = 1 - 0.5 / (1 + 10 * settings.strength)
    learns = 1 / (1 + settings.strength / 100)
    return [[learns * keeps ** max(0, i - j) for j in range(3)] for i in range(3)]


@pytest.fixture
def trained(monkeypatch, stream):
    """Replace training by a formula that diverges above λ = 100; return what was asked of it."""
    asked = []

    def train(stream, settings, directory, *, listeners, **options):
        directory.mkdir(parents=True, exist_ok=True)
        asked.append((settings.strength, settings.seed))
        if settings.strength > 100:
            raise DivergedError("The loss is nan.")
        rows = rows_of(settings)
        for number, (task, row) in enumerate(zip(stream.tasks, rows, strict=True), 1):
            for listener in listeners:
                listener.task_finished(TaskResult(number, task, row, {}, {}, 0.1))
        result = {"average_accuracy": average_accuracy(rows), "forgetting": forgetting(rows)}
        result |= {"accuracy_matrix": rows, "tasks": [task.name for task in stream.tasks]}
        result |= {"examples": {task.name: {"validation": 900} for task in stream.tasks}}
        write_json(directory / "result.json", result)
        return read_json(directory / "result.json")  # as `train` does

    def finished_result(stream, settings, directory, evaluate_on):
        return read_json(directory / "result.json") if is_finished(directory) else None

    monkeypatch.setattr(trials_module, "train", train)
    monkeypatch.setattr(trials_module, "finished_result", finished_result)
    return asked
