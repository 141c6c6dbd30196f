"""From a trained model to a served one: export, a stand-in server for development, and clients.

The modules, by what happens in them:

    a model is checked         head_checks
    a version is written       export  signatures  images  orientation  warmup  manifest
    and checked, and judged    publish  published  answers  gate  runtime
    labels are moved           rollout  config  control
    requests are sent          client
    and logged ones are read   traffic  logged
    a server is stood in for   standin
    a server is deployed       deploy

`paths`, `messages` and `conventions` are what several of them use.
"""
