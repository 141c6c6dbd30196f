import json
import math

import pytest

from keras_mas.training.search.dimensions import Range
from keras_mas.training.search.plan import Observer, Plan
from keras_mas.training.search.proposals import Proposals
from keras_mas.training.search.space import SearchSpace
from keras_mas.training.search.trial import FAILED
from keras_mas.training.search.trials import Trials
from keras_mas.training.settings import Settings


@pytest.mark.parametrize("tuner", ["bayesian", "random", "grid"])
def test_several_proposals_are_under_way_at_a_time(tmp_path, tuner):
    proposals = Proposals(SearchSpace(tuner, 13), Settings(), tmp_path / "proposals.json")
    proposed = [proposals.next() for _ in range(6)]
    assert len({values["strength"] for _, values in proposed}) == 6
    for name, values in reversed(proposed):  # told in another order
        proposals.tell(name, -abs(math.log10(values["strength"])))
    seventh = proposals.next()
    assert seventh[1] not in [values for _, values in proposed]


def test_a_grid_is_all_combinations_in_order(tmp_path):
    space = SearchSpace("grid", 12, 0.1, 1.0, "penalty=in_loss,decoupled")
    proposals = Proposals(space, Settings(), tmp_path / "proposals.json")
    proposed = iter(proposals.next, None)
    assert [tuple(values.values()) for _, values in proposed] == [
        (strength, penalty)
        for strength in (0.1, 0.3162, 1.0)
        for penalty in ("in_loss", "decoupled")
    ]


@pytest.mark.parametrize("tuner", ["random", "grid"])
def test_what_makes_no_difference_to_a_method_is_proposed_once(tmp_path, tuner):
    space = SearchSpace(tuner, 12, 0.1, 1.0, "method=finetune,mas penalty=in_loss,decoupled")
    proposals = Proposals(space, Settings(), tmp_path / "proposals.json")
    proposed = [tuple(values.values()) for _, values in iter(proposals.next, None)]
    assert proposed.count((0.1, "finetune", "in_loss")) == 1
    assert [method for _, method, _ in proposed].count("finetune") == 1
    assert len(set(proposed)) == len(proposed) == (7 if tuner == "grid" else 12)


def test_what_is_under_way_is_predicted_by_what_has_ended_after_a_restart_too(tmp_path):
    space, path = SearchSpace("bayesian", 20, 0.01, 100.0), tmp_path / "proposals.json"

    def fifth(proposals):
        """Return the fifth proposal, when three of four have ended."""
        ended = [proposals.next() for _ in range(3)]
        for name, values in ended:
            proposals.tell(name, 0.9 - 0.1 * abs(math.log10(values["strength"])))
        proposals.next()
        return proposals.next()[1]

    before = fifth(Proposals(space, Settings(), path))
    noted = json.loads(path.read_text())["proposals"]
    path.write_text(json.dumps({"proposals": noted[:4]}))
    assert fifth(Proposals(space, Settings(), path)) == before


def test_a_failed_trial_counts_as_the_worst_and_not_as_0(trained, stream, settings, tmp_path):
    # Keras-tuner's Bayesian search takes an infinite loss for 0, here better than all others.
    space = SearchSpace("bayesian", 3, 1e-3, 1e3, max_forgetting=0.0, complete_trials=True)
    trials = Trials(stream, settings, space, tmp_path)
    plan = Plan(trials, Proposals(space, settings, tmp_path / "p.json"), None, Observer(), 9)
    for number, values in enumerate({"strength": s} for s in (0.1, 0.01, 500.0)):
        plan._ask_for(values, plan.proposals.next()[0])
        asked = plan.next("here")
        assert asked.number == number and asked.values == values
        plan.finished(number, trials.run(values))
    *others, failed = plan.ended
    scores = [plan.score(trial) for trial in others]
    assert max(scores) < 0
    assert failed.state == FAILED and plan.score(failed) == min(scores)


def test_a_value_of_a_range_is_within_it(tmp_path):
    space = SearchSpace("random", 30, 0.9996, 1.0004)
    proposals = Proposals(space, Settings(), tmp_path / "proposals.json")
    within = Range(0.9996, 1.0004)
    assert all(0 <= within.position(v["strength"]) <= 1 for _, v in iter(proposals.next, None))
