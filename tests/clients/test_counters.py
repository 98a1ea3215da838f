"""What counts the operations of a model, by the classes of its modules or by its operators."""

import pytest
import torch
from torch import nn

import fused_rnn
from support.clients import client, quiet
from support.processes import run_python

pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.randn(2, 5, 16)
ROWS = 2 * 5


class Net(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.rnn = getattr(nn, name)(16, 64, 2, batch_first=True)
        self.cell = getattr(nn, f"{name}Cell")(64, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        state = self.cell(self.rnn(x)[0][:, -1])
        return self.head(state[0] if isinstance(state, tuple) else state)


def by_thop(model):
    with quiet():
        return client("thop").profile(model, (X,), verbose=False)


def by_ptflops(model, backend="pytorch"):
    with quiet():
        return client("ptflops").get_model_complexity_info(
            model, (5, 16), as_strings=False, print_per_layer_stat=False, verbose=False, backend=backend
        )


def by_calflops(model):
    with quiet():
        return client("calflops").calculate_flops(model, args=[X], print_results=False, output_as_string=False)


def by_fvcore(model):
    analysis = client("fvcore.nn").FlopCountAnalysis(model, X)
    analysis.unsupported_ops_warnings(False)
    return analysis.total(), analysis.unsupported_ops()


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("count", [by_thop, by_ptflops, by_calflops])
def test_by_class_ours_count_as_torchs(count, name):
    expected = count(Net(name))
    assert expected[0] > 50_000
    assert count(fused_rnn.swap(Net(name))) == expected


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_by_operator_the_products_are_counted(name):
    """Multiplications with their additions. Of torch.nn's own layers neither counts the products."""
    model = fused_rnn.swap(Net(name))
    layers = sum(weight.numel() for weight in model.rnn.parameters() if weight.dim() == 2)
    others = sum(
        weight.numel() for module in (model.cell, model.head) for weight in module.parameters() if weight.dim() > 1
    )
    assert by_fvcore(model) == (ROWS * layers + 2 * others, {})
    assert by_ptflops(model, "aten")[0] in range(5 * layers + others, 5 * layers + others + 100)  # and biases
    assert by_fvcore(Net(name))[0] < ROWS * layers


def test_fvcore_counts_projections_and_ids():
    layer, fvcore = fused_rnn.LSTM(6, 4, proj_size=2), client("fvcore.nn")
    assert fvcore.FlopCountAnalysis(layer, torch.randn(5, 3, 6)).total() == 15 * (16 * (6 + 2) + 4 * 2)
    assert fvcore.FlopCountAnalysis(layer, torch.randint(6, (5, 3))).total() == 15 * (16 * 2 + 4 * 2)


LATER = """
import warnings; warnings.simplefilter("ignore")
import torch, fused_rnn
from torch import nn
theirs = nn.LSTM(3, 4)
with fused_rnn.install():
    import thop
    import opacus.validators
    ours = nn.LSTM(3, 4)
x = torch.randn(5, 2, 3)
counts = [thop.profile(layer, (x,), verbose=False)[0] for layer in (ours, theirs)]
assert counts[0] == counts[1] > 0, counts
validate = opacus.validators.ModuleValidator.validate
assert len(validate(theirs)) == 1 and not validate(ours)
"""


def test_packages_that_are_imported_while_ours_are_installed():
    client("thop"), client("opacus")
    run_python("-c", LATER)
