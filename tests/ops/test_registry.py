"""The registry of cells: every row agrees with the compiled library, torch.nn and the reference."""

import math

import pytest
import torch

import fused_rnn
from fused_rnn import functional, reference
from fused_rnn.nn.kinds import OURS, cell_of
from fused_rnn.ops.cells import BY_ID, BY_MODE, CELLS


# Other tests of this process may have registered cells of their own, which torch.nn does not have.
def built_in():
    return [cell for cell in BY_ID.values() if cell.mode is not None]


cells = pytest.mark.parametrize("cell", built_in(), ids=lambda cell: cell.name)


def test_cells_are_found_by_id_name_and_mode():
    assert [cell.id for cell in built_in()] == list(range(len(BY_MODE)))
    assert all(CELLS[cell.name] is cell and BY_MODE[cell.mode] is cell for cell in built_in())


@cells
def test_number_of_gates_agrees_with_the_library(cell):
    names = [gate.name for gate in cell.named_gates]
    assert len(names) == cell.gates
    assert [cell.gate(name) for name in names] == list(range(cell.gates))
    assert cell.gate("no such gate") is None
    assert sorted(cell.onnx.gates) == sorted(names)


@cells
def test_gates_lie_in_their_ranges(cell):
    ends = torch.tensor([-200.0, 200.0], dtype=torch.float64).repeat(cell.gates)  # two units
    lowest, highest = (reference.GATES[cell.id](sign * ends.abs(), torch.zeros(2 * cell.gates)) for sign in (-1, 1))
    for gate, low, high in zip(cell.named_gates, lowest, highest, strict=True):
        assert low.allclose(torch.tensor(gate.low).double()), gate
        assert high.isclose(torch.tensor(gate.high).double()).all() or math.isinf(gate.high), gate


@cells
def test_classes_and_functions_have_the_registrys_names(cell):
    options = {} if cell.nonlinearity is None else {"nonlinearity": cell.nonlinearity}
    for library in (torch.nn, fused_rnn):
        layer = getattr(library, cell.layer_name)(3, 4, **options)
        step = getattr(library, cell.step_name)(3, 4, **options)
        assert layer.mode == cell.mode
        assert cell_of(layer) is cell and cell_of(step) is cell
    assert callable(getattr(functional, cell.layer.lower()))


def test_other_modules_have_no_cell():
    assert cell_of(torch.nn.Linear(3, 4)) is None
    assert cell_of(torch.nn.RNNCellBase(3, 4, True, 2)) is None
    assert {ours.__name__ for ours in OURS.values()} == {n for c in built_in() for n in (c.layer_name, c.step_name)}
