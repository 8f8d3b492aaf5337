"""The paper's model on top of the library: networks, data, training, evaluation, experiments.

The library (`cgm_fast.mmd`, its losses and ops) knows nothing of this package, which takes from it
what any user would: the names of `cgm_fast` itself, its checks of arguments and its backends.
"""
