import argparse
import dataclasses
import math

import pytest

from keras_mas.errors import UsageError
from keras_mas.methods import METHODS, load_method
from keras_mas.training.following import Following
from keras_mas.training.options import (
    SECONDS,
    Bounds,
    add_options,
    given_options,
    number,
    option,
    option_fields,
    size,
)
from keras_mas.training.search.space import SearchSpace
from keras_mas.training.settings import (
    DEFAULT_FOR_VECTORS,
    Recipe,
    Settings,
    check_options_act,
    frozen_layers,
    run_name,
)
from keras_mas.training.tasks import LoadOptions


@pytest.mark.parametrize(
    ("settings", "recipe", "name"),
    [
        ({}, {}, "insects-mas-0.1-seed0"),
        ({"method": "finetune", "seed": 3}, {}, "insects-finetune-seed3"),
        ({"strength": 0.5, "penalty": "decoupled"}, {}, "insects-mas-0.5-decoupled-seed0"),
        ({"strength": "auto"}, {}, "insects-mas-auto-seed0"),
        ({"strength": "auto:30"}, {}, "insects-mas-auto-seed0"),
        ({"strength": "auto:100"}, {}, "insects-mas-auto.100-seed0"),
        # Six digits do not tell this λ from others.
        ({"strength": 1 / 3}, {}, "insects-mas-0.3333333333333333-seed0"),
        ({}, {"epochs": 5}, "insects-mas-0.1-epochs5-seed0"),
        (
            {},
            {"backbone": "mlp-8", "optimizer": "sgd", "learning_rate": 0.02, "batch_size": 16},
            "insects-mas-0.1-mlp-8-sgd-rate0.02-batch16-seed0",
        ),
        (
            {},
            {"first_learning_rate": 0.1, "first_epochs": 2},
            "insects-mas-0.1-first-rate0.1-first-epochs2-seed0",
        ),
        ({}, {"augment": "flip,crop"}, "insects-mas-0.1-augmentflip,crop-seed0"),
        ({}, {"epochs": DEFAULT_FOR_VECTORS.epochs}, "insects-mas-0.1-seed0"),
        (
            {},
            {"backbone": "squeezenet", "weights": "a/b/sq.h5", "freeze": "10"},
            "insects-mas-0.1-squeezenet-sq.h5-freeze10-seed0",
        ),
        ({}, {"batch_norm": "per-task"}, "insects-mas-0.1-bnper-task-seed0"),
    ],
)
def test_a_run_is_named_after_what_differs_from_the_recipe(stream, settings, recipe, name):
    asked = Settings(**settings, recipe=dataclasses.replace(DEFAULT_FOR_VECTORS, **recipe))
    assert run_name(stream, asked) == name


@pytest.mark.parametrize(
    ("usual", "name"),
    [("task", "insects-mas-0.1-seed0"), ("class", "insects-task-mas-0.1-seed0")],
)
def test_a_run_is_named_after_a_scenario_that_is_not_the_streams_own(stream, usual, name):
    asked = dataclasses.replace(stream, usual_scenario=usual)
    assert run_name(asked, Settings(recipe=DEFAULT_FOR_VECTORS)) == name


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Settings(seed="1"), "`seed` to be a whole number. Received: '1'"),
        (lambda: Settings(strength=[1.0]), "`strength` to be a number or a text"),
        (lambda: Recipe(epochs=True), "`epochs` to be a whole number. Received: True"),
        (lambda: Recipe(freeze=None), "`freeze` to be a text. Received: None"),
        (
            lambda: Settings(strength=-1.0),
            "a number ≥ 0, auto or decay. Received: -1.0",
        ),
        (
            lambda: Settings(strength="auto:0"),
            "auto:KAPPA with a number > 0, .* Received: 'auto:0'",
        ),
        (lambda: Settings(method="ebll", strength="auto"), "strength of the method 'ebll'"),
        (lambda: Settings(strength=math.inf), "Received: inf"),
        (lambda: Settings(strength=math.nan), "Received: nan"),
        (
            lambda: Settings(method="masss"),
            f"`method` to be one of {', '.join(METHODS)}, or MODULE:CLASS for a method of your "
            "own. Received: 'masss'. Did you mean 'mas'?",
        ),
        (lambda: Settings(seed=2**32), "`seed` to be a whole number from 0 to 4294967295. Rec"),
        (lambda: Recipe(epochs=0), "`epochs` to be a whole number ≥ 1. Received: 0"),
        (lambda: Recipe(learning_rate=0.0), "`learning_rate` to be a number > 0"),
        (lambda: Recipe(first_epochs=0), "`first_epochs`"),
        (lambda: Recipe(freeze="-1"), "In `freeze`, expected a whole number of layers ≥ 0"),
        (lambda: Recipe(batch_norm="own"), "`batch_norm` to be one of frozen, per-task, shared"),
        (lambda: SearchSpace(trials=0), "`trials`"),
    ],
)
def test_values_out_of_range_are_refused_in_code_too(make, words):
    with pytest.raises(UsageError, match=words):
        make()


@dataclasses.dataclass(frozen=True)
class Oven:
    degrees: float = option(180.0, "temperature in °C", bounds=Bounds(above=0))
    minutes: int | None = option(None, "time", bounds=Bounds(at_least=1, at_most=90))
    fuel: str = option("gas", "what it burns", choices=("gas", "wood"))
    owner: str = "nobody"


