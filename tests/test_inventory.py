"""torch's own list of cases and error cases for its recurrent modules, run on ours and on torch.nn's."""

import pytest
import torch
from common import assert_same_error, assert_same_results
from torch import nn

import fused_rnn

pytest.importorskip("expecttest", reason="torch's list of module cases needs expecttest")
from torch.testing._internal import common_modules

pytestmark = [
    pytest.mark.usefixtures("no_reference"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

OURS = {getattr(nn, name): getattr(fused_rnn, name) for name in ("RNN", "GRU", "LSTM")}
OURS |= {getattr(nn, name): getattr(fused_rnn, name) for name in ("RNNCell", "GRUCell", "LSTMCell")}
ENTRIES = {info.module_cls: info for info in common_modules.module_db if info.module_cls in OURS}

every_entry = pytest.mark.parametrize("torch_class", OURS, ids=lambda cls: cls.__name__)
both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def list_of(make_cases, torch_class, dtype, training, device="cpu"):
    cases = make_cases(ENTRIES[torch_class], device=device, dtype=dtype, requires_grad=True, training=training)
    assert cases, f"torch lists no cases for {torch_class.__name__}"
    return list(cases)


def build(module_class, constructor_input, dtype, training):
    module = module_class(*constructor_input.args, **constructor_input.kwargs)
    return module.to(dtype).train(training)


def assert_every_case_gives_what_torch_gives(torch_class, training, dtype, device="cpu"):
    for case in list_of(ENTRIES[torch_class].module_inputs_func, torch_class, dtype, training, device):
        print(case.constructor_input)  # shown when this case fails
        first, ours, theirs = (
            build(cls, case.constructor_input, dtype, training).to(device)
            for cls in (torch_class, OURS[torch_class], torch_class)
        )
        ours.load_state_dict(first.state_dict())
        theirs.load_state_dict(ours.state_dict())  # state dicts go both ways
        assert not case.forward_input.kwargs
        assert_same_results(ours, theirs, *case.forward_input.args)


@every_entry
@both_modes
@both_dtypes
def test_every_case_gives_what_torch_gives(torch_class, training, dtype):
    assert_every_case_gives_what_torch_gives(torch_class, training, dtype)


@every_entry
@both_modes
@both_dtypes
def test_every_error_case_fails_as_torch_does(torch_class, training, dtype):
    make_cases = ENTRIES[torch_class].module_error_inputs_func
    for case in list_of(make_cases, torch_class, dtype, training):
        constructor, forward = case.module_error_input.constructor_input, case.module_error_input.forward_input
        print(case.error_regex)  # shown when this case fails
        if case.error_on is common_modules.ModuleErrorEnum.CONSTRUCTION_ERROR:
            assert_same_error(OURS[torch_class], torch_class, *constructor.args, **constructor.kwargs)
        else:
            ours, theirs = (build(cls, constructor, dtype, training) for cls in (OURS[torch_class], torch_class))
            assert_same_error(ours, theirs, *forward.args, **forward.kwargs)
