"""CUDA graphs without a GPU, for tests: what is recorded on the CPU, and how it is replayed.

As on a GPU, a capture executes nothing and leaves its results unwritten; a replay runs the same ops
on the same memory, whatever else the program holds by then; ops that wait for the device, or bring
numbers from the host, are refused while capturing.
"""

from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default,  # item(), float(), bool()
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.lift_fresh.default,  # torch.tensor of numbers, which are the host's
    aten._unique2.default,
    aten.bincount.default,
}

INDEXES = {aten.index.Tensor, aten.index_put_.default}  # by a mask: how many rows is the device's


def tensors(value):
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


class Recorder(TorchDispatchMode):
    """Writes ops down while a graph is captured."""

    def __init__(self, graph):
        super().__init__()
        self.graph, self.before, self.made = graph, {}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in WAITS or (
            func in INDEXES and any(v.dtype == torch.bool for v in tensors(args[1]))
        ):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        own = {value.untyped_storage().data_ptr() for value in self.made}
        for value in tensors((args, kwargs)):  # not all schemas say what an op writes to
            storage = value.untyped_storage()
            if storage.data_ptr() not in own and storage.data_ptr() not in self.before:
                self.before[storage.data_ptr()] = storage, storage.clone()
        results = func(*args, **kwargs)
        aliases = any(each.alias_info is not None for each in func._schema.returns)
        new = [] if aliases else tensors(results)
        self.made += new
        self.graph.ops.append((func, args, kwargs, new))
        return results

    def undo(self):
        """Leave memory as a capture does: nothing has run yet."""
        for storage, before in self.before.values():
            storage.copy_(before)
        for value in self.made:
            if value.is_floating_point():
                value.fill_(float("nan"))
            else:
                value.zero_()


recorded = []  # graphs, since `install`


class CUDAGraph:
    """Of torch.cuda.CUDAGraph, what a program uses."""

    def __init__(self):
        self.ops, self.replays, self._pool = [], 0, object()
        recorded.append(self)

    def pool(self):
        return self._pool

    @torch.no_grad()
    def replay(self):
        assert self.ops, "nothing has been captured"
        self.replays += 1
        for func, args, kwargs, new in self.ops:
            results = func(*args, **kwargs)
            for own, value in zip(new, tensors(results) if new else [], strict=True):
                own.copy_(value)


class graph:
    """Of torch.cuda.graph: a context that captures."""

    capturing = False

    def __init__(self, cuda_graph, pool=None, stream=None):
        self.recorder = Recorder(cuda_graph)

    def __enter__(self):
        graph.capturing = True
        self.random = torch.get_rng_state()
        self.recorder.__enter__()

    def __exit__(self, *error):
        self.recorder.__exit__(*error)
        graph.capturing = False
        self.recorder.undo()
        torch.set_rng_state(self.random)


class Stream:
    """Of torch.cuda.Stream: work is done in the order in which it is asked for."""

    def __init__(self, device=None):
        self.waited_for = []

    def wait_stream(self, other):
        self.waited_for.append(other)

    def synchronize(self):
        raise AssertionError("the step waits for the GPU")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def install(monkeypatch):
    """Let programs capture on the CPU."""
    from torch.optim import adam

    recorded.clear()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", CUDAGraph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    here = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: here)
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda *_: ["cpu"])
    return SimpleNamespace(stream=here, graphs=recorded)
