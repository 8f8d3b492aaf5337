import pytest
import torch
from tiny import IMAGES, checkpoint, metrics, pixels, run

from cgm_fast.cgm.data import load
from cgm_fast.cgm.files import RunError
from cgm_fast.cgm.models import CGM, Descriptor
from cgm_fast.cgm.training.runs import load_run


def test_an_epoch_shows_every_image_once_in_a_new_order(tmp_path, monkeypatch):
    seen, forward = [], CGM.forward

    def recorded(self, x, labels=None, target=None, generator=None):
        seen.append((x.clone(), labels.clone()))
        return forward(self, x, labels, target, generator)

    monkeypatch.setattr(CGM, "forward", recorded)
    run(tmp_path, max_steps=8, batch_size=9, supervised=True)
    data = load(str(tmp_path / "tiny.npz"))
    assert len(data.train) == IMAGES - 4 == 36
    rows = {
        bytes(image.numpy()): label
        for image, label in zip(data.train, data.train_labels.tolist(), strict=True)
    }
    epochs = []
    for epoch in (seen[:4], seen[4:]):
        keys = [bytes((255 * image).round().byte().numpy()) for x, _ in epoch for image in x]
        labels = torch.cat([labels for _, labels in epoch]).tolist()
        assert sorted(keys) == sorted(rows)
        assert [rows[key] for key in keys] == labels
        epochs.append(keys)
    assert epochs[0] != epochs[1]


def test_training_reduces_the_loss(tmp_path):
    run(tmp_path, max_steps=60, log_every=20, lr=0.01)
    losses = [float(row["loss"]) for row in metrics(tmp_path)]
    assert losses[2] < losses[1] < losses[0]


def test_gradient_clipping(tmp_path, monkeypatch):
    norms, step = [], torch.optim.Adam.step

    def recorded(self, *args):
        squares = [p.grad.double().square().sum() for g in self.param_groups for p in g["params"]]
        norms.append(float(sum(squares)) ** 0.5)
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    run(tmp_path, max_steps=4, log_every=1, clip_grad_norm=0.5, out=str(tmp_path / "clipped"))
    assert norms == pytest.approx([0.5] * 4, rel=1e-5)  # clipping adds 1e-6 to the norm
    del norms[:]
    run(tmp_path, max_steps=4, log_every=1)
    logged = [float(row["grad_norm"]) for row in metrics(tmp_path)]
    assert norms == pytest.approx(logged, rel=1e-5)  # of six digits
    assert min(norms) > 0.5


def test_denoising_shows_noise_to_the_encoder_alone(tmp_path, monkeypatch):
    pairs, forward = [], CGM.forward

    def recorded(self, x, labels=None, target=None, generator=None):
        pairs.append((x, target))
        return forward(self, x, labels, target, generator)

    monkeypatch.setattr(CGM, "forward", recorded)
    run(tmp_path, denoise_variance=0.5)
    noise = torch.stack([x - target for x, target in pairs]).double()
    assert abs(float(noise.square().mean()) - 0.5) < 3 * 0.5 * (2 / noise.numel()) ** 0.5
    clean = torch.from_numpy(pixels()).float().unique() / 255
    assert torch.isin(pairs[0][1], clean).all()
    assert not torch.equal(noise[0], noise[4])  # fresh noise at every visit


def test_settings_reach_the_model_and_the_noise(tmp_path, monkeypatch):
    seen, forward = [], CGM.forward

    def recorded(self, x, labels=None, target=None, generator=None):
        seen.append((self, x))
        return forward(self, x, labels, target, generator)

    monkeypatch.setattr(CGM, "forward", recorded)
    run(
        tmp_path,
        max_steps=1,
        prior_sampling="iid",
        estimator="unbiased",
        detach_prior=True,
        negatives="mean",
        normalize=True,
        denoise_variance=0.5,
        denoise_range="signed",
        denoise_clip=True,
    )
    model, x = seen[0]
    mmd = model.divergence.config
    assert mmd is model.config.mmd
    assert (mmd.prior_sampling, mmd.estimator, mmd.divergence) == ("iid", "unbiased", "mmd2")
    assert (model.config.margin_loss.normalize, model.latent_loss.negatives) == (True, "mean")
    assert model.latent_loss.detach_prior
    assert (float(x.min()), float(x.max())) == (0, 1)
    others = {"divergence": "energy", "conditional": False}, {"conditional": True}
    for i, given in enumerate(others):
        run(tmp_path, max_steps=1, out=str(tmp_path / str(i)), **given)
        found = seen[-1][0].divergence.config
        assert (found.divergence, found.conditional) == (("energy", False), ("mmd2", True))[i]


def test_bf16(tmp_path):
    seen = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, out: (
            seen.append(out.dtype) if isinstance(module, torch.nn.Conv2d) else None
        )
    )
    with hook:
        run(tmp_path, precision="bf16", prototype_init="xavier", max_steps=2)
    assert set(seen) == {torch.bfloat16}
    content = checkpoint(tmp_path)["model"]
    assert {value.dtype for value in content.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("descriptor", ["learned", "ema"])
def test_kmeans_starts_prototypes_at_codes_of_training_images(tmp_path, monkeypatch, descriptor):
    moved, move = [], Descriptor.move

    def recorded(self, k, position):
        moved.append(position.clone())
        return move(self, k, position)

    monkeypatch.setattr(Descriptor, "move", recorded)
    codes = []
    encode = CGM.encode
    monkeypatch.setattr(
        CGM, "encode", lambda self, *args: codes.append(encode(self, *args)) or codes[-1]
    )
    run(tmp_path, max_steps=1, descriptor=descriptor, prototype_init="kmeans++")
    assert len(moved) == 3
    assert codes[0].shape == (36, 3)
    for position in moved:
        assert (codes[0] == position).all(1).any()
    assert len(torch.stack(moved).unique(dim=0)) == 3


def test_a_run_begins_with_the_weights_of_another(tmp_path):
    first = run(tmp_path, out=str(tmp_path / "first"))
    begun, _ = load_run(first.path)
    again = run(tmp_path, init=str(first.path), max_steps=1, lr=1e-12)
    model, config = load_run(again.path)
    assert config.init == str(first.path)
    for a, b in zip(begun.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    with pytest.raises(RunError, match="holds no run"):
        run(tmp_path, out=str(tmp_path / "other"), init=str(tmp_path / "nothing"))
    with pytest.raises(RunError, match=r"model\.safetensors"):
        run(tmp_path, out=str(tmp_path / "other"), init=str(first.path), width=8)
    assert not (tmp_path / "other").exists()


def test_the_learning_rate_goes_down_a_cosine(tmp_path, monkeypatch):
    rates = []
    step = torch.optim.Adam.step

    def noted(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    run(tmp_path, lr=0.02, lr_schedule="cosine", max_steps=4)
    assert rates == pytest.approx([0.02, 0.01 + 0.01 * 0.5**0.5, 0.01, 0.01 - 0.01 * 0.5**0.5])
    rates.clear()
    run(tmp_path, out=str(tmp_path / "constant"), lr=0.02, max_steps=3)
    assert rates == [0.02] * 3
