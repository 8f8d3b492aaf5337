"""What benchmarks/ does on GPUs, as far as a machine without one can tell: no number is a GPU's."""

import argparse
import csv
import json
import math
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from benchmarks import cases, conftest, floors, gpu, machine, measure, report, test_ops  # noqa: E402
from benchmarks.peers import Peer, mmd, prototype_margin, why_not_keops  # noqa: E402
from cgm_fast.testing import relative_l2, samples  # noqa: E402

# As NVIDIA prints them for H100 SXM: 132 multiprocessors, 1.83 GHz, 3.35 TB/s.
H100 = {
    "capability": "9.0",
    "multiprocessors": 132,
    "clock_hz": 1.83e9,
    "bytes_per_second": 3.35e12,
}
A100 = H100 | {"capability": "8.0", "multiprocessors": 108, "clock_hz": 1.41e9}


def test_rates_are_those_of_the_data_sheets():
    of_h100, of_a100 = floors.gpu_rates(H100), floors.gpu_rates(A100)
    published = {"exp2": (3.9, 2.4), "float32": (33.5, 9.7), "tf32": (247, 78), "bf16": (494, 156)}
    for unit, (h100, a100) in published.items():
        assert of_h100[unit] == pytest.approx(1e12 * h100, rel=0.1)
        assert of_a100[unit] == pytest.approx(1e12 * a100, rel=0.02)
    assert of_h100["3xtf32"] == of_h100["tf32"] / 3


@pytest.mark.parametrize(
    "changed", [{"capability": "7.5"}, {"capability": None}, {"clock_hz": None}]
)
def test_an_unknown_gpu_has_no_rates(changed):
    assert floors.gpu_rates(H100 | changed) is None


def test_the_limit_is_the_slowest_unit():
    rates = {"exp2": 1.0, "float32": 2.0, "tf32": 9.0, "3xtf32": 3.0, "memory": 10.0}
    assert floors.gpu_limit(floors.Work(30, 5, 20), rates, "highest") == (10, "3xtf32")
    assert floors.gpu_limit(floors.Work(30, 5, 20), rates, "high") == (5, "exp2")
    assert floors.gpu_limit(floors.Work(30, 5, 90), rates, "high") == (9, "memory")
    # Where tensor cores are slow, float32's own pipes multiply.
    assert floors.gpu_limit(floors.Work(30), rates | {"float32": 5.0}, "highest") == (6, "float32")
    del rates["memory"]
    assert floors.gpu_limit(floors.Work(30, 5, 90), rates, "high") == (5, "exp2")


def test_properties_without_a_driver_that_tells(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "hip", None)
    attributes = {gpu.CLOCK: 1_980_000, gpu.MEMORY_CLOCK: 2_619_000, gpu.BUS_WIDTH: 5120}
    monkeypatch.setattr(gpu, "driver_attribute", attributes.get)
    found = gpu.properties()
    assert (found["capability"], found["multiprocessors"]) == ("9.0", 132)
    assert found["clock_hz"] == pytest.approx(1.98e9)
    assert found["bytes_per_second"] == pytest.approx(3.35e12, rel=1e-3)
    monkeypatch.setattr(gpu, "driver_attribute", lambda number: None)
    assert gpu.properties()["clock_hz"] is gpu.properties()["bytes_per_second"] is None
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert gpu.properties()["capability"] is None


def test_replays_fill_rounds_and_the_time():
    assert gpu.plan(1e-5, 0.1) == (500, gpu.ROUNDS)
    assert gpu.plan(2e-3, 0.024) == (3, 4)
    assert gpu.plan(0.5, 0.1) == (1, gpu.FEWEST_ROUNDS)


def test_kernels_are_counted_without_copies_and_annotations():
    categories = ("kernel", "gpu_memcpy", "gpu_memset", "cuda_runtime", "gpu_user_annotation")
    events = [{"cat": name, "ph": "X"} for name in categories] + [{"ph": "M"}, {"cat": "kernel"}]
    assert gpu.kernels_of({"traceEvents": events}) == 2


def test_the_profiler_writes_such_a_trace(tmp_path):
    activity = torch.profiler.ProfilerActivity.CPU
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=[activity]) as profiler:
            torch.ones(3) + 1
    path = tmp_path / "trace.json"
    profiler.export_chrome_trace(str(path))
    assert gpu.kernels_of(json.loads(path.read_text())) == 0


class Stats:
    stats = SimpleNamespace(median=0.25)


class Benchmark:
    """A fixture that notes what it is asked to measure."""

    disabled = False
    stats = Stats()

    def pedantic(self, step, rounds, iterations):
        self.rounds, self.iterations = rounds, iterations


