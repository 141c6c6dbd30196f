import pytest

from keras_mas.training.search.dimensions import Range
from keras_mas.training.search.recommend import NoTrialError, recommend
from keras_mas.training.search.space import SearchSpace
from keras_mas.training.search.trial import FAILED, STOPPED, Trial
from keras_mas.training.settings import Settings

RANGE = {"strength": Range(0.001, 1000.0)}


def result(accuracy, forgotten, cross_entropy=None):
    """Two tasks of 100 examples each, and so a standard error of about 0.02 at 0.9."""
    rows = [[accuracy + forgotten, 0.5], [accuracy, accuracy]]
    examples = {name: {"validation": 100} for name in "ab"}
    recorded = {} if cross_entropy is None else {"cross_entropy": cross_entropy}
    return recorded | {
        "average_accuracy": accuracy,
        "forgetting": forgotten,
        "accuracy_matrix": rows,
        "tasks": ["a", "b"],
        "examples": examples,
    }


def trial(strength, accuracy=None, forgotten=0.0, state=None, cross_entropy=None, **others):
    values = {"strength": strength, **others}
    settings = Settings(method="mas", strength=strength)
    if state:
        return Trial(values, settings, state, reason="It diverged." if state == FAILED else "stop")
    return Trial(values, settings, results=[result(accuracy, forgotten, cross_entropy)])


def test_of_settings_within_a_standard_error_the_one_that_forgets_least():
    trials = [
        trial(0.1, 0.90, 0.05),
        trial(1.0, 0.89, 0.02),
        trial(10.0, 0.885, 0.03),
        trial(100.0, 0.80, 0.0),
        trial(0.0, 0.60, 0.4),
    ]
    found = recommend(trials, RANGE)
    assert found.highest.strength == 0.1
    assert found.trial.strength == 1.0
    assert found.standard_error == pytest.approx((0.9 * 0.1 / 200) ** 0.5, rel=0.05)
    assert [t.strength for t in found.as_good] == [0.1, 1.0, 10.0]


def test_of_settings_that_do_equally_well_the_one_in_the_middle():
    trials = [trial(s, 0.9) for s in (4.0, 0.5, 1.0, 300.0, 2.0)] + [trial(0.1, 0.9, 0.01)]
    assert recommend(trials, RANGE).trial.strength == 2.0
    assert recommend(trials[:4], RANGE).trial.strength == 1.0
    # One that differs in another option has other neighbours.
    trials += [trial(s, 0.9, penalty="decoupled") for s in (10.0, 30.0)]
    assert recommend(trials, RANGE).trial.strength == 2.0


def test_of_settings_that_forget_equally_little_the_one_of_the_lowest_cross_entropy():
    losses = {0.01: [0.9, 0.1], 0.1: [0.4, 0.4], 1.0: [0.5, 0.2], 10.0: [0.3, 0.3]}
    trials = [trial(s, 0.9, cross_entropy=loss) for s, loss in losses.items()]
    trials += [
        trial(20.0, 0.9, 0.01, cross_entropy=[0.0, 0.0]),  # forgets more
        trial(30.0, 0.8, cross_entropy=[0.0, 0.0]),  # is less accurate by five standard errors
        trial(40.0, state=STOPPED),
    ]
    found = recommend(trials, RANGE)
    assert found.trial.strength == 10.0  # 0.3 is less than 0.5, 0.4 and 0.35
    assert found.trial.cross_entropy == pytest.approx(0.3)
    # Without that of one, they cannot be compared by it: the middle one.
    assert recommend([*trials, trial(5.0, 0.9)], RANGE).trial.strength == 1.0


def test_the_cross_entropy_is_a_mean_over_tasks_and_seeds():
    both = [result(0.9, 0.0, [0.1, 0.3]), result(0.9, 0.0, [0.6, 0.8])]
    assert Trial({}, Settings(), results=both).cross_entropy == pytest.approx(0.45)
    both[0].pop("cross_entropy")
    assert Trial({}, Settings(), results=both).cross_entropy is None


def test_what_differs_by_rounding_alone_forgets_equally_little():
    # 0.3 − 0.2 and 0.1 are not the same number in floating point.
    exact, rounded = trial(1.0, 0.90, 0.1), trial(10.0, 0.89, 0.1)
    exact.results[0]["forgetting"], rounded.results[0]["forgetting"] = 0.1, 0.3 - 0.2
    assert rounded.results[0]["forgetting"] < exact.results[0]["forgetting"]
    found = recommend([rounded, exact], RANGE, max_forgetting=0.1)
    assert found.trial is exact  # the more accurate of the two
    assert found.forget_least == [rounded, exact]


def test_several_seeds_have_their_own_standard_error():
    # Accuracies 0.88 and 0.92 have the standard deviation 0.0283, and so the error 0.02.
    both = [result(0.88, 0.1), result(0.92, 0.1)]
    spread = Trial({"strength": 1.0}, Settings(strength=1.0), results=both)
    assert recommend([spread], RANGE).standard_error == pytest.approx(0.02)


