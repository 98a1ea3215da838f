"""A user's program: what type checkers must see in it. ``test_types.py`` checks it, and runs it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from typing_extensions import assert_type

import fused_rnn

x = torch.randn(5, 3, 4)
packed = pack_padded_sequence(x, torch.tensor([5, 4, 2]))

# ---- layers: padded in, padded out; packed in, packed out ------------------------------------------------------------

lstm = fused_rnn.LSTM(4, 6, bidirectional=True, dtype=torch.float32)
assert_type(lstm(x), tuple[Tensor, tuple[Tensor, Tensor]])
assert_type(lstm(packed), tuple[PackedSequence, tuple[Tensor, Tensor]])
assert_type(lstm(x, return_cells=True), tuple[Tensor, tuple[Tensor, Tensor], Tensor])
assert_type(lstm(packed, return_cells=True), tuple[PackedSequence, tuple[Tensor, Tensor], PackedSequence])
assert_type(lstm.forward(x, lengths=[5, 4, 2]), tuple[Tensor, tuple[Tensor, Tensor]])
assert_type(lstm.forward(packed, grad_clip=1.0), tuple[PackedSequence, tuple[Tensor, Tensor]])
output, (h_n, c_n) = lstm(x, (torch.zeros(2, 3, 6), torch.zeros(2, 3, 6)), lengths=torch.tensor([5, 4, 2]))
assert_type(output, Tensor)
assert_type(c_n, Tensor)

gru = fused_rnn.GRU(4, 6, 2, batch_first=False)
assert_type(gru(x, None, reset_mask=torch.zeros(5, 3, dtype=torch.bool)), tuple[Tensor, Tensor])
assert_type(gru(packed), tuple[PackedSequence, Tensor])
assert_type(gru.forward(packed), tuple[PackedSequence, Tensor])

rnn = fused_rnn.RNN(4, 6, 1, "relu", device="cpu")
assert_type(rnn(x), tuple[Tensor, Tensor])
assert_type(rnn.forward(packed), tuple[PackedSequence, Tensor])

assert_type(fused_rnn.LSTMCell(4, 6)(x[0]), tuple[Tensor, Tensor])
assert_type(fused_rnn.GRUCell(4, 6)(x[0]), Tensor)
assert_type(fused_rnn.RNNCell(4, 6, nonlinearity="relu")(x[0], torch.zeros(3, 6)), Tensor)

assert_type(fused_rnn.Stack("gru", 4, [6, 6])(x)[0], Tensor)
assert_type(fused_rnn.Stack("gru", 4, [6, 6])(packed)[0], PackedSequence)


def either(layer: fused_rnn.LSTM, sequence: Tensor | PackedSequence) -> Tensor | PackedSequence:
    return layer(sequence)[0]


# ---- a module of one's own -------------------------------------------------------------------------------------------


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = fused_rnn.LSTM(4, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(x)
        assert_type(output, Tensor)
        return torch.relu(self.head(output))


class Decoder(fused_rnn.GRU):
    def decode(self, x: Tensor) -> Tensor:
        output, _ = super().forward(x)
        assert_type(output, Tensor)
        return output


# ---- what gives a model back keeps its type --------------------------------------------------------------------------

tagger = fused_rnn.swap(Tagger(), report=print)
assert_type(tagger, Tagger)
assert_type(fused_rnn.freeze(tagger, weights="int8"), Tagger)
assert_type(fused_rnn.thaw(tagger), Tagger)
assert_type(fused_rnn.restore(tagger), Tagger)
assert_type(fused_rnn.init.forget_bias_(lstm, 1.0), fused_rnn.LSTM)

# ---- functions and tools ---------------------------------------------------------------------------------------------

weights = list(gru.parameters())
assert_type(fused_rnn.functional.gru(x, None, weights, num_layers=2), tuple[Tensor, Tensor])
assert_type(fused_rnn.functional.gru(packed, None, weights, num_layers=2), tuple[PackedSequence, Tensor])
weights = list(fused_rnn.LSTM(4, 6).parameters())
assert_type(fused_rnn.functional.lstm(x, None, weights), tuple[Tensor, tuple[Tensor, Tensor]])
assert_type(
    fused_rnn.functional.lstm(x, None, weights, return_cells=True), tuple[Tensor, tuple[Tensor, Tensor], Tensor]
)

with torch.no_grad():
    assert_type(fused_rnn.Stream(gru, batch=3).step(x[0]), Tensor)
with fused_rnn.gradient_flow(gru) as flow:
    gru(x)[0].sum().backward()
assert_type(flow, fused_rnn.Flow)
assert_type(flow.summary(), fused_rnn.Summary)
for chunk in fused_rnn.tbptt(gru, nn.functional.mse_loss, [(x, torch.zeros(5, 3, 6))]):
    assert_type(chunk.loss, Tensor)


def draw(found: fused_rnn.Spectrum, folder: Path) -> None:
    assert_type(found.plot(folder / "spectrum.svg"), Path)


assert_type(fused_rnn.spectrum(gru), fused_rnn.Spectrum)
assert_type(fused_rnn.gate_statistics(gru, x), fused_rnn.GateStatistics)
