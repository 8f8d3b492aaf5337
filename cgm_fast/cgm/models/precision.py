"""Dtypes in a model: its networks' own inside them, float32 or float64 between them.

So a model works in whatever dtype it is put (`.double()`, `.bfloat16()`, a default dtype), under
autocast too, and codes, losses and likelihoods are never computed in half precision.
"""

from __future__ import annotations

from itertools import chain

from torch import Tensor, nn

from cgm_fast.ops.checks import compute_dtype


def widened(value: Tensor) -> Tensor:
    """float32 for half precision; float32 and float64 as they are."""
    return value.to(compute_dtype(value.dtype))


def own_dtype(network: nn.Module, value: Tensor) -> Tensor:
    """A value in the dtype of a network's parameters (or buffers); as it is if there are none."""
    for own in chain(network.parameters(), network.buffers()):
        if own.is_floating_point():
            return value.to(own.dtype)
    return value


def apply(network: nn.Module, *values: Tensor) -> Tensor:
    """The output of a network, widened, for values of any floating dtype."""
    found: Tensor = network(*(own_dtype(network, value) for value in values))
    return widened(found)


def codes_of(encoder: nn.Module) -> int | None:
    """How many numbers an encoder returns per image, where it says so.

    By its attribute `latent_dim`, or by its last layer, if that is linear.
    """
    known = getattr(encoder, "latent_dim", None)
    if isinstance(known, int):
        return known
    last = encoder
    while isinstance(last, nn.Sequential) and len(last):
        last = last[-1]
    return last.out_features if isinstance(last, nn.Linear) else None


def check_codes(codes: Tensor, latent_dim: int, outputs: int) -> None:
    """Raise ValueError unless an encoder returned so many numbers per image."""
    if codes.shape[1] != outputs:
        raise ValueError(
            f"encoder must return {outputs} numbers per image for latent_dim {latent_dim}, got "
            f"{codes.shape[1]}"
        )


class RunningMeans(nn.Module):
    """A module whose buffers of running means stay in float32 at least.

    In half precision a step of a hundredth would be lost to rounding.
    """

    running: tuple[str, ...] = ()
    """Their names."""

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        for name in self.running:
            setattr(self, name, widened(getattr(self, name)))
        return self


def share(counts: Tensor, like: Tensor) -> Tensor:
    """Counts as shares of their sum, in another tensor's dtype."""
    return (counts / counts.sum()).to(like.dtype)
