"""What traces a model to draw or to convert it: TensorBoard, Lightning's logger, OpenVINO."""

import pytest
import torch
from torch import nn

import fused_rnn
from support.clients import client, quiet

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True)
        self.cell = nn.GRUCell(8, 4)

    def forward(self, x):
        return self.cell(self.rnn(x)[0][:, -1])


@pytest.fixture
def net():
    return fused_rnn.swap(Net())


X = torch.randn(2, 5, 3)


def drawn(folder):
    """The operators of the graph that lies in a log folder."""
    accumulator = client("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(str(folder))
    accumulator.Reload()
    return {node.op for node in accumulator.Graph().node}


def test_tensorboard_draws_the_graph(net, tmp_path):
    with client("torch.utils.tensorboard").SummaryWriter(tmp_path) as writer:
        writer.add_graph(net, X)
    assert "fused_rnn::layer_forward" in drawn(tmp_path)


def test_lightnings_logger_draws_the_graph(net, tmp_path):
    lightning = client("lightning")
    loggers = client("lightning.pytorch.loggers")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.example_input_array = net, X

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            return self(batch).square().sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    logger = loggers.TensorBoardLogger(tmp_path, log_graph=True)
    with quiet():
        lightning.Trainer(
            max_steps=1, logger=logger, accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False
        ).fit(Model(), torch.utils.data.DataLoader(X, batch_size=2))
    assert "fused_rnn::layer_forward" in drawn(logger.log_dir)


def test_openvino_names_the_operator_and_converts_what_is_restored(net):
    """OpenVINO has no rule for this library's operators; the error is its own, and the process lives."""
    openvino = client("openvino")
    with pytest.raises(Exception, match="No conversion rule found for operations: fused_rnn::layer_forward"):
        openvino.convert_model(net, example_input=X)
    expected = net(X).detach()
    converted = openvino.convert_model(fused_rnn.restore(net), example_input=X)
    (found,) = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(X.numpy()).values()
    torch.testing.assert_close(torch.from_numpy(found), expected)
