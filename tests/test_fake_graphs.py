"""The stand-in for CUDA graphs refuses what CUDA refuses, and shows what a GPU would show."""

import re
from pathlib import Path

import fake_graphs
import pytest
import torch

import cgm_fast

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    return fake_graphs.install(monkeypatch)


def captured(work):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph, result


def test_a_capture_executes_nothing():
    total, state = torch.zeros(2), torch.get_rng_state()
    graph, drawn = captured(lambda: total.add_(torch.randn(2)))
    assert drawn is total
    assert total.tolist() == [0, 0]
    assert torch.equal(torch.get_rng_state(), state)
    graph.replay()
    graph.replay()
    torch.set_rng_state(state)
    torch.testing.assert_close(total, torch.randn(2) + torch.randn(2))


def test_results_are_unwritten_until_a_replay():
    x = torch.ones(3)
    graph, y = captured(lambda: 2 * x)
    assert y.isnan().all()
    graph.replay()
    assert y.tolist() == [2, 2, 2]


def test_another_tensor_of_the_same_name_is_not_read():
    holder = {"x": torch.ones(3)}
    graph, y = captured(lambda: 2 * holder["x"])
    holder["x"] = torch.full((3,), 5.0)
    graph.replay()
    assert y.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "work", [lambda x: float(x.sum()), lambda x: x[x > 0], lambda x: x + torch.tensor([1.0, 2.0])]
)
def test_what_waits_for_the_device_is_refused(work):
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        captured(lambda: work(torch.ones(2)))


def test_the_recipe_of_the_readme():
    """As a user would copy it, around a step of a user's own."""
    text = README.read_text(encoding="utf-8")
    (recipe,) = (
        code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "graph :=" in code
    )

    def losses(graphed):
        torch.manual_seed(0)
        layer, loss = torch.nn.Linear(5, 3), cgm_fast.MMDLoss(bandwidth=1.0)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01, capturable=True)
        x, prior, last = torch.zeros(20, 5), torch.randn(20, 3), torch.zeros(())

        def step():
            optimizer.zero_grad()
            value = loss(layer(x), prior)
            value.backward()
            optimizer.step()
            last.copy_(value.detach())

        found = []
        for _ in range(3 if graphed else 0):
            images = torch.randn(20, 5)
            names = {"torch": torch, "step": step, "x": x, "images": images}
            if not found:
                exec(recipe, names)
                replay = names["graph"].replay
            else:
                x.copy_(images)
                replay()
            found.append(float(last))
        if not graphed:
            for _ in range(3):  # as the recipe begins
                step()
            for _ in range(3):
                x.copy_(torch.randn(20, 5))
                step()
                found.append(float(last))
        return found

    graphed, plain = losses(True), losses(False)
    assert graphed == pytest.approx(plain, rel=1e-6)
    assert len(set(graphed)) == 3