def test_a_wide_plateau():
    trials = [trial(s, 0.9, 0.01 * s) for s in (0.03, 0.3, 3.0)]
    trials += [trial(30.0, 0.5), trial(300.0, 0.9, 0.5)]
    found = recommend(trials, RANGE)
    assert found.plateau == (0.03, 3.0)  # not 300, beyond one that is worse
    assert found.has_wide_plateau
    narrow = [trial(s, 0.9) for s in (1.0, 2.0, 4.0)]
    assert recommend(narrow, RANGE).plateau == (1.0, 4.0)
    assert not recommend(narrow, RANGE).has_wide_plateau


@pytest.mark.parametrize("state", [STOPPED, FAILED])
def test_a_plateau_ends_where_a_trial_was_not_completed(state):
    trials = [trial(0.1, 0.9), trial(1.0, state=state), trial(10.0, 0.9, 0.1)]
    assert recommend(trials, RANGE).plateau == (0.1, 0.1)


def test_a_plateau_is_of_settings_that_differ_in_strength_alone():
    trials = [trial(0.1, 0.9, penalty="in_loss"), trial(5.0, 0.9, 0.1, penalty="decoupled")]
    assert recommend(trials, RANGE).plateau == (0.1, 0.1)


@pytest.mark.parametrize(
    ("strength", "edges"),
    [
        (0.002, {"strength": "lower"}),
        (0.0, {"strength": "lower"}),
        (500.0, {"strength": "upper"}),
        (1.0, {}),
    ],
)
def test_an_edge_of_the_range(strength, edges):
    assert recommend([trial(strength, 0.9), trial(20.0, 0.5)], RANGE).edges == edges


@pytest.mark.parametrize(
    ("strengths", "outermost"),
    [
        ((0.1, 0.02, 0.0), "largest"),
        ((0.1, 2.0, 0.0), "smallest"),
        ((0.1, 0.0), "only"),
        ((0.1, 0.02, 2.0), None),
        ((0.0, 0.1), None),
        ((900.0, 1.0), None),  # at an edge of the range, which is said
    ],
)
def test_the_outermost_of_what_was_tried(strengths, outermost):
    first, *others = strengths
    trials = [trial(first, 0.9)] + [trial(other, 0.5) for other in others]
    assert recommend(trials, RANGE).outermost == outermost


def test_what_forgets_too_much_is_to_have_a_strength_that_was_not_tried():
    def advice(*trials):
        with pytest.raises(NoTrialError) as raised:
            recommend(trials, RANGE, max_forgetting=0.01)
        return str(raised.value)

    few = advice(trial(0.01, state=STOPPED), trial(0.1, state=STOPPED))
    assert "is 0.1, and --strength-max is 1000: give more --trials, or raise --max-forg" in few
    assert "Raise --strength-max, or --max-forgetting." in advice(trial(900.0, state=STOPPED))
    beyond = advice(trial(0.1, 0.9, 0.1), trial(900.0, state=FAILED))
    assert beyond.endswith("with λ=0.1. Raise --max-forgetting, or give more --trials.")


def test_beyond_the_edge_training_fails():
    trials = [trial(500.0, 0.9), trial(900.0, state=FAILED)]
    assert recommend(trials, RANGE).edges == {}


def test_a_grid_has_edges_too():
    grid = SearchSpace("grid", 50, 0.1, 10.0, "epochs=1..5 batch-size=8,16")
    dimensions = grid.dimensions(Settings())
    accuracies = {0.1: 0.5, 1.0: 0.7, 10.0: 0.9}
    trials = [trial(*pair, epochs=1, batch_size=8) for pair in accuracies.items()]
    # Lists, such as those of batch sizes, have no edges.
    assert recommend(trials, dimensions).edges == {"strength": "upper", "epochs": "lower"}
    assert recommend(trials[:2], dimensions).edges == {"epochs": "lower"}


def test_forgetting_under_a_bound():
    trials = [trial(0.1, 0.95, 0.05), trial(1.0, 0.85, 0.009), trial(10.0, 0.70, 0.0)]
    found = recommend(trials, RANGE, max_forgetting=0.01)
    assert found.highest.strength == found.trial.strength == 1.0
    with pytest.raises(NoTrialError, match=r"at most -1. The least is 0.0000, with λ=10. The l"):
        recommend(trials, RANGE, max_forgetting=-1)


def test_what_was_stopped_or_failed_is_not_recommended():
    trials = [trial(0.1, 0.3), trial(1.0, state=STOPPED), trial(9.0, state=FAILED)]
    assert recommend(trials, RANGE).trial.strength == 0.1
    with pytest.raises(NoTrialError, match="1 of 2 failed. The last one: It diverged. Lower"):
        recommend(trials[1:], RANGE)
