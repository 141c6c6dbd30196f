import numpy as np
import pytest

from keras_mas.errors import UsageError
from keras_mas.training.search.dimensions import Choices, Range
from keras_mas.training.search.reading import read_space
from keras_mas.training.search.space import (
    SearchSpace,
    name_of_values,
    shown_values,
    tuner_name,
    with_values,
)
from keras_mas.training.settings import Recipe, Settings


def test_ranges_and_lists():
    assert read_space("learning-rate=1e-4..0.1 epochs=5..20 batch_size=16,64") == {
        "learning_rate": Range(1e-4, 0.1, is_log=True),
        "epochs": Range(5, 20, is_log=False, is_whole=True),
        "batch_size": Choices((16, 64)),
    }


def test_a_file(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(
        'method = ["mas", "ewc"]\n'
        'learning-rate = {min = 0.1, max = 0.5, scale = "linear"}\n'
        'epochs = {min = 1, max = 100, scale = "log"}\n'
    )
    assert read_space(str(path)) == {
        "method": Choices(("mas", "ewc")),
        "learning_rate": Range(0.1, 0.5, is_log=False),
        "epochs": Range(1, 100, is_log=True, is_whole=True),
    }


def test_a_file_reads_texts_as_the_command_line_does(tmp_path):
    path = tmp_path / "space.toml"
    text = 'learning-rate = "1e-4..0.1"\nepochs = "5..20"\nweights = "../a.npz,../b.npz"\n'
    path.write_text(text, encoding="utf-8-sig")  # as some editors begin a file
    words = text.replace(" = ", "=").replace('"', "")
    assert read_space(str(path)) == read_space(words)
    assert read_space(words)["weights"] == Choices(("../a.npz", "../b.npz"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("learning-rte=0.1,0.2", "Received: 'learning-rte'. Did you mean 'learning-rate'?"),
        (
            "learning-rate=0.1..0.01",
            "of `learning-rate` in --vary from its smallest to its largest",
        ),
        ("learning-rate=0..0.1", "`learning-rate`: expected a number > 0, received '0'"),
        ("epochs=0..3", "`epochs`: expected a whole number ≥ 1, received '0'"),
        ("penalty=in_loss,decopled", "received 'decopled'. Did you mean 'decoupled'? See --pen"),
        ("penalty=in_loss..decoupled", "several values of `penalty`"),
        ("strength=1..3", "--strength-min and --strength-max"),
        ("seed=1,2", "--executions-per-trial"),
        ("epochs", "NAME=LEAST..LARGEST or NAME=A,B,C"),
        ("none.toml", "'none.toml', which cannot be read"),
        ("", "to name an option or more. Received: none in ''"),
        (" ", "to name an option or more. Received: none in ' '"),
        ("penalty=in_loss,decoupled,in_loss", "Received: 'in_loss' more than once"),
        ("epochs=1 epochs=2", "Received: 'epochs' more than once"),
        ("learning-rate=1e-60..1", "within 1.2e-38 and 3.4e+38, as 32 bits hold. Received: 1e-60"),
        ("learning-rate=1e-300..1e300", "as 32 bits hold. Received: 1e-300 to 1e300"),
        ("learning-rate=0.001,1e-3", "`learning-rate` once in --vary. Received: '0.001' more"),
    ],
)
def test_what_is_no_space_is_refused(text, sentence):
    with pytest.raises(UsageError) as raised:
        SearchSpace(vary=text)
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("epochs = 3", "to be several values or a range"),
        ("epochs = {min = 3}", "to be several values or a range"),
        ('epochs = {min = 1, max = 3, scale = "cubic"}', 'to be "log" or "linear"'),
        ("epochs = [", "cannot be read"),
        ("", "to name an option or more. Received: none"),
        ("epochs = [1, 2, 1]", "Received: '1' more than once"),
        ("learning-rate = [1]\nlearning_rate = [2]", "'learning-rate' more than once"),
        ("epochs = " + "9" * 5000, "space.toml', which cannot be read"),
        ("epochs = " + "[" * 2000, "space.toml', which cannot be read"),
    ],
)
def test_a_file_that_is_no_space_is_refused(tmp_path, toml, sentence):
    path = tmp_path / "space.toml"
    path.write_text(toml)
    with pytest.raises(UsageError, match=sentence):
        read_space(str(path))


