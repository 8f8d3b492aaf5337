import pytest
import torch

from cgm_fast.cgm.models.descriptor import (
    DESCRIPTORS,
    AttentionDescriptor,
    EMADescriptor,
    make_descriptor,
)

LABELS = torch.tensor([0, 2, 2, 0, 2])  # of four categories; 1 and 3 are absent


def _codes():
    return torch.randn(5, 3, requires_grad=True)


def _softmax_mean(r, scores):
    return (torch.softmax(scores, 0).unsqueeze(1) * r).sum(0)


@pytest.mark.parametrize("name", ["batch_mean", "attention"])
def test_mean_of_the_batch(name):
    descriptor, r = make_descriptor(name, 4, 3), _codes()
    g = descriptor(r, LABELS)
    torch.testing.assert_close(g[0], r[[0, 3]].mean(0))
    torch.testing.assert_close(g[2], r[[1, 2, 4]].mean(0))  # attention, too: it starts as the mean
    assert torch.equal(g[[1, 3]], descriptor.prototypes[[1, 3]])  # absent: the running mean
    (grad,) = torch.autograd.grad(g[2].sum(), r, retain_graph=True)
    share = (LABELS == 2) / 3
    torch.testing.assert_close(grad, share.unsqueeze(1).expand(5, 3))
    (grad,) = torch.autograd.grad(g[1].sum(), r, allow_unused=True)
    assert not grad.any()


@pytest.mark.parametrize("name", ["batch_mean", "attention"])
def test_without_labels_the_nearest_running_prototype_counts(name):
    descriptor, r = make_descriptor(name, 4, 3), _codes()
    nearest = torch.cdist(r, descriptor.prototypes).argmin(1)
    assert torch.equal(descriptor(r, None), descriptor(r, nearest))
    assert len(nearest.unique()) > 1


@pytest.mark.parametrize("name", ["ema", "batch_mean", "attention"])
def test_running_means_move(name):
    descriptor, r = make_descriptor(name, 4, 3), _codes()
    before = descriptor.prototypes.clone()
    descriptor.update(r, LABELS)
    means = torch.stack([r[[0, 3]].mean(0), r[[1, 2, 4]].mean(0)]).detach()
    torch.testing.assert_close(descriptor.prototypes[[0, 2]], 0.99 * before[[0, 2]] + 0.01 * means)
    assert torch.equal(descriptor.prototypes[[1, 3]], before[[1, 3]])


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_in_evaluation_prototypes_stand(name):
    descriptor = make_descriptor(name, 4, 3).eval()
    assert torch.equal(descriptor(_codes(), LABELS), descriptor.prototypes)


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_move_and_state(name):
    descriptor = make_descriptor(name, 4, 3)
    before = descriptor.prototypes.clone()
    descriptor.move(2, torch.tensor([1.0, 2.0, 3.0]))
    assert descriptor.prototypes[2].tolist() == [1.0, 2.0, 3.0]
    assert torch.equal(descriptor.prototypes[[0, 1, 3]], before[[0, 1, 3]])
    assert "prototypes" in descriptor.state_dict()
    trained = any(parameter is descriptor.prototypes for parameter in descriptor.parameters())
    assert trained == (name == "learned")


def test_learned_prototypes_start_as_xavier_normal():
    prototypes = make_descriptor("learned", 300, 200).prototypes.detach()
    variance, n = 2 / 500, prototypes.numel()
    assert abs(float(prototypes.square().mean()) - variance) < 3 * variance * (2 / n) ** 0.5


def test_learned_prototypes_are_moved_by_losses_alone():
    descriptor = make_descriptor("learned", 4, 3)
    before = descriptor.prototypes.detach().clone()
    descriptor.update(_codes().detach(), LABELS)
    assert torch.equal(descriptor.prototypes, before)


def test_ema_decay():
    descriptor = EMADescriptor(2, 3, decay=0.5)
    descriptor.move(0, torch.zeros(3))
    for _ in range(3):
        descriptor.update(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))
    assert descriptor.prototypes[0].tolist() == [0.875] * 3


@pytest.mark.parametrize("scale", [1.0, 300.0])  # scores of one category far above another's
def test_attention(scale):
    descriptor, r = AttentionDescriptor(4, 3), _codes()
    with torch.no_grad():
        descriptor.score.weight.copy_(scale * torch.tensor([[1.0, -2.0, 0.5]]))
    g = descriptor(r, LABELS)
    scores = descriptor.score(r).squeeze(1)
    for k in (0, 2):
        member = LABELS.eq(k)
        torch.testing.assert_close(g[k], _softmax_mean(r[member], scores[member]))
    (grad,) = torch.autograd.grad(g.square().sum(), descriptor.score.weight)
    assert grad.isfinite().all()
    assert scale > 1 or grad.any()


def test_unknown_name():
    with pytest.raises(ValueError, match=r"descriptor must be one of learned, .*got 'median'"):
        make_descriptor("median", 4, 3)
