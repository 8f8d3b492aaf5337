"""What mutations.py deletes; running it takes minutes."""

from mutations import mutations

SOURCE = """\
// Behind sync_block() and fence(); comes load_fresh(at).
  sync_block();
  if (last) fence();
  sum += load_fresh(of(b) + q) + load_fresh(&to);  // load_fresh(x)
  copy_async_wait<1>();
"""


def test_each_barrier_fence_and_fresh_load_is_deleted_once():
    found = list(mutations(SOURCE))
    assert [(m.what, m.line, m.races) for m in found] == [
        ("sync_block()", 2, False),
        ("copy_async_wait<1>()", 5, False),
        ("fence()", 3, True),
        ("load_fresh(of(b) + q)", 4, True),
        ("load_fresh(&to)", 4, True),
    ]
    changed = [m.text.splitlines()[m.line - 1] for m in found]
    assert changed[0].strip() == ";"
    assert changed[2] == "  if (last) ;"
    assert changed[3].startswith("  sum += (*(of(b) + q)) + load_fresh(&to);")
    assert changed[4].startswith("  sum += load_fresh(of(b) + q) + (*(&to));")