def test_a_round_on_a_gpu_is_many_calls_between_two_waits(monkeypatch):
    now, log = [0.0], []

    def clock():
        log.append("wait")
        return now[0]

    def step():
        log.append("call")
        now[0] += 2**-10

    monkeypatch.setattr(gpu, "clock", clock)
    benchmark = Benchmark()
    assert measure.time_step(benchmark, step, 0.1, 5, "cuda") == 0.25
    assert (benchmark.iterations, benchmark.rounds) == (6, 17)
    assert log[:4] == ["wait", "wait", "call", "wait"]


def case(device, shape=None):
    marks = []
    params = {"device": device, "shape": shape} if device else {}
    item = SimpleNamespace(callspec=SimpleNamespace(params=params), marks=marks)
    item.add_marker = marks.append
    return item


def collected(device, items):
    left_out = []
    hook = SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
    config = SimpleNamespace(option=SimpleNamespace(device=device), hook=hook)
    conftest.pytest_collection_modifyitems(config, items)
    return left_out


def test_rows_of_a_gpu_have_its_clock_and_the_longest_come_last():
    longest, short, cpu = case("cuda", cases.MMD.gpu_last[0]), case("cuda"), case("cpu")
    plain = SimpleNamespace()
    items = [longest, cpu, short, plain]
    assert collected(None, items) == []
    assert items == [cpu, short, plain, longest]
    assert [mark.kwargs for mark in short.marks] == [{"timer": gpu.clock}]
    assert cpu.marks == []
    assert collected("cuda", items) == [cpu]
    assert items == [short, plain, longest]


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "DEVICES", ("cpu",))
    config = SimpleNamespace(option=argparse.Namespace(device="cuda"))
    with pytest.raises(pytest.UsageError, match="no such device"):
        conftest.pytest_configure(config)


def test_what_takes_part_on_a_gpu():
    def names(shape, op=cases.MMD, peers=mmd.PEERS):
        return {
            p.name
            for p in peers
            if "cuda" in p.devices and shape in test_ops.shapes_on(op, "cuda")
            if test_ops.takes_part(op, shape, p)
        }

    ours = {"cuda", "cuda-high", "triton", "triton-high", "matmul", "matmul-high", "reference"}
    others = {"eager", "eager-high", "sdpa", "tiled", "geomloss-tensorized"}
    compiling = {"compile", "flash-sinkhorn"} | {p.name for p in mmd.PEERS if "keops" in p.name}
    assert names(cases.MMDShape(16384, 2)) == ours | others
    assert names(cases.MMDShape(16384, 64)) >= ours | others | compiling
    assert names(cases.MMDShape(10**6, 10)) == ours
    large = cases.PrototypeShape(2**20, 1024, 64)
    found = names(large, cases.PROTOTYPE_MARGIN, prototype_margin.PEERS)
    assert found >= {*ours, "eager", "eager-high", "flash-kmeans"}
    assert not found & {"faiss", "scikit-learn"}
    assert large not in test_ops.shapes_on(cases.PROTOTYPE_MARGIN, "cpu")


def test_a_sampled_oracle_has_the_same_rows_and_about_the_loss():
    x, y = samples(300, 260, 3)
    whole, part = cases.mmd_oracle(x, y), cases.sampled_mmd_oracle(x, y, 100)
    for rows, found, expected in zip(part.rows, part.gradients, whole.gradients, strict=True):
        assert relative_l2(found, expected[rows]) < 1e-12
    assert 0 < part.loss_deviation < 0.1 * whole.magnitude
    assert abs(part.loss - whole.loss) < 4 * part.loss_deviation
    assert part.magnitude == pytest.approx(whole.magnitude, rel=0.2)
    everything = cases.sampled_mmd_oracle(x, y, 1000)
    assert everything.loss == pytest.approx(whole.loss, rel=1e-12)
    assert everything.magnitude == pytest.approx(whole.magnitude, rel=1e-12)


def test_too_many_pairs_are_sampled(monkeypatch):
    monkeypatch.setattr(cases, "FULL_PAIRS", 1e4)
    assert cases.mmd_oracle(*samples(50, 50, 2)).rows is None
    assert cases.mmd_oracle(*samples(51, 50, 2)).rows is not None


def test_a_sampled_check_finds_what_is_wrong():
    x, y = samples(300, 260, 3)
    peer = Peer("some", mmd.keops, ours=True)
    whole, part = cases.mmd_oracle(x, y), cases.sampled_mmd_oracle(x, y, 100)
    right = (torch.tensor(whole.loss), *whole.gradients)
    errors, _ = test_ops.check(cases.MMD, peer, (x, y), right, part)
    assert errors.keys() == {"gradient"}
    with pytest.raises(AssertionError, match="loss off by"):
        test_ops.check(
            cases.MMD, peer, (x, y), (right[0] + 10 * part.loss_deviation, *right[1:]), part
        )
    with pytest.raises(AssertionError, match="gradient error"):
        test_ops.check(cases.MMD, peer, (x, y), (right[0], 1.001 * right[1], right[2]), part)


