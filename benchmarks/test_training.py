"""Images per second of a CGM's train step, beside pythae's INFOVAE_MMD on the same networks.

Both take a batch of 64 images of 28 x 28, DCGAN networks, ten latents, a Bernoulli decoder and
Adam. The objectives differ as the models do: INFOVAE_MMD has a variance per code, for which the
encoder's last layer gives twice as many outputs, and neither prototypes nor a margin loss.
"""

import math
import warnings

import pytest
import torch

from benchmarks import gpu, measure
from benchmarks.machine import DEVICES
from benchmarks.peers import why_not_importable
from cgm_fast.models import CGM, DCGANDecoder, DCGANEncoder
from cgm_fast.ops.backends import BACKENDS, availability
from cgm_fast.testing import LOSS_TOLERANCE

IMAGE = (1, 28, 28)
LATENTS = 10
BATCH = 64


def cgm(backend, device):
    """A model and the function from images to its loss, for one implementation of the losses."""
    model = CGM(
        DCGANEncoder(IMAGE, LATENTS), DCGANDecoder(LATENTS, IMAGE), latent_dim=LATENTS,
        num_prototypes=10, backend=backend,
    ).to(device)  # fmt: skip

    def loss(images):
        out = model(images)
        model.after_step(out)
        return out.loss

    return model, loss


def pythae(device):
    """The same for pythae, whose encoders and decoders return their outputs by name."""
    from pythae.models import INFOVAE_MMD, INFOVAE_MMD_Config
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.layers = DCGANEncoder(IMAGE, 2 * LATENTS)

        def forward(self, x):
            mean, log_variance = self.layers(x).chunk(2, 1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.layers = DCGANDecoder(LATENTS, IMAGE)

        def forward(self, z):
            return ModelOutput(reconstruction=self.layers(z).sigmoid())

    config = INFOVAE_MMD_Config(
        input_dim=IMAGE, latent_dim=LATENTS, reconstruction_loss="bce", kernel_choice="rbf"
    )
    model = INFOVAE_MMD(config, encoder=Encoder(), decoder=Decoder()).to(device)
    return model, lambda images: model({"data": images}).loss


PEERS = {
    name: (lambda device, name=name: cgm(name, device), backend.devices or ("cpu", "cuda"))
    for name, backend in BACKENDS.items()
} | {"pythae": (pythae, ("cpu", "cuda"))}


# How a step of ours runs: as it is; one CUDA graph, its optimizer included; under torch.compile.
EAGER, GRAPH, COMPILED = "", "-graph", "-compile"


def ways(name, device):
    """The ways that are measured for a peer, those that take long to begin last."""
    if name not in BACKENDS or device != "cuda":
        return [EAGER]
    return [EAGER, GRAPH, COMPILED]


def missing(name):
    if name == "pythae":
        return why_not_importable("pythae.models")
    return availability()[name]


def captured(step):
    """The step as a CUDA graph; a skip where it waits for the GPU, which no graph can hold."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what finds out that it waits calls itself a prototype
        for _ in range(3):
            step()
        try:
            gpu.refuse_waiting(step)
        except RuntimeError as error:
            pytest.skip(f"waits for the GPU: {error}")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay


def first_loss(name, device, images):
    torch.manual_seed(0)
    _, loss = PEERS[name][0](device)
    torch.manual_seed(1)
    return float(loss(images).detach())


@pytest.mark.parametrize(
    ("name", "device", "way"),
    [
        pytest.param(name, device, way, id=f"{name}{way}-{device}")
        for device in DEVICES
        for way in (EAGER, GRAPH, COMPILED)
        for name in PEERS
        if device in PEERS[name][1] and way in ways(name, device)
    ],
)
def test_train_step(benchmark, budget, name, device, way):
    if reason := missing(name):
        pytest.skip(f"{name}: {reason}")
    images = torch.rand((BATCH, *IMAGE), generator=torch.Generator().manual_seed(0)).to(device)
    if name in BACKENDS:  # the same seed gives the same networks and noise
        expected = first_loss("reference", device, images)
        difference = abs(first_loss(name, device, images) - expected)
        assert difference <= LOSS_TOLERANCE * 1000 + 1e-6 * abs(expected)  # 1000 is λ
    torch.manual_seed(0)
    model, loss = PEERS[name][0](device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, capturable=way == GRAPH)
    if way == COMPILED:
        torch._dynamo.reset()
        loss = torch.compile(loss, dynamic=False)
    last = torch.zeros((), device=device)

    def step():
        optimizer.zero_grad(set_to_none=True)
        value = loss(images)
        value.backward()
        optimizer.step()
        last.copy_(value.detach())

    if way == GRAPH:
        step = captured(step)
    for _ in range(1 if benchmark.disabled else 5):
        step()
    benchmark.group = f"train step, batch of {BATCH}, {device}"
    seconds = measure.time_step(benchmark, step, 5 * budget[0], budget[1], device)
    assert math.isfinite(float(last))
    benchmark.extra_info.update(
        op="train_step", shape={"b": BATCH, "k": 10, "d": LATENTS}, peer=name + way,
        ours=name in BACKENDS, device=device, dtype="float32",
        threads=torch.get_num_threads(), images_per_second=BATCH / seconds,
    )  # fmt: skip
    if device == "cuda" and way != GRAPH and not benchmark.disabled:
        # Adam counts its steps on the CPU, so that a CUDA graph of them is refused.
        benchmark.extra_info.update(gpu.measure(step, budget[0], None, captures=False))
