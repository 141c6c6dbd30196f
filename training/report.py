"""What a run found, as text for a terminal and as a picture."""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed to write a file
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from keras_mas.errors import UsageError


def load_result(run: Path) -> dict:
    """Read the result of a finished run.

    Args:
        run: Folder of the run.

    Raises:
        UsageError: If the folder holds no finished run.
    """
    path = run / "result.json"
    if not path.is_file():
        raise UsageError(
            f"Expected the folder of a finished run. Received: '{run}', which has no result.json. "
            "Name a folder that `keras-mas train` wrote; the same command finishes a run that was "
            "interrupted."
        )
    return json.loads(path.read_text())


def title(result: dict) -> str:
    """Return a run's method with its λ, where that matters."""
    if result["method"] == "finetune":
        return "finetune"
    return f"{result['method']} λ={result['strength']:g}"


def print_result(result: dict, console: Console) -> None:
    """Print a run's accuracy matrix and what was forgotten."""
    names = result["tasks"]
    table = Table(
        title=f"{title(result)}: accuracy on each task (column) after learning each (row)",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("after")
    for name in names:
        table.add_column(name, justify="right")
    for i, row in enumerate(result["accuracy_matrix"]):
        cells = [
            f"{value:.3f}" if j <= i else f"[dim]{value:.3f}[/]" for j, value in enumerate(row)
        ]
        table.add_row(names[i], *cells)
    console.print(table)
    console.print(
        f"average accuracy {result['average_accuracy']:.4f}   "
        f"forgetting {result['forgetting']:.4f}   "
        f"backward transfer {result['backward_transfer']:+.4f}\n",
        highlight=False,
    )


def draw(results: Sequence[dict], path: Path) -> None:
    """Draw the accuracy of every task over time, a panel per run, to a PNG file.

    Args:
        results: Results of runs over the same tasks, as `load_result` returns them.
        path: File to write.
    """
    figure, panels = plt.subplots(
        1, len(results), figsize=(4.8 * len(results), 3.6), sharey=True, squeeze=False
    )
    for panel, result in zip(panels[0], results, strict=True):
        _draw_run(panel, result)
    panels[0][0].set_ylabel("accuracy on the test data")
    panels[0][-1].legend(title="task", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.suptitle(f"{results[0]['stream']}: what is left of every task", x=0.02, ha="left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_run(panel, result):
    names, matrix = result["tasks"], result["accuracy_matrix"]
    colors = plt.cm.viridis([j / max(1, len(names) - 1) * 0.9 for j in range(len(names))])
    for j, name in enumerate(names):
        learned = range(j, len(names))
        panel.plot(
            [i + 1 for i in learned],
            [matrix[i][j] for i in learned],
            marker="o",
            markersize=4,
            color=colors[j],
            label=name,
        )
    panel.set_title(
        f"{title(result)}\naverage {result['average_accuracy']:.3f}, "
        f"forgetting {result['forgetting']:.3f}",
        fontsize=10,
        loc="left",
    )
    panel.set_xlabel("tasks learned")
    panel.set_xticks(range(1, len(names) + 1))
    panel.set_ylim(top=1.02)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
