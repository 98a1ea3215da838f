"""torch.compile sees one operator per layer: one graph, any T and B, the eager numbers."""

import pytest
import torch
from torch import nn

import fused_rnn

# torch.compile instantiates autograd functions itself, against torch's own advice.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


class Tagger(nn.Module):
    """A layer between others, called with every option."""

    def __init__(self, kind):
        super().__init__()
        self.enter = nn.Linear(4, 3)
        self.rnn = getattr(fused_rnn, kind)(3, 5, num_layers=2, bidirectional=True)
        self.leave = nn.Linear(10, 2)

    def forward(self, x, lengths, reset_mask):
        output, state = self.rnn(self.enter(x), lengths=lengths, reset_mask=reset_mask)
        return self.leave(output), state


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_compiled_model_equals_eager(kind, no_reference):
    torch._dynamo.reset()
    model = Tagger(kind)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    counted = torch.compile(model, fullgraph=True, dynamic=True, backend=count)
    for steps, batch in ((7, 3), (5, 4), (9, 2)):
        x = torch.randn(steps, batch, 4, requires_grad=True)
        lengths = torch.randint(1, steps + 1, (batch,))
        mask = torch.rand(steps, batch) < 0.2
        found = outputs_and_gradients(compiled, model, x, lengths, mask)
        expected = outputs_and_gradients(model, model, x, lengths, mask)
        torch.testing.assert_close(found, expected)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, lengths, mask), model(x, lengths, mask))
        counted(x, lengths, mask)
    assert len(graphs) == 1, "recompiled for another T or B"


def outputs_and_gradients(call, model, x, lengths, mask):
    output, state = call(x, lengths, mask)
    loss = output.square().sum() + (state[1] if isinstance(state, tuple) else state).sum()
    return [output, *torch.autograd.grad(loss, [x, *model.parameters()])]


def test_inductor(no_reference):
    torch._dynamo.reset()
    model = fused_rnn.GRU(3, 4)
    x = torch.randn(5, 2, 3, requires_grad=True)
    compiled = torch.compile(model, fullgraph=True)
    found, expected = (
        torch.autograd.grad(run(x)[0].square().sum(), [x, *model.parameters()]) for run in (compiled, model)
    )
    torch.testing.assert_close(found, expected)
