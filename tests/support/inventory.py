"""torch's own list of cases for its recurrent modules. Importing it needs expecttest."""

from torch import nn
from torch.testing._internal import common_modules

import fused_rnn
from fused_rnn.ops import torch_private
from fused_rnn.tools.verify import TOLERANCE, relative_error
from support.modules import results_of

OURS = {getattr(nn, name): getattr(fused_rnn, name) for name in ("RNN", "GRU", "LSTM")}
OURS |= {getattr(nn, name): getattr(fused_rnn, name) for name in ("RNNCell", "GRUCell", "LSTMCell")}
ENTRIES = {info.module_cls: info for info in common_modules.module_db if info.module_cls in OURS}


def list_of(make_cases, torch_class, dtype, training, device="cpu"):
    cases = make_cases(ENTRIES[torch_class], device=device, dtype=dtype, requires_grad=True, training=training)
    assert cases, f"torch lists no cases for {torch_class.__name__}"
    return list(cases)


def build(module_class, constructor_input, dtype, training):
    module = module_class(*constructor_input.args, **constructor_input.kwargs)
    return module.to(dtype).train(training)


def in_float64(tensor):
    return tensor.double() if tensor.is_floating_point() else tensor


def assert_every_case_gives_what_torch_gives(torch_class, training, dtype, device="cpu"):
    for case in list_of(ENTRIES[torch_class].module_inputs_func, torch_class, dtype, training, device):
        print(case.constructor_input)  # shown when this case fails
        first, ours, theirs = (
            build(cls, case.constructor_input, dtype, training).to(device)
            for cls in (torch_class, OURS[torch_class], torch_class)
        )
        ours.load_state_dict(first.state_dict())
        theirs.load_state_dict(ours.state_dict())  # state dicts load in both directions
        assert not case.forward_input.kwargs
        args = case.forward_input.args
        found, expected = results_of(ours, *args), results_of(theirs, *args)
        exact = results_of(theirs.double(), *torch_private.map_tensors(in_float64, args))
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert (tensor is None) == (expected[name] is None), name
            if tensor is None:
                continue
            assert tensor.shape == expected[name].shape and tensor.dtype == expected[name].dtype, name
            # torch.nn's float32, too, may be off by more than the tolerance, as where ReLU has its corner.
            limit = max(TOLERANCE[dtype], 2 * relative_error(expected[name], exact[name]))
            assert relative_error(tensor, exact[name]) <= limit, name
