"""Cells that are registered at run time: ids, tables, graphs of other processes, packed weights, refusals."""

import ctypes
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from fused_rnn import reference
from fused_rnn.autograd.operators import OPERATORS
from fused_rnn.nn.runners import Frozen
from fused_rnn.ops import cells, library
from fused_rnn.ops.arguments import run_cell
from fused_rnn.ops.layer import TIME_MAJOR, WeightFormat, stack_code, stack_of
from fused_rnn.ops.layer import own_cell as own_id
from fused_rnn.own import build
from fused_rnn.own.register import load, register
from support.own_cells import CELLS, header_of, own_cell
from support.paths import ROOT, TESTS

UNKNOWN = (1 << 40) + 1
NO_CELL = rf"no cell with the id {UNKNOWN} is loaded: define it \(fused_rnn.cell\) before you load or run this graph"


def peephole_weights(dtype=torch.float64, hidden=5, inputs=3):
    return [torch.randn(*shape, dtype=dtype) for shape in ((4 * hidden, inputs), (4 * hidden, hidden), (3, hidden))]


def forward(cell, input, weights):
    return torch.ops.fused_rnn.layer_forward(
        cell, False, False, input, None, None, weights, None, None, None, False, False
    )


def test_an_unknown_cell_is_named():
    x, weights = torch.randn(2, 1, 3, dtype=torch.float64), peephole_weights()
    for grad in (True, False):
        weights[0].requires_grad_(grad)
        with pytest.raises(RuntimeError, match=NO_CELL):
            forward(UNKNOWN, x, weights)
    with pytest.raises(RuntimeError, match=NO_CELL):
        forward(UNKNOWN, x.to("meta"), [w.to("meta") for w in weights])
    with pytest.raises(RuntimeError, match="unknown cell 77"):
        forward(77, x, weights)


def test_ids_are_hashes_of_the_header():
    cell = own_cell("peephole_lstm")
    assert cell.id == build.cell_id(header_of("peephole_lstm")) and cells.known(cell.id) is cell
    assert cell.name not in cells.CELLS, "these are the library's"


def test_a_cell_that_is_registered_again_stays_what_it_is():
    cell = own_cell("peephole_lstm")
    _, step, states, initial, traits = CELLS["peephole_lstm"]
    row, traits = cells.Row("again", state_names=tuple(states), initial=initial), library.CellTraits(*traits)
    assert register(row, traits, header_of("peephole_lstm"), step) is cell
    for other_row, other_traits in ((row, traits._replace(saved=9)), (replace(row, initial=(1.0, 0.0)), traits)):
        with pytest.raises(ValueError, match="belongs to another cell, peephole_lstm"):
            register(other_row, other_traits, header_of("peephole_lstm"), step)
    with pytest.raises(ValueError, match="initial must have 2 numbers, got 1"):
        register(replace(row, initial=(1.0,)), traits, header_of("peephole_lstm") + "// more\n", step)


def test_traits_are_those_of_the_header():
    _, step, states, _, traits = CELLS["peephole_lstm"]
    row, traits = cells.Row("liar", state_names=tuple(states)), library.CellTraits(*traits)._replace(shared_gates=3)
    cell = register(row, traits, header_of("peephole_lstm") + "// with wrong traits\n", step)
    with pytest.raises(RuntimeError, match=rf"there is another cell with the id {cell.id}"):
        run_cell(OPERATORS, cell, torch.randn(2, 1, 3, dtype=torch.float64), None, peephole_weights())


def test_without_compilation_the_reference_runs():
    _, step, states, _, traits = CELLS["peephole_lstm"]
    row, header = cells.Row("slow", state_names=tuple(states)), header_of("peephole_lstm") + "// slow\n"
    cell = register(row, library.CellTraits(*traits), header, step, compiled=False)
    x, weights = torch.randn(2, 1, 3, dtype=torch.float64), peephole_weights()
    with pytest.raises(RuntimeError, match=f"no cell with the id {cell.id} is loaded"):
        run_cell(OPERATORS, cell, x, None, weights)
    found = list(run_cell(reference.RUNNER, cell, x, None, weights))
    assert register(row, library.CellTraits(*traits), header, step) is cell
    torch.testing.assert_close(found, list(run_cell(OPERATORS, cell, x, None, weights)))


def test_a_failed_compilation_is_an_error_of_the_call(monkeypatch):
    _, step, states, _, traits = CELLS["peephole_lstm"]
    row, header = cells.Row("new", state_names=tuple(states)), header_of("peephole_lstm") + "// no compiler\n"
    cell = register(row, library.CellTraits(*traits), header, step)
    x, weights = torch.randn(2, 1, 3, dtype=torch.float64), peephole_weights()
    with monkeypatch.context() as patch:
        patch.setenv("CXX", "/no/such/compiler")
        with pytest.raises(RuntimeError, match=r"there is no C\+\+ compiler .*compiled=False"):
            run_cell(OPERATORS, cell, x, None, weights)
        with pytest.raises(RuntimeError, match=r"there is no C\+\+ compiler"):  # graphs' calls go another way
            forward(cell.id, x, weights)
    run_cell(OPERATORS, cell, x, None, weights)


