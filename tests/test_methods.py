"""What the methods do around a task, without the training of one."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_mas import MASModel, SynapticMemory
from keras_mas.errors import UsageError
from keras_mas.methods import METHODS, load_method


def model_of(method, name="task-0"):
    """A method's model F = wx with w = 3, which the method protects."""
    inputs = keras.Input([1])
    kernel = keras.initializers.Constant(3.0)
    outputs = layers.Dense(1, use_bias=False, kernel_initializer=kernel)(inputs)
    method.protect(keras.Model(inputs, outputs))
    return method.model(inputs, outputs, name)


def column(*values):
    return np.array(values, "float32")[:, None]


def test_mas_remembers_every_task_in_one_memory():
    method = load_method("mas")(2.0, "decoupled")
    model = model_of(method)
    assert isinstance(model, MASModel)
    assert (model.name, model.penalty, model.strength) == ("task-0", "decoupled", 2.0)
    reports = []
    method.after_task(model, column(1, 2), on_progress=lambda *counts: reports.append(counts))
    assert reports == [(2, 2)]
    model.weights[0].assign([[5.0]])
    # F² = w²x², so |∂F²/∂w| = 2wx²: with w = 3 the mean over x = 1, 2 is 15.
    assert float(method.memory.penalty(model)) == 2.0 * 15.0 * (5.0 - 3.0) ** 2
    method.after_task(model, column(1))
    (omega,) = method.memory.importance.values()
    assert omega.tolist() == [[15.0 + 10.0]]


def test_mas_goes_on_from_what_it_saved(tmp_path):
    method = load_method("mas")(2.0, "in_loss")
    method.after_task(model_of(method), column(1, 2))
    method.save(tmp_path / "memory.npz")
    again = load_method("mas")(2.0, "in_loss")
    model = model_of(again)
    again.load(tmp_path / "memory.npz", tasks=1)
    assert again.memory.tasks == 1
    assert again.memory.state_for(model.weights[0]).importance.numpy().tolist() == [[15.0]]


def test_a_method_goes_on_with_its_own_strength(tmp_path):
    method = load_method("mas")(2.0)
    method.after_task(model_of(method), column(1))
    method.save(tmp_path / "memory.npz")
    stronger = load_method("mas")(5.0)
    model_of(stronger)
    stronger.load(tmp_path / "memory.npz", tasks=1)
    assert (stronger.strength, stronger.memory.tasks) == (5.0, 1)


def test_mas_does_not_go_on_from_another_run(tmp_path):
    method = load_method("mas")(2.0, "in_loss")
    model = model_of(method)
    method.after_task(model, column(1))
    method.save(tmp_path / "one.npz")
    method.after_task(model, column(1))
    method.save(tmp_path / "two.npz")
    for file, tasks, complaint in [
        ("one.npz", 2, "it is a memory of 1 task, not of 2"),
        ("two.npz", 1, "it is a memory of 2 tasks, not of 1"),
    ]:
        words = rf"what the method keras_mas.methods.mas:Method remembers of {tasks} tasks?. .*"
        with pytest.raises(ValueError, match=rf"{words}{file}'.*\({complaint}\)\.$"):
            load_method("mas")(2.0, "in_loss").load(tmp_path / file, tasks)


@pytest.mark.parametrize(
    ("saved_by", "read_by"),
    [("mas", "ewc"), ("l2", "si"), ("imm_mean", "imm_mode"), ("ebll", "lwf")],
)
def test_what_another_method_saved_is_refused(saved_by, read_by, tmp_path):
    load_method(saved_by)(1.0).save(tmp_path / "memory.npz")
    method = load_method(read_by)(1.0)
    words = f"methods.{read_by}:Method.*saved by the method keras_mas.methods.{saved_by}:Method"
    with pytest.raises(ValueError, match=words):
        method.load(tmp_path / "memory.npz", tasks=0)


def test_a_memory_is_read_with_and_without_the_name_of_a_method(tmp_path):
    method = load_method("mas")(2.0)
    method.after_task(model_of(method), column(1, 2))
    method.save(tmp_path / "method.npz")
    method.memory.save(tmp_path / "memory.npz")
    for file in ("method.npz", "memory.npz"):
        again = load_method("mas")(2.0)
        model_of(again)
        again.load(tmp_path / file, tasks=1)
        (omega,) = SynapticMemory.load(tmp_path / file).importance.values()
        (same,) = again.memory.importance.values()
        assert omega.tolist() == same.tolist() == [[15.0]]


@pytest.mark.parametrize("name", METHODS)
def test_a_strength_or_penalty_that_there_is_not_is_refused(name):
    method = load_method(name)
    with pytest.raises(ValueError, match="a strength λ ≥ 0 .* Received: -1"):
        method(-1.0)
    with pytest.raises(ValueError, match="Received: 'bogus'"):
        method(1.0, "bogus")
    made = method(2.0)
    with pytest.raises(ValueError, match="a strength λ ≥ 0 .* Received: -1"):
        made.restart(-1.0)
    assert made.strength == 2.0


def test_there_is_one_strength():
    method = load_method("mas")(1.0)
    method.strength = 5.0
    assert method.memory.strength == 5.0
    method.memory.strength = 3.0
    assert method.strength == 3.0
    with pytest.raises(ValueError, match="a strength λ ≥ 0"):
        method.strength = -1.0


def test_decoupled_needs_a_model_of_the_method():
    method = load_method("mas")(1.0, "decoupled")
    inputs = keras.Input([1])
    model = keras.Model(inputs, layers.Dense(1)(inputs))
    method.protect(model)
    for call in (method.before_task, method.after_task):
        with pytest.raises(ValueError, match=r"`method.model\(.*in which the penalty would be in"):
            call(model, column(1))
    assert method.memory.tasks == 0


def test_fine_tuning_learns_in_a_plain_model():
    method = load_method("finetune")(2.0, "in_loss")
    assert (method.strength, method.penalty) == (2.0, "in_loss")
    model = model_of(method)
    assert type(model).__name__ == "Functional"
    assert model.name == "task-0"
    model.weights[0].assign([[5.0]])
    assert model.losses == []


def test_a_method_has_its_own_default_strength():
    assert load_method("mas")().strength == pytest.approx(0.1)
    assert load_method("mas")(penalty="decoupled").strength == 10.0
    assert load_method("lwf")(penalty="decoupled").strength == 1.0
    assert load_method("ewc")().memory.strength == load_method("ewc").default_strength != 1.0
    assert load_method("mas")(0.0).strength == 0.0
    fine = load_method("finetune")
    assert not fine.has_strength and not fine.has_penalty


def test_an_unknown_method_is_named():
    with pytest.raises(UsageError, match=r"a method out of mas, .* Received: 'ewc\+'"):
        load_method("ewc+")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_names_its_source(name):
    assert "arXiv:" in load_method(name).__doc__
