"""λ out of a grid, chosen on validation data of some seeds, and the test results of others."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from keras_mas.training.divergence import DivergedError
from keras_mas.training.learner import Learner
from keras_mas.training.run import finished_result, train
from keras_mas.training.run_directory import read_json, write_json
from keras_mas.training.settings import Settings
from keras_mas.training.summary import strength_text
from keras_mas.training.tasks import TaskStream, load_tasks


class Grid:
    """Runs of one stream, each kept under runs/grids, and never repeated by any benchmark.

    Args:
        tasks: As for `load_tasks`.
        scenario: As for `load_tasks`.
        search_seeds: Seeds of the runs on validation data, which λ is chosen by.
        seeds: Seeds of the runs on test data.
    """

    def __init__(
        self,
        tasks: str | Path,
        scenario: str,
        search_seeds: Sequence[int] = (0, 1),
        seeds: Sequence[int] = (0, 1, 2, 3, 4),
    ):
        self.tasks, self.scenario = tasks, scenario
        self.search_seeds, self.seeds = search_seeds, seeds
        self.folder = Path("runs/grids") / f"{Path(tasks).stem}-{scenario}"
        self.streams: dict[int, TaskStream] = {}
        self.learner: Learner | None = None

    def stream(self, seed: int) -> TaskStream:
        """Return the stream with the validation data and the order of a seed."""
        if seed not in self.streams:
            self.streams[seed] = load_tasks(self.tasks, seed=seed, scenario=self.scenario)
        return self.streams[seed]

    def row(self, name: str, settings: Settings, strengths: Sequence[float]) -> dict:
        """Return λ with the best mean accuracy on validation data, and the test results with it.

        Args:
            name: What the row and the folders are called; different for different settings.
            settings: How the tasks are learned; its λ and seed are not used.
            strengths: The grid, to be widened where the best lies at an edge.
        """
        chosen, curve = self.strength(name, settings, strengths, widen=2)
        results = self.results(name, settings, chosen)
        row = {
            "name": name,
            "strength": chosen,
            "at_edge": bool(curve) and chosen in (curve[0][0], curve[-1][0]),
            "validation": curve,
            "seeds": list(self.seeds),
        }
        for key in ("average_accuracy", "forgetting"):
            row[key] = [None if result is None else round(result[key], 4) for result in results]
        print(line(row), flush=True)
        return row

    def strength(
        self, name: str, settings: Settings, strengths: Sequence[float], widen: int = 0
    ) -> tuple[float, list]:
        """Return λ with the best mean accuracy on validation data, and every λ with its accuracies.

        A single λ is not tried. While the best one lies at an edge, up to `widen` more are tried
        beyond it, each ten times further.
        """
        if len(strengths) == 1:
            return strengths[0], []
        curve = {each: self._validation(name, settings, each) for each in strengths}
        for _ in range(widen):
            best = _best(curve)
            if min(curve) < best < max(curve):
                break
            beyond = best / 10 if best == min(curve) else best * 10
            curve[beyond] = self._validation(name, settings, beyond)
        return _best(curve), [[each, curve[each]] for each in sorted(curve)]

    def results(self, name: str, settings: Settings, strength: float | str) -> list[dict | None]:
        """Return the test results of all seeds with a λ, or "auto"; None for one that diverged."""
        return [self._result(name, settings, strength, seed, "test") for seed in self.seeds]

    def _validation(self, name, settings, strength):
        results = [
            self._result(name, settings, strength, seed, "validation") for seed in self.search_seeds
        ]
        return [result and round(result["average_accuracy"], 4) for result in results]

    def _result(self, name, settings, strength, seed, split):
        """Return the result of one run, which is read if it is there; None if it diverged."""
        text = strength_text(strength).replace(":", "-")
        folder = self.folder / f"{name}-{text}-{split}-{seed}"
        failure = self.folder / f"{folder.name}.diverged.json"
        if failure.exists():
            return None
        settings = dataclasses.replace(settings, strength=strength, seed=seed)
        stream = self.stream(seed)
        finished = finished_result(stream, settings, folder, split)
        if finished is not None:  # without building a network to read it into
            return finished
        self.learner = self.learner or Learner(stream)
        try:
            return train(stream, settings, folder, evaluate_on=split, learner=self.learner)
        except DivergedError as error:
            write_json(failure, {"error": str(error)})
            return None


def _best(curve):
    """Return λ with the highest mean accuracy; one that diverged has none."""

    def accuracy(strength):
        return -1.0 if None in curve[strength] else statistics.mean(curve[strength])

    return max(curve, key=accuracy)


def mean_and_deviation(row: dict, measure: str) -> tuple[float, float]:
    """Return mean and standard deviation of a measure of a row over its seeds."""
    return statistics.mean(row[measure]), statistics.stdev(row[measure])


def line(row: dict) -> str:
    """Return a row as text: its name, λ with `*` at the edge of the grid, accuracy, forgetting."""
    if None in row["average_accuracy"]:
        return f"{row['name']}  λ={row['strength']:g}  diverged"
    edge = "*" if row["at_edge"] else ""
    accuracy, forgetting = (
        "{:.4f} ± {:.4f}".format(*mean_and_deviation(row, measure))
        for measure in ("average_accuracy", "forgetting")
    )
    return f"{row['name']}  λ={row['strength']:g}{edge}  {accuracy}  forgetting {forgetting}"


def replace_rows(path: Path, rows: Sequence[dict]) -> list[dict]:
    """Write rows to a file in place of those of the same stream and name; return all of it."""
    known = read_json(path)["rows"] if path.exists() else []
    new = {(row["stream"], row["name"]) for row in rows}
    kept = [row for row in known if (row["stream"], row["name"]) not in new]
    write_json(path, {"rows": [*kept, *rows]})
    return [*kept, *rows]
