"""Mutation testing of the core: `make mutation`, or `make mutation SAMPLE=40 SEED=0` for a sample.

mutmut makes one small change at a time in a copy of `keras_mas/` (`mutants/`) and runs the tests
that reach the changed function, the shortest first; a change that no test notices "survives".
Results are kept in `mutants/`: the same command goes on where it was stopped, and `make clean`
starts over. What is mutated and which tests run is set in `pyproject.toml`; mutmut leaves out
properties and other decorated functions. A mutant whose tests take too long counts as noticed,
though the machine may have been busy: look at those that are named. A function that runs while its
module is imported, as `backend._refuse_other` does, survives: it has run before it is changed.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path("mutants")
STATS = "mutmut-stats.json"  # in that folder, where mutmut runs pytest
NOT_RUN = ("not checked", "check was interrupted by user")
NOTICED = ("killed", "timeout", "segfault", "caught by type check")


def main(argv: list[str] | None = None) -> int:
    """Run the mutants that have no result yet; print the score and the diff of each survivor."""
    args = build_parser().parse_args(argv)
    if not generate_mutants():
        return 1
    results = read_results()
    names = choose(list(results), args.sample, args.seed)
    waiting = [name for name in names if results[name] in NOT_RUN]
    print(f"{len(names)} mutants, {len(waiting)} of them still to run", flush=True)
    if waiting:
        mutmut("run", "--max-children", str(args.workers), *waiting)
    results = read_results()
    return report({name: results[name] for name in names}, args.target)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(description="Mutation testing of keras_mas.")
    parser.add_argument("--sample", type=int, help="number of mutants drawn (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument(
        "--target", type=float, default=0.95, help="least share noticed (default: 0.95)"
    )
    return parser


def generate_mutants() -> bool:
    """Write the mutants and find out which test reaches which function; False if that fails."""
    # Python does not look again into a folder of its path that was missing when it started.
    FOLDER.mkdir(exist_ok=True)
    # mutmut generates in `run` only; a pattern that matches no mutant stops it right afterwards.
    done = mutmut("run", "no mutant has this name", quiet=True)
    if "nothing matches" in done.stdout:
        return True
    print(done.stdout)
    print("Expected the tests to pass without a mutation. Received: the output above.")
    return False


def read_results() -> dict[str, str]:
    """Return the status of every mutant by its name, in mutmut's words: "killed", "survived"."""
    lines = mutmut("results", "--all", "true", quiet=True).stdout.splitlines()
    return dict(line.strip().rsplit(": ", 1) for line in lines if "__mutmut_" in line)


def choose(names: list[str], count: int | None, seed: int) -> list[str]:
    """Draw `count` names, or return all; the same seed draws the same names."""
    names = sorted(names)
    return names if count is None else random.Random(seed).sample(names, min(count, len(names)))


def report(results: dict[str, str], target: float) -> int:
    """Print the diff of every mutant that was not noticed, then the score; 1 if it is too low."""
    missed = [name for name, status in results.items() if status not in NOTICED]
    for name in missed:
        print(mutmut("show", name, quiet=True).stdout.strip(), end="\n\n")
    for name in (name for name, status in results.items() if status == "timeout"):
        print(f"stopped after its time: {name}")
    noticed = len(results) - len(missed)
    score = noticed / max(len(results), 1)
    print(f"{noticed} of {len(results)} mutants noticed: {score:.1%} (target {target:.0%})")
    return 0 if score >= target else 1


def mutmut(*words: str, quiet: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command of mutmut, its output shown or returned."""
    # Tests that start processes must find the mutants there, too.
    environment = os.environ | {
        "PYTHONPATH": str(FOLDER.absolute()),
        "PYTEST_PLUGINS": "mutation",  # this file, for the order of the tests
        "TF_NUM_INTRAOP_THREADS": "1",
        "CI": "",  # the same property-test cases for every mutant
    }
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if quiet else {}
    command = [sys.executable, "-m", "mutmut", *words]
    return subprocess.run(command, text=True, env=environment, check=False, **output)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Put the shortest tests first (called by pytest): the first that fails ends the run."""
    with contextlib.suppress(FileNotFoundError):  # before mutmut has measured them
        seconds = json.loads(Path(STATS).read_text(encoding="utf-8"))["duration_by_test"]
        items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


if __name__ == "__main__":
    sys.exit(main())
