"""How much memory is left."""

import pytest

from cgm_fast.cgm.data import DataError, memory


def test_what_is_left_is_less_than_all():
    left = memory.available()
    if left is None:
        pytest.skip("this system does not say")
    assert 2**24 < left < 2**50
    memory.require_memory("one byte", 1)
    with pytest.raises(DataError, match=r"all would take 1125899906.* GB of memory, of .*: less"):
        memory.require_memory("all", 2**60 // 1024 * 1000, "less")


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    whole = memory.available()
    for name, content in (
        ("memory.max", "3000000"),
        ("memory.current", "2500000"),
        ("memory.stat", "anon 1\ninactive_file 400000\nactive_file 7"),
    ):
        assert memory.available() == pytest.approx(whole, rel=0.5)
        (tmp_path / name).write_text(content + "\n")
    assert memory.available() == 900_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() == pytest.approx(whole, rel=0.5)


def test_where_nothing_is_known_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: None)
    memory.require_memory("all", 2**60)
