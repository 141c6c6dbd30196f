"""Which of the trials is recommended, and what is to be said about it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from ..wording import sentence
from .dimensions import STRENGTH, Choices, Range
from .trial import FAILED, Trial, best_of, meets

# A setting in the outer tenth of its range is at an edge of it.
_EDGE = 0.1

# From so many times the smallest λ on, and so many trials, a plateau is wide.
_WIDE, _FEWEST = 10, 3


class NoTrialError(RuntimeError):
    """No trial can be recommended; the message says why."""


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """The setting to take.

    Attributes:
        trial: The recommended one.
        highest: The one with the highest accuracy, within the bound on forgetting if there is one.
        standard_error: That of its accuracy.
        as_good: Those within one standard error of it, of which the recommended forgets least.
        edges: "lower" or "upper" by the name of an option at an edge of whose range it lies.
        outermost: "smallest", "largest" or "only" if λ of no other trial lies beyond; None if some
            do on both sides, if λ = 0 or at an edge of its range, or if λ is not varied.
        plateau: The least and the largest λ next to the recommended one, all trials between which
            are among `as_good`; None if λ is not varied.
    """

    trial: Trial
    highest: Trial
    standard_error: float
    as_good: Sequence[Trial]
    edges: Mapping[str, str]
    outermost: str | None
    plateau: tuple[float, float] | None

    @property
    def forget_least(self) -> list[Trial]:
        """Those of `as_good` that forget as little as the recommended one, which is among them."""
        least = self.trial.forgetting
        return [trial for trial in self.as_good if trial.forgetting == least]

    @property
    def has_wide_plateau(self) -> bool:
        """Whether λ hardly matters within a factor of ten or more."""
        if self.plateau is None:
            return False
        least, largest = self.plateau
        others = self.trial.others()
        inside = [
            trial.strength
            for trial in self.as_good
            if trial.strength and least <= trial.strength <= largest and trial.others() == others
        ]
        return len(inside) >= _FEWEST and largest >= _WIDE * min(inside)


def recommend(
    trials: Sequence[Trial],
    dimensions: Mapping[str, Range | Choices],
    max_forgetting: float | None = None,
) -> Recommendation:
    """Return the recommendation: of the settings as good as the best, the one that forgets least.

    As good as the best are those whose accuracy is within one standard error of the highest, which
    is the rule of Breiman et al., "Classification and Regression Trees" (1984).

    Args:
        trials: All trials.
        dimensions: What is varied, as `SearchSpace.dimensions` returns it.
        max_forgetting: If given, only trials that forget no more are recommended.

    Raises:
        NoTrialError: If no trial was completed, or none of them is within the bound.
    """
    highest = best_of(trials, max_forgetting)
    if highest is None:
        raise NoTrialError(_why_none(trials, dimensions, max_forgetting))
    error = highest.standard_error
    if highest.accuracy <= highest.untrained + error:
        raise NoTrialError(
            f"No trial learned more than a network that was not trained, whose average accuracy is "
            f"{highest.untrained:.4f}: the highest is {highest.accuracy:.4f}. No λ can help that. "
            "Raise `--epochs`, lower `--learning-rate`, or choose another `--backbone`."
        )
    as_good = [
        trial
        for trial in trials
        if meets(trial, max_forgetting) and trial.accuracy >= highest.accuracy - error
    ]
    chosen = _chosen(as_good)
    edges = _edges(chosen, trials, dimensions)
    return Recommendation(
        chosen,
        highest,
        error,
        as_good,
        edges,
        None if STRENGTH in edges else _outermost(chosen, trials),
        _plateau(chosen, trials, as_good),
    )


def _chosen(as_good: Sequence[Trial]) -> Trial:
    """Return the one that forgets least, and of several alike the one of the lowest cross-entropy.

    On few validation examples many do equally well by their accuracy and by what they forget. How
    sure they are of the right answers, also to what they have learned from, still tells them apart:
    what is being forgotten loses that first. Of several alike in that too, one of a middle λ.
    """
    order = order_of(as_good)
    best = min(map(order, as_good))
    alike = [trial for trial in as_good if order(trial) == best]
    comparable = [[t for t in alike if t.others() == trial.others()] for trial in alike]
    most = max(comparable, key=lambda group: len(group))
    most.sort(key=lambda trial: trial.strength or 0.0)
    return most[(len(most) - 1) // 2]


def order_of(trials: Sequence[Trial]) -> Callable[[Trial], tuple[float, float]]:
    """Return what trials that are as good as the best are ordered by, the recommended one first.

    If earlier versions did not record the cross-entropy of one of them, accuracy is in its place.
    """
    if any(trial.cross_entropy is None for trial in trials):
        return lambda trial: (trial.forgetting, -trial.accuracy)
    return lambda trial: (trial.forgetting, trial.cross_entropy or 0.0)


def _why_none(trials, dimensions, max_forgetting):
    completed = [trial for trial in trials if trial.is_completed]
    if not completed:
        failed = [trial for trial in trials if trial.state == FAILED]
        if not failed:
            return (
                f"None of {len(trials)} trials forgets at most {max_forgetting:g}: all were "
                f"stopped. {_to_forget_less(trials, dimensions)} --complete-trials shows what they "
                "end with."
            )
        return (
            f"No trial was completed: {len(failed)} of {len(trials)} failed. The last one: "
            f"{sentence(failed[-1].reason)} Lower `--learning-rate` or `--strength-max`."
        )
    least = min(completed, key=lambda trial: trial.forgetting)
    return (
        f"None of {len(trials)} trials forgets at most {max_forgetting:g}. The least is "
        f"{least.forgetting:.4f}, with {least.name}. {_to_forget_less(trials, dimensions)}"
    )


def _to_forget_less(trials, dimensions):
    """Return the advice to a search whose trials all forget too much: a larger λ, if there is."""
    tried = [trial for trial in trials if trial.strength]
    if not tried:
        return "Raise --max-forgetting, or give more --trials."
    largest = max(tried, key=lambda trial: trial.strength)
    if largest.state == FAILED:  # there is nothing to find where training fails
        return "Raise --max-forgetting, or give more --trials."
    if dimensions[STRENGTH].position(largest.strength) >= 1 - _EDGE:
        return "Raise --strength-max, or --max-forgetting."
    return (
        f"The largest λ that was tried is {largest.strength:.4g}, and --strength-max is "
        f"{dimensions[STRENGTH].largest:g}: give more --trials, or raise --max-forgetting."
    )


def _outermost(chosen, trials):
    """Return which λ of all that were tried the chosen one is, if no other lies beyond it."""
    if not chosen.strength:
        return None
    others = [trial.strength for trial in trials if trial.strength]
    is_smallest, is_largest = min(others) == chosen.strength, max(others) == chosen.strength
    if is_smallest and is_largest:
        return "only"
    return "smallest" if is_smallest else "largest" if is_largest else None


def _edges(chosen, trials, dimensions):
    found = {}
    for name, dimension in dimensions.items():
        if isinstance(dimension, Choices):
            continue
        if name == STRENGTH and chosen.strength is None:
            continue
        position = dimension.position(chosen.values[name])
        beyond = [
            trial
            for trial in trials
            if trial.state == FAILED and dimension.position(trial.values[name]) > position
        ]
        if position <= _EDGE:
            found[name] = "lower"
        elif position >= 1 - _EDGE and not beyond:  # there is nothing to find where training fails
            found[name] = "upper"
    return found


def _plateau(chosen, trials, as_good):
    """Walk from the chosen λ both ways, as long as the trials are as good as the best."""
    if chosen.strength is None:
        return None
    comparable = [t for t in trials if t.strength is not None and t.others() == chosen.others()]
    ordered = sorted(comparable, key=lambda trial: trial.strength)
    good = {id(trial) for trial in as_good}
    first = last = next(k for k, trial in enumerate(ordered) if trial is chosen)
    while first > 0 and id(ordered[first - 1]) in good:
        first -= 1
    while last < len(ordered) - 1 and id(ordered[last + 1]) in good:
        last += 1
    return ordered[first].strength, ordered[last].strength
