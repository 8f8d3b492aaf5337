"""The model of what bounds a kernel: how it reads machine code."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))

SASS = """\
.L_x_0:
        /*0010*/                   LDS R0, [R1] ;
        /*0020*/                   FFMA R2, R2, R3, R4 ;
        /*0030*/               @P1 BRA `(.L_x_2) ;
        /*0040*/                   BAR.SYNC 0x0 ;
        /*0050*/                   FSEL R2, R2, RZ, P2 ;
.L_x_2:
        /*0060*/                   HGMMA.64x32x8.F32.TF32 R8, R4, gdesc[UR4] ;
.L_x_1:
        /*0070*/                   HGMMA.64x32x8.F32.TF32 R8, R4, gdesc[UR4] ;
        /*0080*/               @P0 BRA `(.L_x_1) ;
        /*0090*/               @P0 BRA `(.L_x_0) ;
.L_x_3:
        /*00a0*/                   BRA `(.L_x_3);
""".splitlines()


def test_the_cost_model_finds_loops_and_leaves_the_diagonal_out():
    cost = pytest.importorskip("tools.kernels.cost", reason="needs triton")
    loops, labels = cost.loops_of(SASS)
    assert [(loop.start, loop.end) for loop in loops] == [(8, 10), (0, 11)]
    assert cost.opcode(SASS[3]) == "BRA"
    assert cost.opcode(SASS[0]) is None
    assert cost.skipped(SASS, loops[1], labels) == {4, 5}
    assert loops[1].holds(loops[0])
    assert not loops[0].holds(loops[1])


def test_the_loop_over_features_is_not_counted_with_the_rows():
    cost = pytest.importorskip("tools.kernels.tile_cost", reason="needs triton")
    rows = """\
.L_x_0:
        /*0010*/                   LDG R0, [R1] ;
.L_x_1:
        /*0020*/                   FFMA R2, R2, R3, R4 ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0040*/                   MUFU.EX2 R2, R2 ;
        /*0050*/                   SHFL.BFLY R2, R2 ;
        /*0060*/               @P0 BRA `(.L_x_2) ;
        /*0070*/               @P0 BRA `(.L_x_0) ;
""".splitlines()
    assert cost.instructions(rows) == {"memory": 2, "exp2": 1, "issue": 2}
