"""How much of the labels a simple classifier finds in frozen codes."""

from __future__ import annotations

import warnings

from torch import Tensor

from cgm_fast.cgm.extras import require

PROBES = ("linear", "mlp")
"""Multinomial logistic regression; one hidden layer of 256."""


def probe_error(
    kind: str,
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    seed: int = 0,
) -> float:
    """Test error, in [0, 1], of a classifier on standardised codes.

    Args:
        kind: One of `PROBES`.
        train: [n, N] codes to fit on.
        train_labels: [n] integers.
        test: [m, N] codes to judge on.
        test_labels: [m] integers.
        seed: Of the hidden layer's weights and order.
    """
    pipeline = require("sklearn.pipeline", "the probe")
    preprocessing = require("sklearn.preprocessing", "the probe")
    if kind == "linear":
        linear_model = require("sklearn.linear_model", "the probe")
        classifier = linear_model.LogisticRegression(max_iter=2000)
    else:
        network = require("sklearn.neural_network", "the probe")
        # Stops by a tenth of the codes that it is not fitted on, if there are enough for that.
        classifier = network.MLPClassifier(
            (256,),
            batch_size=min(512, len(train)),
            learning_rate_init=2e-3,
            n_iter_no_change=5,
            early_stopping=len(train) >= 5000,
            max_iter=100,
            random_state=seed,
        )
    probe = pipeline.make_pipeline(preprocessing.StandardScaler(), classifier)
    exceptions = require("sklearn.exceptions", "the probe")
    with warnings.catch_warnings():  # a hundred passes are enough, whether they converge or not
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        probe.fit(train.cpu().double().numpy(), train_labels.cpu().numpy())
    return float(1 - probe.score(test.cpu().double().numpy(), test_labels.cpu().numpy()))
