"""Experiments and the command line: streams of tasks, runs over them, and the search for λ."""
