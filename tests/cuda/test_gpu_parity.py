"""The CPU engine's tests on a GPU, for every engine: random layers, torch's own cases, finite differences."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fused_rnn
from fused_rnn import functional
from fused_rnn.ops.cells import CELLS
from fused_rnn.tools.verify import TOLERANCE, Case, make_problem
from support.cuda import DTYPES_AND_KINDS, large, narrow, persistent_cases
from support.differences import FORMS, TINY
from support.gpu import on_a_gpu
from support.modules import LAYERS, assert_same_results, make_input, make_pair, make_states
from support.operators import count_operators
from support.problems import assert_equals_reference
from support.problems import cases as all_cases

pytestmark = on_a_gpu
DEVICE = "cuda"
ENGINES = [(dtype, "stepwise") for dtype in TOLERANCE] + DTYPES_AND_KINDS
exact = pytest.mark.usefixtures("without_tf32")


@exact
@pytest.mark.parametrize(("dtype", "engine"), ENGINES)
@pytest.mark.parametrize("name", CELLS)
def test_equals_reference(name, dtype, engine):
    hidden = narrow if engine == "one" else large

    @given(
        case=all_cases if engine == "stepwise" else persistent_cases(hidden),
        strided=st.booleans(),
        empty_rows=st.booleans(),
    )
    @settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
    def check(case, strided, empty_rows):
        with fused_rnn.engine(engine):
            assert_equals_reference(name, case, dtype, strided, empty_rows, DEVICE)

    check()


@exact
@pytest.mark.parametrize("engine", ["stepwise", "best"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_equals_torch(kind, batch_first, dtype, engine):
    for sizes in ((3, 4), (33, 70), (64, 200)):
        options = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first, "dtype": dtype}
        ours, theirs = make_pair(kind, *sizes, **options)
        input, states = make_input(ours, 9, 5, dtype), make_states(ours, 5, dtype)
        states = tuple(s.to(DEVICE) for s in states) if isinstance(states, tuple) else states.to(DEVICE)
        with fused_rnn.engine(engine):
            assert_same_results(ours.to(DEVICE), theirs.to(DEVICE), input.to(DEVICE), states)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
def test_torchs_own_cases(name, training):
    """In float64: in float32, cancellation makes different summation orders differ too much."""
    inventory = pytest.importorskip("support.inventory", reason="torch's list of module cases needs expecttest")
    inventory.assert_every_case_gives_what_torch_gives(getattr(torch.nn, name), training, torch.float64, DEVICE)


@pytest.mark.parametrize("engine", ["stepwise", "one", "cluster", "flags"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CELLS)
def test_finite_differences(name, form, engine):
    problem = make_problem(CELLS[name], Case(form, **TINY, **FORMS[form], bidirectional=True), torch.float64, DEVICE)
    tensors = [t.requires_grad_() for t in problem.tensors]

    def run(*tensors):
        return tuple(problem.call(functional, tensors))

    with fused_rnn.engine(engine):
        along = not problem.case.packed  # torch's packing has no forward-mode AD
        assert torch.autograd.gradcheck(run, tensors, check_forward_ad=along)
        assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True, check_fwd_over_rev=along)


@pytest.mark.parametrize("engine", ["stepwise", "persistent"])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
def test_number_of_operators_is_independent_of_steps(kind, engine):
    """As dispatched by torch: the stepwise engine's products per step are not, and the persistent one has none."""
    layer, _ = make_pair(kind, num_layers=2, bidirectional=True)
    layer.to(DEVICE)
    counts = []
    with fused_rnn.engine(engine):
        for steps in (10, 1000):
            input = torch.randn(steps, 3, 3, dtype=torch.float64, device=DEVICE)
            counts.append(count_operators(lambda input=input: layer(input)[0].sum().backward()))
    (profiled, dispatched), (profiled_long, dispatched_long) = counts
    assert dispatched == dispatched_long
    assert engine == "stepwise" or profiled == profiled_long
