"""How much of the labels a simple classifier finds in frozen codes."""

from __future__ import annotations

from torch import Tensor

from cgm_fast.extras import require


def linear_probe_error(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor
) -> float:
    """Test error, in [0, 1], of multinomial logistic regression on standardised codes.

    Args:
        train: [n, N] codes to fit on.
        train_labels: [n] integers.
        test: [m, N] codes to judge on.
        test_labels: [m] integers.
    """
    linear_model = require("sklearn.linear_model", "the probe")
    pipeline = require("sklearn.pipeline", "the probe")
    preprocessing = require("sklearn.preprocessing", "the probe")
    probe = pipeline.make_pipeline(
        preprocessing.StandardScaler(), linear_model.LogisticRegression(max_iter=2000)
    )
    probe.fit(train.cpu().double().numpy(), train_labels.cpu().numpy())
    return float(1 - probe.score(test.cpu().double().numpy(), test_labels.cpu().numpy()))
