"""``gradient_flow`` on the CUDA engine, run by the machine: the same norms as on the CPU."""

import pytest
import torch

import fused_rnn
from fused_rnn.tools.verify import TOLERANCE, relative_error
from support.modules import DEEP, F64, LAYERS, assert_close, make_input, make_pair

MASKS = 3


def masks_of(number):
    """New tensors, in memory that the machine knows."""
    lengths = torch.tensor([6, 2, 6, 0, 4])
    resets = torch.zeros(6, 5, dtype=torch.bool)
    resets[[0, 3, 1, 5, 3], [0, 0, 1, 2, 4]] = True
    return ({}, {"lengths": lengths}, {"lengths": lengths, "reset_mask": resets})[number]


def norms_of(module, input, probe, masks):
    with fused_rnn.gradient_flow(module, probe) as flow:
        module(input, **masks)[0].square().sum().backward()
    return dict(flow.norms())


@pytest.fixture(scope="module")
def expected():
    """The CPU's norms by kind, dtype, probe and masks, computed before the machine takes over."""
    found = {}
    for kind in LAYERS:
        for dtype in TOLERANCE:
            torch.manual_seed(0)
            module, _ = make_pair(kind, dtype=dtype, **DEEP)
            input = make_input(module, 6, 5, dtype)
            for probe in ("last", "all"):
                for i in range(MASKS):
                    found[kind, dtype, probe, i] = norms_of(module, input, probe, masks_of(i))
    return found


@pytest.mark.parametrize("masks", range(MASKS))
@pytest.mark.parametrize("probe", ["last", "all"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", LAYERS)
def test_stepwise(expected, machine, kind, dtype, probe, masks):
    torch.manual_seed(0)
    module, _ = make_pair(kind, dtype=dtype, **DEEP)
    found = norms_of(module, make_input(module, 6, 5, dtype), probe, masks_of(masks))
    for name, norms in expected[kind, dtype, probe, masks].items():
        assert found[name].shape == norms.shape and norms.any()
        assert relative_error(found[name], norms) <= TOLERANCE[dtype], name


def test_persistent_kernels_have_no_norms(expected, machine, monkeypatch):
    """Chosen by name it refuses; "best" runs the backward pass stepwise."""
    torch.manual_seed(0)
    module, _ = make_pair("gru", dtype=F64, **DEEP)
    input = make_input(module, 6, 5)
    monkeypatch.setenv("FUSED_RNN_ENGINE", "cluster")
    with pytest.raises(RuntimeError, match="norms of gradients are taken step by step"):
        norms_of(module, input, "all", {})
    monkeypatch.setenv("FUSED_RNN_ENGINE", "best")
    assert_close(norms_of(module, input, "all", {}), expected["gru", F64, "all", 0])