def test_tf32_may_choose_a_prototype_that_is_hardly_farther():
    r = torch.tensor([[0.0, 0.0]])
    g = torch.tensor([[1.0, 0.0], [1.0005, 0.0], [1.1, 0.0]])
    oracle = cases.Oracle(0.0, 1.0, (), torch.tensor([0]))
    exact = Peer("exact", prototype_margin.sklearn, assigns_only=True)
    tf32 = Peer("tf32", prototype_margin.flash_kmeans, assigns_only=True, precision="high")
    test_ops.check(
        cases.PROTOTYPE_MARGIN, tf32, (r, g), torch.tensor([1], dtype=torch.int32), oracle
    )
    for peer, chosen in ((exact, 1), (tf32, 2)):
        with pytest.raises(AssertionError, match="not the nearest"):
            test_ops.check(cases.PROTOTYPE_MARGIN, peer, (r, g), torch.tensor([chosen]), oracle)


def test_products_are_as_precise_as_before():
    before = torch.get_float32_matmul_precision()
    with measure.matmul_precision("high"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


def test_keops_without_cuda_says_so(monkeypatch):
    config = SimpleNamespace(gpu_available=False)
    monkeypatch.setitem(sys.modules, "pykeops", SimpleNamespace(config=config))
    assert why_not_keops("cpu") is None
    peer = Peer("pykeops", mmd.keops, needs=("math",), unusable=why_not_keops)
    assert peer.missing("cpu") is None
    assert "no CUDA" in peer.missing("cuda")


def entry(peer, milliseconds, **info):
    info = {
        "op": "mmd", "shape": {"n": 1024, "d": 10}, "peer": peer, "ours": "triton" in peer,
        "device": "cuda", "dtype": "float32", "threads": 16, "launches": 3,
        "work": floors.mmd(1024, 10)._asdict(), "device_seconds": 5e-4 * milliseconds,
    } | info  # fmt: skip
    return {"name": peer, "extra_info": info, "stats": {"data": [1e-3 * milliseconds]}}


def run_file(path, *entries, properties=H100):
    content = {
        "machine_info": {"devices": {"cpu": "CPU", "cuda": "Some GPU"}, "versions": {},
                         "gpu": properties, "limits": None,
                         "compiled_module": {"instruction_set": "avx2"}},
        "commit_info": {"id": "c0ffee", "dirty": False},
        "datetime": "2030-01-02T03:04:05",
        "benchmarks": list(entries),
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def test_precisions_are_compared_with_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "HERE", tmp_path)
    path = run_file(
        tmp_path / "run.json",
        entry("triton", 0.2),
        entry("eager", 0.8, device_seconds=None),
        entry("triton-high", 0.1, precision="high"),
        entry("eager-high", 0.5, precision="high"),
    )
    folder = tmp_path / "results"
    folder.mkdir()
    columns = "op,shape,peer,device_type,threads,instruction_set,median_ms"
    old = (columns, "mmd,n=2 d=2,triton,cuda,,compute capability 9.0,7")
    (folder / "some-gpu.csv").write_text("\n".join(old) + "\n")
    report.main([str(path), "--csv"])
    out = capsys.readouterr().out
    # 2048² pairs: an exponential each at 3.87e12 per second are 0.00108 ms.
    assert "## Some GPU, compute capability 9.0\n" in out
    assert "| n=1024 d=10 | 0.2 (triton) | 1% | 1 | 4 |" in out
    assert "### mmd, products at 'high': tf32" in out
    assert "| n=1024 d=10 | 0.1 (triton-high) | 1% | 1 | 5 |" in out
    assert "| n=1024 d=10 | 0.1, 3 | 3 |" in out
    with (folder / "some-gpu.csv").open(newline="") as file:
        rows = {(row["peer"], row["shape"]): row for row in csv.DictReader(file)}
    assert rows["triton", "n=2 d=2"]["median_ms"] == "7"
    assert rows["triton", "n=2 d=2"]["device_ms"] == ""
    row = rows["triton", "n=1024 d=10"]
    assert (row["device_ms"], row["launches"], row["limit_unit"]) == ("0.1", "3", "exp2")
    assert (row["threads"], row["instruction_set"]) == ("", "compute capability 9.0")
    assert math.isclose(float(row["limit_share"]), 0.00542, rel_tol=1e-2)


def test_an_unknown_gpu_has_no_share(tmp_path, capsys):
    unknown = H100 | {"capability": "7.5"}
    report.main([str(run_file(tmp_path / "run.json", entry("triton", 0.2), properties=unknown))])
    assert "| n=1024 d=10 | 0.2 (triton) |  | 1 |" in capsys.readouterr().out
