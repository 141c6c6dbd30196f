"""One run of Avalanche for `benchmarks/peers.py`, which starts it in an environment of its own.

    .venv-peers/bin/python benchmarks/peers_avalanche.py SETTINGS

SETTINGS is the JSON of `peers.job`; prints a line of JSON. What makes Avalanche faster on small
tasks is chosen: scaled images in memory as one tensor for each task, no worker processes, no
loggers, no mask over the logits of a head, PyTorch's fused Adam, evaluation in batches of 1,024.
"""

import contextlib
import importlib.metadata
import time
import warnings
from pathlib import Path

import torch
from peers_job import print_outcome
from peers_streams import read_tasks


def _import_torchvision():
    """Import torchvision, which Avalanche needs, although its own kernels may be missing.

    The registry's build of torchvision holds kernels for a CUDA build of torch. Beside a CPU build
    they do not load, and its import fails at two operators unless they are declared.
    """
    with contextlib.suppress(RuntimeError):
        import torchvision  # noqa: F401

        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


warnings.filterwarnings("ignore")
_TORCHVISION = _import_torchvision()  # declarations last as long as the object

from avalanche.benchmarks import tensors_benchmark  # noqa: E402
from avalanche.evaluation.metrics import accuracy_metrics  # noqa: E402
from avalanche.models import MultiHeadClassifier, MultiTaskModule  # noqa: E402
from avalanche.models.dynamic_modules import avalanche_model_adaptation  # noqa: E402
from avalanche.training import supervised  # noqa: E402
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin  # noqa: E402

EVALUATION_BATCH = 1024


class MLP(MultiTaskModule):
    """Fully connected ReLU layers of the given widths, and a head for each task."""

    def __init__(self, features, widths):
        super().__init__()
        layers = []
        for inputs, outputs in zip([features, *widths], widths, strict=False):
            layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
        self.trunk = torch.nn.Sequential(*layers)
        self.heads = MultiHeadClassifier(widths[-1], masking=False)

    def forward(self, x, task_labels):
        """Return the logits of the examples' own heads."""
        return self.heads(self.trunk(x), task_labels)


class EpochsEnded(SupervisedPlugin):
    """Notes when the last epoch of a task ended; what follows measures importance."""

    def after_training_epoch(self, strategy, **kwargs):
        """Note the time."""
        self.at = time.perf_counter()


def benchmark_of(tasks, evaluate_on):
    """Return the tasks as Avalanche's benchmark of scaled, flat images in memory."""
    learned = ("train",) if evaluate_on == "validation" else ("train", "validation")
    return tensors_benchmark(
        train_tensors=[_tensors([task[role] for role in learned]) for task in tasks],
        test_tensors=[_tensors([task[evaluate_on]]) for task in tasks],
        task_labels=list(range(len(tasks))),
    )


def _tensors(pairs):
    images = torch.cat([torch.from_numpy(images) for images, _ in pairs])
    labels = torch.cat([torch.from_numpy(labels) for _, labels in pairs])
    return images.flatten(1).float() / 255, labels


def model_of(benchmark, widths):
    """Return the network with all heads, its weights initialized as Keras does by default."""
    features = benchmark.train_stream[0].dataset[0][0].numel()
    model = MLP(features, widths)
    for experience in benchmark.train_stream:
        avalanche_model_adaptation(model, experience)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
    return model


def strategy_of(job, model, plugins):
    """Return Avalanche's strategy of the job."""
    return getattr(supervised, job["strategy"])(
        model=model,
        # ε as in Keras.
        optimizer=torch.optim.Adam(
            model.parameters(), lr=job["learning_rate"], eps=1e-7, fused=True
        ),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=job["batch_size"],
        train_epochs=job["epochs"],
        eval_mb_size=EVALUATION_BATCH,
        plugins=plugins,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), collect_all=False),
        **job["arguments"],
    )


def accuracies(strategy, stream):
    """Return the accuracy on every task now."""
    found = strategy.eval(stream)
    return [
        found[f"Top1_Acc_Exp/eval_phase/{stream.name}_stream/Task{task:03}/Exp{task:03}"]
        for task in range(len(stream))
    ]


def save(strategy, names, path):
    """Save the model, and those attributes of the method's plugin that later tasks need."""
    memory = {
        name: vars(plugin)[name]
        for plugin in strategy.plugins
        for name in names
        if name in vars(plugin)
    }
    torch.save({"model": strategy.model.state_dict(), "memory": memory}, path)


def run(job, folder):
    """Learn the stream, every task evaluated on before and after each, and return the outcome."""
    tasks = read_tasks(Path(job["data"]))
    seconds = dict.fromkeys(("training", "importance", "evaluation", "saving"), 0.0)
    started, processor = time.perf_counter(), time.process_time()
    torch.manual_seed(job["seed"])
    benchmark = benchmark_of(tasks, job["evaluate_on"])
    epochs = EpochsEnded()
    strategy = strategy_of(job, model_of(benchmark, job["widths"]), [epochs])
    matrix = []
    with timed(seconds, "evaluation"):
        accuracies(strategy, benchmark.test_stream)
    for number, experience in enumerate(benchmark.train_stream):
        before = time.perf_counter()
        # Each task begins with a new optimizer, as on the other side.
        strategy.train(experience, reset_optimizer_state=True)
        seconds["training"] += epochs.at - before
        seconds["importance"] += time.perf_counter() - epochs.at
        with timed(seconds, "evaluation"):
            matrix.append(accuracies(strategy, benchmark.test_stream))
        with timed(seconds, "saving"):
            save(strategy, job["memory"], folder / f"{number}.pt")
    return {
        "accuracy_matrix": matrix,
        "seconds": {
            **seconds,
            "total": time.perf_counter() - started,
            "processor": time.process_time() - processor,
        },
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "avalanche-lib")},
    }


@contextlib.contextmanager
def timed(seconds, phase):
    """Add the seconds that a block takes to a phase."""
    started = time.perf_counter()
    yield
    seconds[phase] += time.perf_counter() - started


if __name__ == "__main__":
    print_outcome(run)
