"""How well the categories found agree with labels."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from cgm_fast.cgm.extras import require


def clustering_scores(assignment: Tensor, labels: Tensor) -> dict[str, float]:
    """Agreement of categories [n] with labels [n].

    Returns:
        "accuracy" under the best one-to-one matching of categories with labels (Hungarian),
        "nmi" and "ari" (normalised mutual information, adjusted Rand index).
    """
    optimize = require("scipy.optimize", "clustering scores")
    metrics = require("sklearn.metrics", "clustering scores")
    found, given = (
        np.unique(each.cpu().numpy(), return_inverse=True)[1] for each in (assignment, labels)
    )
    table = np.zeros((found.max() + 1, given.max() + 1), dtype=np.int64)
    np.add.at(table, (found, given), 1)
    rows, columns = optimize.linear_sum_assignment(table, maximize=True)
    return {
        "accuracy": float(table[rows, columns].sum() / len(given)),
        "nmi": float(metrics.normalized_mutual_info_score(given, found)),
        "ari": float(metrics.adjusted_rand_score(given, found)),
    }
