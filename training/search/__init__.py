"""The search for λ and other settings, on validation data.

`space` says what is varied (`dimensions`, `reading`), `proposals` in which order, by keras-tuner;
`search` trains each trial as a run of its own, which `stopping` ends where it will hardly win;
`recommend` chooses; `progress`, `picture` and `hparams` show it. `tuner` is for a user's own models
(`hypermodel`) and data (`own_tasks`), called from a script, in a folder of keras-tuner's
(`tuner_folder`).
"""
