"""The model of what bounds a kernel: how it reads machine code."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))

from tools.kernels import machine_code

# Turns, with a loop over columns that loads ahead, and one that takes differences.
SASS = """\
.L_x_0:
        /*0010*/                   LDS R0, [R1] ;
        /*0020*/                   FFMA R2, R2, R3, R4 ;
.L_x_1:
        /*0030*/                   LDGSTS.E.BYPASS.128 [R2], [R4.64] ;
        /*0040*/                   LDG.E R5, [R6.64] ;
        /*0050*/                   LDG.E R7, [R8.64] ;
        /*0060*/                   BAR.SYNC 0x0 ;
        /*0070*/                   HGMMA.64x32x8.F32.TF32 R8, R4, gdesc[UR4] ;
        /*0080*/                   LDG.E R9, [R8.64] ;
        /*0090*/               @P0 BRA `(.L_x_1) ;
        /*00a0*/                   STL [R1], R9 ;
.L_x_2:
        /*00b0*/                   LDL R9, [R1] ;
        /*00c0*/                   HGMMA.64x32x8.F32.TF32 R8, R4, gdesc[UR4] ;
        /*00d0*/               @P0 BRA `(.L_x_2) ;
        /*00e0*/               @P0 BRA `(.L_x_0) ;
.L_x_3:
        /*00f0*/                   BRA `(.L_x_3);
""".splitlines()


def test_the_loop_over_columns_is_the_one_that_loads_ahead():
    loops, labels = machine_code.loops_of(SASS)
    assert [(loop.start, loop.end) for loop in loops] == [(3, 10), (12, 15), (0, 16)]
    assert labels[".L_x_2"] == 12
    assert machine_code.opcode(SASS[10]) == "BRA"
    assert machine_code.opcode(SASS[0]) is None
    assert loops[2].holds(loops[0])
    assert not loops[0].holds(loops[2])
    assert machine_code.column_loop(SASS) == loops[0]
    not_ahead = [line for line in SASS if "LDGSTS" not in line]
    assert machine_code.column_loop(not_ahead) is None
    assert machine_code.local_accesses(SASS) == 2
    assert machine_code.local_accesses(SASS[3:11]) == 0


def test_a_tile_waits_for_what_is_not_loaded_ahead():
    cost = pytest.importorskip("tools.kernels.cost", reason="needs triton")
    assert cost.waits(SASS, machine_code.column_loop(SASS)) == 2
    assert [cost.bytes_ahead(line) for line in SASS[4:6]] == [16, 0]


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
