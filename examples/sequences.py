"""CGM on sequences: an encoder and a decoder of your own, and nothing else changes.

    python examples/sequences.py [--steps 400] [--out sequences.png]

Waves of four shapes, each with a random phase and noise, are encoded by a recurrent network and
decoded by convolutions in time. Labels tell the shapes in training (CGM2); afterwards the nearest
prototype tells the shape of a sequence, and prototypes generate sequences of a shape.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from cgm_fast.cgm.models.likelihoods import Gaussian
from cgm_fast.models import CGM

LENGTH, SHAPES = 48, ("sine", "square", "saw", "pulse")


def waves(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences [count, LENGTH, 1] around 0.5, and their shapes [count]."""
    shape = torch.randint(len(SHAPES), (count,), generator=generator)
    phase = torch.rand(count, 1, generator=generator) * 0.3
    t = (torch.linspace(0, 2, LENGTH) + phase) % 1
    by_shape = torch.stack(
        (
            torch.sin(2 * torch.pi * t),
            torch.where(t < 0.5, 1.0, -1.0),
            2 * t - 1,
            4 * torch.exp(-(((t - 0.5) / 0.1) ** 2)) - 1,
        )
    )
    x = by_shape[shape, torch.arange(count)]
    noise = 0.05 * torch.randn(count, LENGTH, generator=generator)
    return (0.5 + 0.2 * x + noise).unsqueeze(2), shape


class Encoder(nn.Module):
    """Sequences [B, T, 1] to codes [B, N]: the last state, mapped."""

    def __init__(self, latent_dim: int, width: int = 64) -> None:
        super().__init__()
        self.network = nn.GRU(1, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        """The codes of x."""
        return self.head(self.network(4 * (x - 0.5))[0].mean(1))


class Decoder(nn.Module):
    """Latents [B, N] to sequences [B, T, 1]: three times twice as long, by convolutions."""

    def __init__(self, latent_dim: int, width: int = 64) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(latent_dim, width * LENGTH // 8),
            nn.ReLU(),
            nn.Unflatten(1, (width, LENGTH // 8)),
            nn.ConvTranspose1d(width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose1d(width, width // 2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose1d(width // 2, 1, 4, stride=2, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """The means of the sequences' values."""
        return self.network(z).transpose(1, 2)


def train(steps: int, seed: int = 0) -> tuple[CGM, float]:
    """A trained model, and its error on the shapes of a thousand sequences it has not seen."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = CGM(
        Encoder(4),
        Decoder(4),
        latent_dim=4,
        num_prototypes=len(SHAPES),
        likelihood=Gaussian(0.1),
        mmd_weight=100.0,
        margin_weight=10.0,
        margin=10.0,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        x, shape = waves(128, generator)
        output = model(x, shape)
        optimizer.zero_grad()
        output.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimizer.step()
        model.after_step(output)
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: L_E {float(output.reconstruction):.1f} nats", flush=True)
    model.eval()
    x, shape = waves(1000, generator)
    with torch.no_grad():
        wrong = model.assign(model.encode(x)) != shape
    return model, float(wrong.float().mean())


def draw(model: CGM, path: str) -> None:
    """Some generated sequences of every prototype."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.4), layout="constrained")
    for k, axes in enumerate(figure.subplots(1, model.num_prototypes, sharey=True)):
        drawn, _ = model.generate(5, category=k)
        axes.plot(drawn.squeeze(2).T.numpy(), linewidth=1)
        axes.set_title(SHAPES[k], fontsize=10)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, tell how it went, draw."""
    parser = argparse.ArgumentParser(description="CGM on sequences")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", default="sequences.png")
    given = parser.parse_args()
    model, error = train(given.steps)
    print(f"nearest prototype: {100 * error:.1f} % of unseen sequences in a wrong shape")
    draw(model, given.out)
    print(given.out)


if __name__ == "__main__":
    main()
