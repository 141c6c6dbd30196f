"""What both runners of `peers.py` share; it imports neither TensorFlow nor PyTorch."""

import json
import sys
import tempfile
from pathlib import Path


def print_outcome(run):
    """Print the outcome of the job that the command line names.

    Args:
        run: Function from the job and a folder to save in to the outcome, both for JSON.
    """
    job = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory(dir=job["folder"]) as folder:
        print(json.dumps(run(job, Path(folder))))
