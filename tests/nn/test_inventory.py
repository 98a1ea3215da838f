"""torch's own list of cases and error cases for its recurrent modules, run on ours and on torch.nn's."""

import pytest
import torch

from support.modules import assert_same_error

inventory = pytest.importorskip("support.inventory", reason="torch's list of module cases needs expecttest")

pytestmark = [
    pytest.mark.usefixtures("no_reference"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

every_entry = pytest.mark.parametrize("torch_class", inventory.OURS, ids=lambda cls: cls.__name__)
both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@every_entry
@both_modes
@both_dtypes
def test_every_case_gives_what_torch_gives(torch_class, training, dtype):
    inventory.assert_every_case_gives_what_torch_gives(torch_class, training, dtype)


@every_entry
@both_modes
@both_dtypes
def test_every_error_case_fails_as_torch_does(torch_class, training, dtype):
    make_cases = inventory.ENTRIES[torch_class].module_error_inputs_func
    for case in inventory.list_of(make_cases, torch_class, dtype, training):
        constructor, forward = case.module_error_input.constructor_input, case.module_error_input.forward_input
        print(case.error_regex)  # shown when this case fails
        if case.error_on is inventory.common_modules.ModuleErrorEnum.CONSTRUCTION_ERROR:
            assert_same_error(inventory.OURS[torch_class], torch_class, *constructor.args, **constructor.kwargs)
        else:
            ours, theirs = (
                inventory.build(cls, constructor, dtype, training) for cls in (inventory.OURS[torch_class], torch_class)
            )
            assert_same_error(ours, theirs, *forward.args, **forward.kwargs)
