from itertools import permutations

import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from cgm_fast.cgm.evaluation.clustering import clustering_scores


def test_permuted_labels_agree_fully():
    labels = torch.arange(50) % 5
    scores = clustering_scores(torch.tensor([3, 0, 4, 1, 2])[labels], labels)
    assert scores == pytest.approx({"accuracy": 1, "nmi": 1, "ari": 1}, abs=1e-12)


@pytest.mark.parametrize(("categories", "classes"), [(4, 4), (5, 3), (2, 5)])
def test_the_best_matching(categories, classes):
    labels = torch.randint(classes, (80,))
    found = (labels + (torch.rand(80) < 0.6) * torch.randint(9, (80,))) % categories
    side = max(categories, classes)
    best = max(
        float((torch.tensor(matching)[found] == labels).double().mean())
        for matching in permutations(range(side))
    )
    scores = clustering_scores(found, labels)
    assert scores["accuracy"] == pytest.approx(best, rel=1e-12)
    given, assigned = labels.tolist(), found.tolist()
    assert scores["nmi"] == pytest.approx(normalized_mutual_info_score(given, assigned), rel=1e-12)
    assert scores["ari"] == pytest.approx(adjusted_rand_score(given, assigned), rel=1e-12)


def test_one_category_for_all():
    labels = torch.tensor([0, 0, 0, 1, 2])
    scores = clustering_scores(torch.full((5,), 7), labels)
    assert scores["accuracy"] == pytest.approx(0.6)
    assert scores["nmi"] == pytest.approx(0, abs=1e-12)


def test_large_numbers_as_labels_cost_nothing():
    labels = torch.tensor([5, 60_000, 5, 60_000])
    assert clustering_scores(torch.tensor([1, 0, 1, 0]), labels)["accuracy"] == 1
