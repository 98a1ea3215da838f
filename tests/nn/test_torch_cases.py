"""torch's own tests of its recurrent modules in test_nn.py, by name: written again here, or where else they are.

What its test_modules.py runs is listed in ``module_db``, which ``test_inventory.py`` goes through.
"""

import itertools

import pytest
import torch
from torch import nn

import fused_rnn
from support.modules import (
    CELLS,
    F64,
    LAYERS,
    assert_same_error,
    assert_same_results,
    every_cell,
    every_layer,
    has_two_states,
    make_input,
    make_pair,
    make_states,
    tensors_of,
)
from support.paths import TESTS

pytestmark = [
    pytest.mark.usefixtures("no_reference"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

HERE, ARGUMENTS, CONSTRUCTORS = (f"nn/test_{file}.py::" for file in ("torch_cases", "wrong_arguments", "constructors"))
WHERE = {
    "test_rnn_args_check": f"{HERE}test_wrong_sizes",
    "test_projections_lstm_args_check": f"{HERE}test_wrong_sizes",
    "test_projections_errors_on_gru_and_rnn": f"{CONSTRUCTORS}test_constructor_refuses_what_torch_refuses",
    "test_rnn_check_device": f"{HERE}test_wrong_devices",
    "test_projections_lstm_check_device": f"{HERE}test_wrong_devices",
    "test_rnn_initial_hidden_state": f"{HERE}test_states_left_out_are_zeros",
    "test_projections_lstm_initial_hidden_state": f"{HERE}test_states_left_out_are_zeros",
    "test_RNN_nonlinearity": f"{CONSTRUCTORS}test_rnn_takes_its_nonlinearity_as_fourth_argument",
    "test_RNN_nonlinearity_passed_as_arg": f"{CONSTRUCTORS}test_positional_arguments_are_torchs",
    "test_RNN_input_size_zero": "nn/test_layouts.py::test_every_layout_of_the_input",  # which is of no rows
    "test_error_RNN_seq_len_zero": f"{ARGUMENTS}test_layers_refuse_what_torch_refuses",
    "test_partial_flat_weights": f"{HERE}test_a_module_moves_while_a_weight_is_missing",
    "test_RNN_dropout": "nn/test_layouts.py::test_dropout_draws_torchs_random_numbers",
    "test_RNN_dropout_state": "nn/test_layouts.py::test_dropout_draws_torchs_random_numbers",
    "test_RNN_change_dropout": f"{HERE}test_dropout_may_be_changed",
    "test_RNN_cell": f"{HERE}test_a_loop_over_a_cell",
    "test_LSTM_cell": f"{HERE}test_a_loop_over_a_cell",
    "test_RNN_cell_no_broadcasting": f"{HERE}test_states_of_cells_are_not_broadcast",
    "test_RNN_cell_forward_input_size": f"{ARGUMENTS}test_cells_refuse_what_torch_refuses",
    "test_RNN_cell_forward_hidden_size": f"{ARGUMENTS}test_cells_refuse_what_torch_refuses",
    "test_RNN_cell_forward_zero_hidden_size": f"{HERE}test_cells_of_no_units",
    "test_LSTM_cell_forward_input_size": f"{ARGUMENTS}test_cells_refuse_what_torch_refuses",
    "test_LSTM_cell_forward_hidden_size": f"{ARGUMENTS}test_lstm_cell_checks_its_second_state_as_torch_does",
    "test_lstmcell_backward_only_one_output_grad": "nn/test_backward.py::test_gradients_of_any_subset_of_outputs",
    "test_rnn_backward_to_input_but_not_parameters": "nn/test_backward.py::test_any_subset_may_require_gradients",
    "test_LSTM_grad_and_gradgrad": "autograd/test_gradients.py::test_finite_differences",
    "test_GRU_grad_and_gradgrad": "autograd/test_gradients.py::test_finite_differences",
    "test_variable_sequence": "nn/test_layouts.py::test_packed_input_and_states",
    "test_rnn_weight_norm": "nn/test_parameters.py::test_weights_normalised_by_hooks",
    "test_rnn_retain_variables": "nn/test_backward.py::test_retained_graph_gives_the_same_bits_twice",
    "test_module_apply_inplace_op": "nn/test_parameters.py::test_converted_modules_compute_in_the_new_dtype",
    "test_RNN_cudnn_weight_norm": "nn/test_parameters.py::test_weights_normalised_by_hooks",
    "test_RNN_cpu_vs_cudnn_no_dropout": "cuda/test_gpu_parity.py::test_equals_torch",
    "test_RNN_cpu_vs_cudnn_with_dropout": "cuda/test_gpu_parity.py::test_equals_torch",
    "test_cudnn_weight_tying": "nn/test_parameters.py::test_tied_weights_accumulate_gradients",
    "test_cudnn_weight_format": "nn/test_layouts.py::test_non_contiguous_input_states_and_weights",
    "test_cudnn_rnn_dropout_states_device": "cuda/test_gpu_parity.py::test_equals_torch",
}

STEPS, ROWS, INPUTS, UNITS, BAD = 6, 4, 3, 5, 7  # no size can be divided by 7


@pytest.mark.parametrize("name", WHERE)
def test_every_case_has_its_test(name):
    file, test = WHERE[name].split("::")
    assert f"def {test}(" in (TESTS / file).read_text()


def wrong_sizes(width):
    """(what is wrong, shape of the input, shapes of the states) for two layers; h is ``width`` wide."""
    input, h, c = (STEPS, ROWS, INPUTS), (2, ROWS, width), (2, ROWS, UNITS)
    yield "rows of the input", (STEPS, BAD, INPUTS), h, c
    yield "inputs", (STEPS, ROWS, BAD), h, c
    for what, dim in (("layers", 0), ("rows", 1), ("units", 2)):
        for is_c in (False, True):
            shape = [*(c if is_c else h)]
            shape[dim] = BAD
            yield f"{what} of {'c' if is_c else 'h'}", input, *((h, shape) if is_c else (shape, c))


@pytest.mark.parametrize("with_gradients", [True, False], ids=["grad", "no_grad"])
@every_layer
def test_wrong_sizes(kind, with_gradients):
    ours, theirs = make_pair(kind, INPUTS, UNITS, num_layers=2, dtype=torch.float32)
    for what, input, *states in wrong_sizes(theirs.proj_size or UNITS):
        if what.endswith(" c") and not has_two_states(theirs):
            continue
        h, c = map(torch.randn, states)
        hx = (h, c) if has_two_states(theirs) else h
        with torch.set_grad_enabled(with_gradients):
            assert_same_error(ours, theirs, torch.randn(input), hx)


@every_layer
def test_wrong_devices(kind):
    ours, _ = make_pair(kind)
    input, states = make_input(ours), tensors_of(make_states(ours))
    with pytest.raises(RuntimeError, match="Input and weights are not on the same device"):
        ours(input.to("meta"))
    for i in range(len(states)):
        moved = [state.to("meta") if i == j else state for j, state in enumerate(states)]
        with pytest.raises(RuntimeError, match="Input and hx are not on the same device"):
            ours(input, tuple(moved) if len(moved) > 1 else moved[0])


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_states_left_out_are_zeros(kind):
    ours, theirs = make_pair(kind)
    input = make_input(theirs)
    zeros = [torch.zeros_like(state) for state in tensors_of(make_states(theirs))]
    hx = tuple(zeros) if len(zeros) > 1 else zeros[0]
    for found, expected in zip(tensors_of(ours(input)), tensors_of(ours(input, hx)), strict=True):
        assert torch.equal(found, expected)
    assert_same_results(ours, theirs, input)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_no_inputs_are_taken_by_cells_alone(name):
    ours, theirs = getattr(fused_rnn, name), getattr(nn, name)
    if name.endswith("Cell"):  # which both have
        assert len(tensors_of(ours(0, 4)(torch.ones(2, 0)))) == len(tensors_of(theirs(0, 4)(torch.ones(2, 0))))
    else:
        assert_same_error(ours, theirs, 0, 4)


@every_layer
def test_a_module_moves_while_a_weight_is_missing(kind):
    """To another dtype, as no other device is sure to be there."""
    ours, theirs = make_pair(kind, num_layers=2, dtype=torch.float32)
    for module in (ours, theirs):
        weight = module.weight_hh_l0
        del module.weight_hh_l0
        assert not hasattr(module, "weight_hh_l0")
        module.to(F64)
        module.weight_hh_l0 = nn.Parameter(weight.to(F64))
    assert_same_results(ours, theirs, make_input(theirs))


@every_layer
def test_dropout_may_be_changed(kind):
    """In a trained layer, from one call to the next, and back."""
    ours, theirs = make_pair(kind, num_layers=2, dropout=0.5)
    input = make_input(theirs)
    for dropout, training in itertools.product((0.0, 0.5, 1.0, 0.0), (True, False)):
        for module in (ours, theirs):
            module.dropout = dropout
            module.train(training)
        results = []
        for module in (ours, theirs):
            torch.manual_seed(1)
            results.append(module(input)[0])
        torch.testing.assert_close(*results)


@every_cell
def test_a_loop_over_a_cell(kind):
    """With and without biases, each step's states into the next, and gradients through all of them."""
    for bias in (True, False):
        ours, theirs = make_pair(kind, 10, 20, bias=bias)
        inputs = torch.randn(6, 3, 10, dtype=F64)
        gradients = []
        for module in (ours, theirs):
            hx = None
            for input in inputs:
                hx = module(input, hx)
            sum(state.sum() for state in tensors_of(hx)).backward()
            gradients.append([weight.grad for weight in module.parameters()])
        for found, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(found, expected)


@every_cell
def test_states_of_cells_are_not_broadcast(kind):
    ours, theirs = make_pair(kind, 10, 20)
    good = torch.randn(3, 20, dtype=F64)
    for bad in (torch.randn(3, 1, dtype=F64), torch.randn(1, 20, dtype=F64), torch.randn(1, 1, dtype=F64)):
        pairs = [(bad, good), (good, bad)] if has_two_states(theirs) else [bad]
        for hx in pairs:
            assert_same_error(ours, theirs, torch.randn(3, 10, dtype=F64), hx)


@every_cell
def test_cells_of_no_units(kind):
    ours, theirs = make_pair(kind, 10, 20)
    empty = torch.randn(3, 0, dtype=F64)
    assert_same_error(ours, theirs, torch.randn(3, 10, dtype=F64), (empty, empty) if has_two_states(theirs) else empty)
    none = type(ours)(10, 0, dtype=F64)
    states = tensors_of(none(torch.randn(3, 10, dtype=F64)))
    assert all(state.shape == (3, 0) for state in states)
