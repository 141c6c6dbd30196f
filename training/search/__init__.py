"""The search for λ and other settings, on validation data.

`space` says what is varied (`dimensions`, `reading`), `proposals` in which order, by keras-tuner;
`search` trains each trial as a run of its own, which `stopping` ends where it cannot win any more;
`tuner` searches over a user's own models and tasks (`own_tasks`). `recommend` chooses; `progress`, `picture` and `hparams` show it.
"""
