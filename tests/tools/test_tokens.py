"""Token ids in explain, gradient_flow, gate_statistics and Stack."""

import pytest
import torch

import fused_rnn
from support.modules import DEEP, F64
from support.one_hot import VOCABULARY, one_hot


def test_explained():
    module, ids = fused_rnn.GRU(VOCABULARY, 4), torch.randint(0, VOCABULARY, (5, 2))
    assert "Ids are looked up in weight_ih" in str(fused_rnn.explain(module, ids))
    assert "Ids" not in str(fused_rnn.explain(module, torch.randn(5, 2, VOCABULARY)))
    with torch.no_grad():
        assert "Ids are looked up" in str(fused_rnn.explain(fused_rnn.freeze(module), ids))


@pytest.mark.parametrize("probe", ["last", "all"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_gradient_flow(kind, probe):
    module, ids = getattr(fused_rnn, kind)(VOCABULARY, 4, **DEEP, dtype=F64), torch.randint(0, VOCABULARY, (5, 2))
    found = []
    for input in (ids, one_hot(ids, VOCABULARY, F64)):
        with fused_rnn.gradient_flow(module, probe) as flow:
            module(input, lengths=torch.tensor([5, 3]))[0].square().sum().backward()
        found.append(flow.to_dict())
    assert str(found[0]) == str(found[1]) and "-1" not in str(found[0])


def test_gate_statistics():
    module, ids = fused_rnn.LSTM(VOCABULARY, 4, **DEEP), torch.randint(0, VOCABULARY, (5, 2))
    found, expected = (fused_rnn.gate_statistics(module, x) for x in (ids, one_hot(ids, VOCABULARY, torch.float32)))
    assert found == expected


@pytest.mark.parametrize("skip", [None, "residual", "dense"])
def test_a_deep_stack(skip):
    ids = torch.randint(0, VOCABULARY, (5, 2))
    stack = fused_rnn.Stack("gru", VOCABULARY, [4, 4], skip=skip)
    if skip == "dense":
        with pytest.raises(TypeError, match="ids are no numbers to add"):
            stack(ids)
    else:
        torch.testing.assert_close(stack(ids), stack(one_hot(ids, VOCABULARY, torch.float32)))
    if skip == "residual":
        with pytest.raises(TypeError, match="ids are no numbers to add"):
            fused_rnn.Stack("gru", 4, [4, 4], skip=skip)(ids % 4)
