"""What refuses ``zoneout``, and what is said of it."""

import copy

import pytest
import torch

import fused_rnn
from fused_rnn.ops import library
from support.loop_options import call, run_loop
from support.modules import F64, through_file
from support.zoneout import every_class, in_both, make, masks


@pytest.mark.parametrize("value", [1, -0.1, float("nan"), True, "0.5", None], ids=str)
@every_class
def test_values_that_are_no_probabilities(kind, value):
    with pytest.raises(ValueError, match=r"zoneout must be a probability, at least 0 and less than 1, got"):
        make(kind, zoneout=value)


def test_pairs_are_for_lstm_which_must_not_be_projected():
    with pytest.raises(ValueError, match=r"zoneout must be a probability, got \(0.1, 0.2\)"):
        fused_rnn.GRU(3, 5, zoneout=(0.1, 0.2))
    with pytest.raises(
        ValueError, match=r"zoneout must be a probability or two of them, for h and for c, got \(0.1,\)"
    ):
        fused_rnn.LSTM(3, 5, zoneout=(0.1,))
    with pytest.raises(ValueError, match=r"less than 1, got 1.5"):
        fused_rnn.LSTM(3, 5, zoneout=(0.1, 1.5))
    with pytest.raises(ValueError, match=r"zoneout=0.1 and proj_size=2 exclude each other"):
        fused_rnn.LSTM(3, 5, zoneout=0.1, proj_size=2)
    weights = list(fused_rnn.LSTM(3, 5, proj_size=2).parameters())
    with pytest.raises(ValueError, match=r"zoneout=\(0.1, 0.1\) and proj_size=2 exclude each other"):
        fused_rnn.functional.lstm(torch.randn(4, 2, 3), None, weights, zoneout=0.1)


def test_wrong_masks_for_the_operator():
    weights = [torch.randn(9, 2), torch.randn(9, 3)]

    def run(**options):
        none = (None, None, weights, None, None, None, False, False)
        return torch.ops.fused_rnn.layer_forward(1, False, False, torch.randn(4, 2, 2), *none, **options)

    mask = torch.zeros(4, 2, 3, dtype=torch.bool)
    assert run(zoneout_mask=mask)[0].shape == (4, 2, 3)
    for wrong in (mask[:3], mask.float()):
        with pytest.raises(RuntimeError, match="zoneout_mask must be"):
            run(zoneout_mask=wrong)
    with pytest.raises(RuntimeError, match=r"zoneout must lie in \[0, 1\), got 1.5"):
        run(zoneout_h=1.5)
    with pytest.raises(RuntimeError, match="a mask or probabilities, not both"):
        run(zoneout_mask=mask, zoneout_h=0.5)


@pytest.mark.filterwarnings("ignore:Exporting a model while it is in training mode")
@in_both
def test_frozen_layers_streams_torchscript_and_onnx_refuse_it(training):
    layer, x = make("gru", dtype=torch.float32).train(training), torch.randn(4, 2, 3)
    with pytest.raises(NotImplementedError, match=r"torch.jit.script has no zoneout=0.4"):
        torch.jit.script(layer)
    for packs in (fused_rnn.freeze, fused_rnn.Stream, lambda model: fused_rnn.freeze(model, weights="int8")):
        with pytest.raises(NotImplementedError, match=r"packed weights have no zoneout=0.4"):
            packs(layer)
    with pytest.warns(UserWarning, match=r"restore passed over the model itself: torch.nn has no zoneout=0.4"):
        fused_rnn.restore(layer)
    pytest.importorskip("onnxscript")
    with pytest.raises(torch.onnx.OnnxExporterError, match="has no zoneout"):
        torch.onnx.export(layer, (x,), dynamo=True)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch
def test_onnx_refuses_it_of_a_function():
    pytest.importorskip("onnxscript")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = torch.nn.GRU(3, 5)

        def forward(self, x):
            return fused_rnn.functional.gru(x, None, list(self.gru.parameters()), zoneout=0.1)[0]

    with pytest.raises(torch.onnx.OnnxExporterError, match="ONNX's GRU node has no zoneout"):
        torch.onnx.export(Model().eval(), (torch.randn(4, 2, 3),), dynamo=True)


def test_print_pickle_and_copy():
    layer = make("lstm")
    assert repr(layer) == "fused_rnn.LSTM(3, 5, zoneout=(0.3, 0.6))"
    assert through_file(layer).zoneout == copy.deepcopy(layer).zoneout == (0.3, 0.6)


@in_both
def test_explain_names_it_and_draws_nothing(training):
    layer, x = make("gru").train(training), torch.randn(4, 2, 3, dtype=F64)
    state = torch.get_rng_state()
    assert "zoneout=0.4: applied inside the kernel" in fused_rnn.explain(layer, x).reason
    found = fused_rnn.explain(layer, x, engine="torch")
    assert found.engine == "fused" and "Not torch.nn's kernels, as there is zoneout" in found.reason
    assert torch.equal(state, torch.get_rng_state())
    assert fused_rnn.explain(layer, x, gpu="H200").engine == ("stepwise" if library.cuda_archs() else "none")
    with fused_rnn.engine("torch"):
        torch.testing.assert_close(call(layer, x)[0], run_loop(layer, x, zoneouts=masks(layer, 4, 2))[0])
