"""What ``gradient_flow`` reports: verdicts, dictionaries and plots."""

import json
import math

import pytest
import torch

import fused_rnn
from support.flow import Tagger
from support.modules import F64, has_two_states, make_input, make_pair


def relu_chain(factor, steps=20, hidden=3):
    """A ReLU network whose units are always active: a step back multiplies the gradient by ``factor``."""
    module = fused_rnn.RNN(1, hidden, nonlinearity="relu", bias=False, dtype=F64)
    with torch.no_grad():
        module.weight_ih_l0.fill_(1e-200)  # h stays finite even where it grows like the gradient
        module.weight_hh_l0.copy_(factor * torch.eye(hidden))
    with fused_rnn.gradient_flow(module) as flow:
        module(torch.ones(steps, 1, 1, dtype=F64))[0].sum().backward()
    return flow


@pytest.mark.parametrize(
    ("factor", "verdict", "half_life", "says"),
    [
        (0.5, "vanishing", 1.0, "halves every 1 steps"),
        (0.99, "healthy", math.log(0.5) / math.log(0.99), "gets 0.83 of the gradient 19 steps later"),
        (1.0, "healthy", math.inf, "gets 1 of"),
        (2.0, "exploding", math.inf, "doubles every 1 steps"),
    ],
)
def test_verdicts(factor, verdict, half_life, says):
    (line,) = relu_chain(factor).summary().lines
    assert (line.name, line.steps, line.verdict) == ("l0", 20, verdict)
    assert line.half_life == pytest.approx(half_life)
    assert line.ratio == pytest.approx(factor**19)
    assert says in line.reason and says in str(relu_chain(factor).summary())


def test_verdicts_of_extreme_cases():
    assert relu_chain(2.0, steps=1).summary().lines[0].verdict == "-"
    (line,) = relu_chain(0.0).summary().lines
    assert (line.verdict, line.ratio) == ("vanishing", 0)
    (line,) = relu_chain(1e20, steps=20).summary().lines
    assert line.verdict == "exploding" and "not finite" in line.reason
    module = fused_rnn.GRU(2, 3)
    with fused_rnn.gradient_flow(module) as flow:
        module(torch.randn(4, 0, 2))[0].sum().backward()
    assert flow.summary().lines[0].verdict == "-"
    with fused_rnn.gradient_flow(module, "all") as flow:
        module(torch.randn(4, 2, 2))[0].sum().backward()
    (line,) = flow.summary().lines
    assert line.verdict == "-" and "probe='last'" in line.reason


def test_both_states_count_together():
    module, _ = make_pair("lstm", bidirectional=True)
    assert has_two_states(module)
    with fused_rnn.gradient_flow(module) as flow:
        module(make_input(module, steps=7))[0].sum().backward()
    ((_, norms),) = flow.norms()
    for d, line in enumerate(flow.to_dict()["lines"]):
        h, c = norms[d] if d else norms[d].flip(-1)
        assert line["h"] == pytest.approx(h.tolist()) and line["c"] == pytest.approx(c.tolist())
        whole = (h.square() + c.square()).sqrt()
        assert line["ratio"] == pytest.approx((whole[-1] / whole[0]).item())


def test_dictionaries_and_plots(tmp_path):
    model = Tagger()
    with fused_rnn.gradient_flow(model) as flow:
        model(torch.randn(9, 2, 4))[0].sum().backward()
    told = json.loads(json.dumps(flow.to_dict(), allow_nan=False))
    assert told["probe"] == "last" and [len(line["h"]) for line in told["lines"]] == [9] * 5
    assert "c" not in told["lines"][0] and len(told["lines"][1]["c"]) == 9
    json.dumps(relu_chain(1e20).to_dict(), allow_nan=False)
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    for flow_of, name in ((flow, "a.svg"), (flow, "b.svg"), (relu_chain(0.0), "c.png"), (relu_chain(1.0, 1), "d.png")):
        assert flow_of.plot(tmp_path / name).stat().st_size > 1000
    svg = (tmp_path / "a.svg").read_text()
    assert all(line["name"] in svg for line in told["lines"])
    assert svg == (tmp_path / "b.svg").read_text()
