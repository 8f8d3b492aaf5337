"""What `Flow` finds in machine code that was written by hand."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))

pytest.importorskip("triton")

from tools.kernels.sharing import Flow

FENCE, COUNT = "MEMBAR.SC.GPU", "ATOMG.E.INC.STRONG.GPU PT, R2, desc[UR8][R2.64], R5"
FRESH, PLAIN = "LDG.E.64.STRONG.GPU R6, desc[UR8][R4.64]", "LDG.E.64 R6, desc[UR8][R4.64]"
STORE, VOTE = "STG.E.64 desc[UR8][R2.64], R4", "BAR.RED.OR.DEFER_BLOCKING 0x0, P1"
RIGHT = [
    "LDG.E.128 R8, desc[UR8][R2.64]",
    STORE,
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "@P0 BRA `(.L_x_1)",  # all but one thread
    FENCE,
    COUNT,
    FENCE,
    ".L_x_1",
    VOTE,
    "@!P1 EXIT",
    ".L_x_2",
    FRESH,
    "@P2 BRA `(.L_x_2)",
    "STG.E desc[UR8][R2.64], R4",
    "EXIT",
    ".L_x_3",
    "BRA `(.L_x_3)",
]


def flow(code):
    lines = []
    for at, text in enumerate(code):
        label = text.startswith(".L")
        lines.append(
            f"{text}:" if label else f"        /*{16 * at:04x}*/                   {text} ;"
        )
    return Flow(lines)


def swapped(before, after, times=1):
    at = [at for at, text in enumerate(RIGHT) if text == before][:times]
    return flow([after if i in at else text for i, text in enumerate(RIGHT)])


def names(flow, places):
    return [flow.code[at].name for at in places]


def test_a_count_between_two_fences_and_a_strong_load_are_right():
    found = flow(RIGHT)
    assert names(found, found.counts) == ["ATOMG.E.INC.STRONG.GPU"]
    assert found.unfenced_counts() == []
    assert found.unfenced_behind() == []
    assert names(found, found.strong_loads) == ["LDG.E.64.STRONG.GPU"]
    assert set(found.strong_loads) <= found.behind_counts()
    assert found.weak_loads_behind_counts() == []
    assert found.wide_share() == 1


def test_a_missing_fence_is_found():
    assert swapped(FENCE, "NOP").unfenced_counts() != []
    assert swapped(FENCE, "NOP").unfenced_behind() == []
    assert swapped(FENCE, "MEMBAR.SC.CTA").unfenced_counts() != []
    behind = flow([text for at, text in enumerate(RIGHT) if at != RIGHT.index(COUNT) + 1])
    assert behind.unfenced_counts() == []
    assert behind.unfenced_behind() != []


def test_a_fence_on_one_of_two_paths_is_not_enough():
    around = [*RIGHT]
    around[RIGHT.index(FENCE) : RIGHT.index(FENCE) + 1] = ["@P3 BRA `(.L_x_4)", FENCE, ".L_x_4"]
    assert flow(around).unfenced_counts() != []


def test_a_store_behind_the_fence_is_found():
    late = [*RIGHT]
    late.insert(late.index(FENCE) + 1, STORE)
    assert flow(late).unfenced_counts() != []


def test_a_weak_load_behind_the_count_is_found():
    found = swapped(FRESH, PLAIN)
    assert names(found, found.weak_loads_behind_counts()) == ["LDG.E.64"]


def test_a_strong_load_before_the_count_is_none_behind_it():
    found = flow([FRESH, *RIGHT])
    assert not set(found.strong_loads) <= found.behind_counts()


def test_a_share_is_of_loads_and_copies():
    code = ["LDGSTS.E.BYPASS.128 [R2], desc[UR8][R4.64]", "LDG.E.U16 R2, desc[UR8][R4.64]"]
    found = flow([*code, "LDG.E R2, desc[UR8][R4.64]", "LDS.128 R4, [R2]", FRESH, "EXIT"])
    assert [of.width for of in found.code] == [16, 2, 4, 0, 8, 0]
    assert found.wide_share() == pytest.approx(1 / 3)