def test_a_logarithmic_scale_does_not_begin_at_0():
    with pytest.raises(UsageError, match="`strength_min` to be a number from 1.2e-38"):
        SearchSpace(strength_min=0.0)


@pytest.mark.parametrize("ends", [(1e-300, 1e300), (1e-320, 1.0), (1e-60, 1e-50), (1.0, 1e45)])
def test_a_strength_that_32_bits_do_not_hold_is_refused(ends):
    with pytest.raises(UsageError, match=r"to be a number from 1.2e-38 to 3.4e\+38. Received"):
        SearchSpace("random", 2, *ends)
    widest = SearchSpace("random", 2, 1.2e-38, 3.4e38)
    assert all(np.isfinite(np.float32(widest.dimensions(Settings())["strength"].grid())))


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (9.0, 2.0)])
def test_an_empty_range_is_refused(low, high):
    with pytest.raises(UsageError, match=f"Received: {low:g} and {high:g}"):
        SearchSpace(strength_min=low, strength_max=high)


def test_hyperband_is_refused_with_the_reason():
    with pytest.raises(Exception, match="'hyperband', whose budget is a number of epochs"):
        tuner_name("hyperband")
    with pytest.raises(Exception, match="received 'randm'. Did you mean 'random'?"):
        tuner_name("randm")


def test_a_grid():
    assert Range(0.01, 1.0).grid() == (0.01, 0.03162, 0.1, 0.3162, 1.0)
    assert Range(0.01, 0.5).grid() == (0.01, 0.03162, 0.1, 0.3162, 0.5)  # both ends
    assert Range(0.0, 1.0, is_log=False).grid() == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert Range(1, 3, is_log=False, is_whole=True).grid() == (1, 2, 3)
    grid = SearchSpace("grid", 12, 0.01, 1.0, "penalty=in_loss,decoupled")
    assert grid.count(grid.dimensions(Settings())) == 10
    with pytest.raises(UsageError, match="as the grid has settings, 10: .* Received: 9"):
        SearchSpace("grid", 9, 0.01, 1.0, "penalty=in_loss,decoupled").dimensions(Settings())


def test_a_value_is_tried_in_digits_that_a_command_can_name():
    assert Range(0.001, 10.0).value(0.0316227766) == 0.03162
    assert Range(1 / 3, 10.0).value(0.33331) == 1 / 3  # not below the range
    assert Range(1, 30, is_whole=True).value(7) == 7


def test_where_a_value_lies():
    assert Range(0.01, 100.0).position(1.0) == pytest.approx(0.5)
    assert Range(0.01, 100.0).position(0.0) == float("-inf")
    assert Range(0.0, 4.0, is_log=False).position(1.0) == 0.25


def test_values_become_settings():
    changed = with_values(Settings(), {"strength": 2.0, "method": "ewc", "epochs": 3})
    assert changed == Settings("ewc", 2.0, recipe=Recipe(epochs=3))


def test_names():
    values = {"strength": 0.5, "method": "own/file:Mine", "learning_rate": 0.01}
    assert (
        name_of_values(values | {"method": "ewc"}) == "strength-0.5-method-ewc-learning_rate-0.01"
    )
    assert name_of_values(values).startswith(
        "strength-0.5-method-own_file_Mine-learning_rate-0.01-"
    )
    assert shown_values(values) == "λ=0.5 method=own/file:Mine learning-rate=0.01"


@pytest.mark.parametrize(
    ("one", "other"), [("w/a.keras", "w_a.keras"), ("w/a b", "w/a_b"), ("é" * 300 + "1", "é" * 301)]
)
def test_other_values_have_another_name(one, other):
    names = {name_of_values({"weights": each}) for each in (one, other)}
    assert len(names) == 2
    assert all(len(name.encode()) < 240 for name in names)  # 255 with a seed
