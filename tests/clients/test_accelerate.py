"""accelerate's models without memory and offloaded weights."""

import contextlib

import pytest
import torch
from torch import nn

import fused_rnn
from support.clients import client

pytestmark = pytest.mark.filterwarnings("ignore")
accelerate = client("accelerate")
X = torch.randn(2, 5, 3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 4, 2, batch_first=True)
        self.cell = nn.GRUCell(4, 4)

    def forward(self, x):
        return self.cell(self.rnn(x)[0][:, -1])


@pytest.fixture
def stock():
    return Net()


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights(where, stock, tmp_path):
    expected = stock(X)
    model = fused_rnn.swap(stock)
    if where == "disk":
        accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    else:
        accelerate.cpu_offload(model, execution_device="cpu")
    assert model.rnn.weight_hh_l0.is_meta
    with torch.no_grad():
        torch.testing.assert_close(model(X), expected)


def test_what_accelerate_has_wrapped_is_passed_over(stock):
    accelerate.cpu_offload(stock, execution_device="cpu")
    with pytest.warns(UserWarning, match="its forward was replaced, by accelerate perhaps"):
        fused_rnn.swap(stock)
    assert type(stock.rnn) is nn.LSTM


@pytest.mark.parametrize("way", ["swap", "install"])
def test_models_built_on_meta(way, stock, tmp_path):
    with fused_rnn.install() if way == "install" else contextlib.nullcontext(), accelerate.init_empty_weights():
        model = fused_rnn.swap(Net())
    assert type(model.rnn) is fused_rnn.LSTM
    assert type(model.cell) is fused_rnn.GRUCell
    file = str(tmp_path / "weights.bin")
    torch.save(stock.state_dict(), file)
    model = accelerate.load_checkpoint_and_dispatch(model, file, device_map={"": "cpu"})
    torch.testing.assert_close(model(X), stock(X))
