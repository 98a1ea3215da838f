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
        (0.4, "vanishing", math.log(0.5) / math.log(0.4), "halves every 0.756 steps"),
        (0.5, "vanishing", 1.0, "halves every 1 steps, and less than 0.001 is left 10 steps back"),
        (0.6, "fading", math.log(0.5) / math.log(0.6), "halves every 1.36 steps"),
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


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("hidden", [8, 32, 128])
@pytest.mark.parametrize("steps", [10, 30, 100])
def test_fresh_gated_layers_are_not_called_vanishing(kind, hidden, steps):
    torch.manual_seed(0)
    (line,) = summary_of(getattr(fused_rnn, kind)(hidden, hidden), steps).lines
    assert line.verdict == ("healthy" if steps == 10 else "fading")


def summary_of(layer, steps):
    with fused_rnn.gradient_flow(layer) as flow:
        layer(torch.randn(steps, 4, layer.input_size))[0].sum().backward()
    return flow.summary()


@pytest.mark.parametrize(
    ("make", "says", "follow"),
    [
        (lambda: fused_rnn.LSTM(32, 32), "forget_bias_(layer, 3.0)", lambda m: fused_rnn.init.forget_bias_(m, 3.0)),
        (lambda: fused_rnn.LSTM(32, 32), "chrono_(layer, longest)", lambda m: fused_rnn.init.chrono_(m, 60)),
        (lambda: fused_rnn.GRU(32, 32), "update_bias_(layer, 3.0)", lambda m: fused_rnn.init.update_bias_(m, 3.0)),
        (lambda: fused_rnn.GRU(32, 32), "chrono_(layer, longest)", lambda m: fused_rnn.init.chrono_(m, 60)),
        (lambda: fused_rnn.RNN(32, 32), "orthogonal_(layer)", fused_rnn.init.orthogonal_),
        (lambda: fused_rnn.RNN(32, 32, nonlinearity="relu"), "identity_(layer)", fused_rnn.init.identity_),
    ],
)
def test_advice_helps(make, says, follow):
    torch.manual_seed(0)
    layer = make()
    before = summary_of(layer, 60)
    (line,) = before.lines
    assert line.verdict in ("fading", "vanishing") and says in line.advice
    assert str(before).endswith(f"l0: {line.advice}")
    assert f"\n{line.verdict}: less than 0.001 reaches the first step" in str(before)
    (after,) = summary_of(follow(layer), 60).lines
    assert after.half_life > 2 * line.half_life


def test_advice_is_given_where_it_is_needed_only():
    (line,) = relu_chain(2.0).summary().lines
    assert "clip_grad_norm_" in line.advice and "grad_clip=" in line.advice
    healthy = relu_chain(1.0).summary()
    assert healthy.lines[0].advice == "" and "try" not in str(healthy)
    assert "between 0.001 and 1000 times" in str(healthy)


def test_layers_of_a_model_get_the_advice_for_their_cells():
    model = Tagger()
    with fused_rnn.gradient_flow(model) as flow:
        model(torch.randn(60, 2, 4))[0].sum().backward()
    words = {"GRU": "update_bias_", "LSTM": "forget_bias_", "RNN": "orthogonal_"}
    for line in flow.summary().lines:
        module = model.get_submodule(line.name.removesuffix(" reverse").rpartition(".")[0])
        assert line.verdict == "healthy" or words[type(module).__name__] in line.advice, line


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
