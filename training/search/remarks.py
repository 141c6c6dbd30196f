"""What is to be said about a recommended λ: whether it matters, and where to look further."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .dimensions import LARGEST_HELD, LEAST_HELD, STRENGTH
from .space import SearchSpace

if TYPE_CHECKING:
    from .recommend import Recommendation
    from .search import Found


def remarks(
    found: "Found", recommendation: "Recommendation", wider_command: Callable[[str], str], more: str
) -> Iterator[str]:
    """Yield what is to be said about a recommendation besides why it is one, in sentences.

    Args:
        found: What a search found.
        recommendation: What is recommended of it.
        wider_command: Returns the command that looks beyond the lower or upper edge of λ's range.
        more: The command that tries more of the same range.
    """
    trial = recommendation.trial
    if recommendation.has_wide_plateau and recommendation.plateau:
        least, largest = recommendation.plateau
        yield f"Any λ from {least:.4g} to {largest:.4g} will do."
    for name, edge in recommendation.edges.items():
        if name == STRENGTH and not trial.strength:
            yield _of_no_strength(found, recommendation)
        elif name == STRENGTH:
            yield (
                f"{trial.name} lies at the {edge} edge of the range. To look further: "
                f"{wider_command(edge)}"
            )
        else:
            option = name.replace("_", "-")
            yield f"{option} lies at the {edge} edge of its range: widen it in --vary."
    if recommendation.outermost is not None:
        beyond = {"smallest": "smaller", "largest": "larger", "only": "other"}
        yield (
            f"λ={trial.strength:.4g} is the {recommendation.outermost} λ above 0 that was tried, "
            f"and {beyond[recommendation.outermost]} ones of the range may do as well. To try "
            f"more: {more}"
        )


def wider(space: SearchSpace, edge: str) -> dict[str, float]:
    """Return the bound of λ at an edge of its range, moved by a factor of 100, by its option."""
    if edge == "lower":
        return {"strength_min": max(float(f"{space.strength_min / 100:g}"), LEAST_HELD)}
    return {"strength_max": min(float(f"{space.strength_max * 100:g}"), LARGEST_HELD)}


def _of_no_strength(found, recommendation):
    forgetting = recommendation.trial.forgetting
    if any(trial.is_completed and trial.strength for trial in found.trials):
        if forgetting <= recommendation.standard_error:
            return "λ = 0 will do: nothing needs protection here."
        return (
            f"λ = 0 forgets {forgetting:.4f}, so that there is something to protect, and no λ that "
            "was tried is better. Give more --trials, or another range of λ."
        )
    return (
        "No trial with another λ was completed, so that it is not known whether a larger one would "
        "do better. `--complete-trials` shows what they end with."
    )
