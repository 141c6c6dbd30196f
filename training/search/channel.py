"""What chief and workers say to each other: keras-tuner's messages, with ours as JSON within.

Keras-tuner's chief and workers are not used as they are. A worker of it waits for an hour for a
chief that has died; a chief waits for ever for a worker that has died; λ is passed on in 32 bits;
and why a trial failed is not passed on. Its protocol, `keras_tuner.Oracle` over gRPC, is kept:

    GetSpace      the name of the search, by which a worker of another one is noticed
    CreateTrial   a trial to run, and of which search; IDLE if there is none now, STOPPED if there
                  is none any more
    UpdateTrial   once a second: the worker is at work, and at which task; STOPPED if its trial was
                  given to another one in the meantime
    EndTrial      what became of it: INVALID if its worker was interrupted. The results
                  themselves are read from the search's folder.

Nothing is encrypted and nobody is asked who they are.
"""

import json
from typing import Any

import keras_tuner as kt
from keras_tuner.engine.trial import Trial as Message
from keras_tuner.src import protos

RUNNING, IDLE, STOPPED = "RUNNING", "IDLE", "STOPPED"
COMPLETED, FAILED, INVALID = "COMPLETED", "FAILED", "INVALID"

_CONTENT = "json"

# Seconds between two signs of life of a worker, and after how many without one it has ended.
PULSE, SILENCE = 1.0, 60.0


def message(name: str, status: str, **content: Any) -> Message:
    """Return a message.

    Args:
        name: Of the trial that it is about.
        status: One of the above.
        **content: What it says, as JSON can hold it.
    """
    values = kt.HyperParameters()
    values.values[_CONTENT] = json.dumps(content)
    return Message(values, trial_id=name, status=status)


def content_of(received: Message) -> dict[str, Any]:
    """Return what a message says."""
    return json.loads(received.hyperparameters.values[_CONTENT])


def space_of(search: str) -> kt.HyperParameters:
    """Return the name of a search as a space."""
    space = kt.HyperParameters()
    space.Fixed("search", search)
    return space


def space_from(sent: Any) -> kt.HyperParameters:
    """Return a space as it was sent."""
    return kt.HyperParameters.from_proto(sent)


def search_of(space: kt.HyperParameters) -> str:
    """Return the name of a search from the space that stands for it."""
    return space.values.get("search", "")


# The names of keras-tuner's generated modules, which it does not export.
request = protos.get_service()
services = protos.get_service_grpc()