def test_fields_become_options_with_their_defaults():
    parser = argparse.ArgumentParser()
    add_options(parser, Oven)
    assert list(option_fields(Oven)) == ["degrees", "minutes", "fuel"]
    assert "temperature in °C (default: 180)" in parser.format_help()
    args = parser.parse_args(["--minutes", "5"])
    assert Oven(**given_options(Oven, args)) == Oven(180.0, 5, "gas")


def test_an_empty_default_is_none():
    parser = argparse.ArgumentParser()
    add_options(parser, Following, "log")
    assert "as in csv,tensorboard (default: none)" in " ".join(parser.format_help().split())


def test_a_choice_that_is_none_is_refused_with_the_nearest(capsys):
    parser = argparse.ArgumentParser()
    add_options(parser, Oven)
    with pytest.raises(SystemExit):
        parser.parse_args(["--fuel", "Good"])
    err = capsys.readouterr().err
    assert "expected one of gas, wood, received 'Good'. Did you mean 'wood'?" in err


def test_without_defaults_only_what_is_given_counts():
    parser = argparse.ArgumentParser()
    add_options(parser, Oven, "degrees", "fuel", with_defaults=False)
    assert given_options(Oven, parser.parse_args([])) == {}
    assert given_options(Oven, parser.parse_args(["--fuel", "wood"])) == {"fuel": "wood"}


@pytest.mark.parametrize("text", ["0", "91", "2.5", "nan", "inf", "", "ten"])
def test_a_number_out_of_bounds_is_refused(text):
    parse = number(int, Bounds(at_least=1, at_most=90))
    with pytest.raises(argparse.ArgumentTypeError) as raised:
        parse(text)
    assert str(raised.value) == f"expected a whole number from 1 to 90, received {text!r}"


def test_infinity_is_never_within_bounds():
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number > 0, received 'inf'"):
        number(float, Bounds(above=0))("inf")
    with pytest.raises(argparse.ArgumentTypeError, match="> 0, at most 1,000,000"):
        number(float, SECONDS)("1e300")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("7", 7),
        ("500MB", 500_000_000),
        ("1.5 gb", 1_500_000_000),
        ("4GiB", 4 * 2**30),
        ("2k", 2000),
        ("3TiB", 3 * 2**40),
    ],
)
def test_sizes(text, count):
    assert size(text) == count


@pytest.mark.parametrize("text", ["", "GB", "4XB", "-1GB", "0", "0.1", "1e9", "4 G B"])
def test_what_is_no_size(text):
    with pytest.raises(argparse.ArgumentTypeError, match="such as 500MB, 4GB or 4GiB, received"):
        size(text)


def test_augmentations_are_named_in_one_order():
    parser = argparse.ArgumentParser()
    add_options(parser, Recipe, "augment", with_defaults=False)
    assert parser.parse_args(["--augment", "crop, flip"]).augment == "flip,crop"
    assert Recipe(augment="flip,crop").augmentations == ("flip", "crop")
    assert Recipe().augmentations == ()
    with pytest.raises(
        UsageError, match="each name in `augment` to be one of flip, crop. Received: 'flop'. Did"
    ):
        Recipe(augment="flip,flop")


def test_a_flag_is_an_option_without_a_value(tmp_path):
    parser = argparse.ArgumentParser()
    add_options(parser, LoadOptions, with_defaults=False)
    assert given_options(LoadOptions, parser.parse_args([])) == {"skip_broken": False}
    words = ["--skip-broken", "--cache-memory", "1kB", "--cache-dir", str(tmp_path)]
    asked = LoadOptions(**given_options(LoadOptions, parser.parse_args(words)))
    store = asked.store
    assert (store.memory, store.directory, store.skip_broken) == (1000, tmp_path, True)
    assert asked.store is store
    with pytest.raises(UsageError, match="`cache_memory` to be a whole number > 0. Received: 0"):
        LoadOptions(cache_memory=0)


def test_the_help_tells_the_strength_of_mas():
    mas = load_method("mas")
    parser = argparse.ArgumentParser()
    add_options(parser, Settings)
    help = " ".join(parser.format_help().split())
    own, decoupled = mas.default_strength_with("in_loss"), mas.default_strength_with("decoupled")
    assert f"the method's own, {own:g} for mas, {decoupled:g} if it is decoupled" in help


def test_a_batch_is_no_larger_than_tensorflow_counts():
    assert Recipe(batch_size=2**31 - 1).batch_size == 2**31 - 1
    with pytest.raises(UsageError, match="`batch_size` to be .* from 1 to 2147483647. Received"):
        Recipe(batch_size=2**31)


@pytest.mark.parametrize(
    ("text", "value"), [("all", "all"), ("none", "none"), ("3", "3"), ("03", "3"), ("0", "none")]
)
def test_frozen_layers_are_counted(text, value):
    assert frozen_layers(text) == value


@pytest.mark.parametrize("text", ["", "-1", "1.5", "²", "some", "9" * 10])
def test_other_words_for_frozen_layers_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"received '{text}'"):
        frozen_layers(text)


@pytest.mark.parametrize(
    ("given", "methods"),
    [
        ({"strength": None, "penalty": "in_loss", "max_examples": None}, ["finetune"]),
        ({"strength": 5.0, "penalty": "decoupled", "max_examples": 3}, ["mas"]),
        ({"strength": 5.0, "penalty": "decoupled"}, ["finetune", "si"]),
        ({"strength": 5.0, "max_examples": 3}, ["lwf", "ebll"]),
        ({"max_examples": 3}, ["imm_mode"]),
    ],
)
def test_an_option_that_makes_a_difference_to_one_of_the_methods_is_taken(given, methods):
    check_options_act(given, methods)