def test_kernels_are_compiled_for_the_dtypes_that_are_called():
    text = header_of("peephole_lstm") + "// in float64 alone\n"
    cell_id = library.add_cell(build.load(text, [torch.float64]))
    assert cell_id == build.cell_id(text)
    forward(cell_id, torch.randn(2, 1, 3, dtype=torch.float64), peephole_weights())
    library.compiled.fused_rnn_set_loader(ctypes.cast(None, library.Loader))
    try:
        with pytest.raises(RuntimeError, match=rf"id {cell_id} was not compiled for float32 on "):
            forward(cell_id, torch.randn(2, 1, 3), peephole_weights(torch.float32))
    finally:
        library.set_loader(load)


def test_what_is_no_plug_in_is_refused(tmp_path):
    (tmp_path / "cell.so").write_bytes(b"no library")
    with pytest.raises(RuntimeError, match=r"the compiled cell .*cell\.so could not be loaded"):
        library.add_cell(tmp_path / "cell.so")
    with pytest.raises(RuntimeError, match="is no plug-in with a cell"):
        library.add_cell(library.PATH)
    numbers = (ctypes.c_int64 * 32)(12345)
    error = ctypes.create_string_buffer(256)
    assert not library.compiled.fused_rnn_add_cell(numbers, error, len(error))
    assert b"compiled from other sources than the library" in error.value


def test_stack_codes_leave_the_id_to_an_argument():
    cell = own_cell("peephole_lstm")
    code = stack_code(cell.id, 3, True, False, TIME_MAJOR)
    assert own_id(cell.id) == cell.id and own_id(0) is None
    assert stack_of(code, cell.id) == (cell.id, 3, True, False, TIME_MAJOR)
    x, weights = torch.randn(2, 1, 3, dtype=torch.float64), peephole_weights()
    code = stack_code(cell.id, 1, False, False, TIME_MAJOR)
    with torch.no_grad():
        output, h, c = torch.ops.fused_rnn.infer(code, x, None, None, weights, own_cell=cell.id)
        torch.testing.assert_close([output, h, c], list(run_cell(OPERATORS, cell, x, None, weights)))
        for wrong in ({}, {"own_cell": UNKNOWN}):
            with pytest.raises(RuntimeError, match="goes with a stack code" if not wrong else NO_CELL):
                torch.ops.fused_rnn.infer(code, x, None, None, weights, **wrong)
        with pytest.raises(RuntimeError, match="goes with a stack code"):
            torch.ops.fused_rnn.infer(stack_code(0, 1, False, False, 0), x, None, None, weights, own_cell=cell.id)


def test_packed_weights():
    cell = own_cell("wide_cell")
    hidden = 20
    weights = [torch.randn(6 * hidden, 3), torch.randn(6 * hidden, hidden), torch.randn(2, hidden)]
    x = torch.randn(30, 2, 3)
    with torch.no_grad():
        frozen = Frozen(cell, False, False, 1, weights)
        found, expected = (list(run_cell(runner, cell, x, None, weights)) for runner in (frozen, OPERATORS))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        with pytest.raises(RuntimeError, match="int8 in LSTM, GRU and RNN layers alone"):
            Frozen(cell, False, False, 1, weights, WeightFormat.INT8)


PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from support.own_cells import own_cell
for name in sys.argv[3:]:
    own_cell(name)
program = torch.export.load(sys.argv[2])
print(program.module()(torch.ones(3, 2, 3, dtype=torch.float64)).sum().item())
"""


def test_graphs_are_loaded_in_other_processes(tmp_path):
    """Ids do not depend on which cells a process defined before."""
    cell = own_cell("peephole_lstm")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.ParameterList(peephole_weights())

        def forward(self, x):
            return run_cell(OPERATORS, cell, x, None, list(self.weights))[0]

    model, x = Model(), torch.ones(3, 2, 3, dtype=torch.float64)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")

    def load_in_process(*names):
        command = [sys.executable, "-c", PROCESS, str(TESTS), str(tmp_path / "model.pt2"), *names]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = load_in_process("min_gru", "peephole_lstm")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(model(x).sum().item())
    done = load_in_process("min_gru")
    assert done.returncode == 1 and f"no cell with the id {cell.id} is loaded" in done.stderr


def test_pythons_limits_are_the_librarys():
    cells, registry = ((ROOT / "csrc" / name).read_text() for name in ("cells/cells.h", "core/registry.h"))
    assert f"constexpr int kMostGates = {library.MOST_GATES}, kMostStates = {library.MOST_STATES};" in cells
    assert f"kLeastOwnId = int64_t{{1}} << {library.LEAST_OWN_ID.bit_length() - 1};" in registry
    assert 1 << library.LEAST_OWN_ID.bit_length() - 1 == library.LEAST_OWN_ID
