"""``spectrum`` of the recurrent weights, and ``gate_statistics`` of a call."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import pad_packed_sequence

import fused_rnn
from support.modules import DEEP, F64, every_layer, make_input, make_packed, make_pair, make_states

# ---- spectrum --------------------------------------------------------------------------------------------------------

NAMES = {
    "lstm": ("input", "forget", "cell", "output"),
    "gru": ("reset", "update", "new"),
    "rnn": ("h",),
}


@every_layer
def test_blocks_of_every_layer_and_direction(kind):
    for module in make_pair(kind, **DEEP):
        found = fused_rnn.spectrum(module).blocks
        names, expected = [], []
        for suffix in ("l0", "l0_reverse", "l1", "l1_reverse"):
            gates = NAMES[kind.split("_")[0]]
            w_hh = getattr(module, f"weight_hh_{suffix}").detach()
            names += [f"{suffix.replace('_', ' ')} {gate}" for gate in gates]
            w_hr = getattr(module, f"weight_hr_{suffix}").detach() if module.proj_size else torch.eye(4, dtype=F64)
            expected += [(w_hh[4 * i : 4 * i + 4], w_hr) for i in range(len(gates))]
        assert [block.name for block in found] == names
        for block, (rows, w_hr) in zip(found, expected, strict=True):
            squares = torch.linalg.eigvalsh(rows.T @ rows).flip(0)  # of singular values
            assert block.singular_values == pytest.approx(squares.clamp(min=0).sqrt().tolist(), abs=1e-7)
            powers = torch.linalg.matrix_power(w_hr @ rows / block.spectral_radius, 256)
            assert powers.norm().item() ** (1 / 256) == pytest.approx(1, rel=0.02), "Gelfand's formula"
            assert (block.bound is None) == (not kind.startswith("rnn"))


def test_cells_and_dtypes():
    cell = fused_rnn.GRUCell(3, 4, dtype=torch.bfloat16)
    assert [block.name for block in fused_rnn.spectrum(cell).blocks] == list(NAMES["gru"])
    assert len(fused_rnn.spectrum(nn.LSTMCell(3, 4)).blocks) == 4


@pytest.mark.parametrize(
    ("scale", "says"), [(0.5, "must vanish: a step leaves at most 0.5"), (2, "stretch a gradient 2")]
)
def test_bound_of_the_vanilla_network(scale, says):
    module = fused_rnn.RNN(2, 3)
    with torch.no_grad():
        module.weight_hh_l0.copy_(scale * torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]))
    found = fused_rnn.spectrum(module)
    (block,) = found.blocks
    assert says in block.bound and says in str(found)
    assert block.singular_values == pytest.approx([scale] * 3) and block.spectral_radius == pytest.approx(scale)
    assert sorted(z.imag for z in block.eigenvalues) == pytest.approx([-scale, 0, scale])


def test_a_bound_below_one_holds():
    """Gradients shrink at least as fast as the largest singular value says."""
    module = fused_rnn.RNN(2, 8, dtype=F64)
    with torch.no_grad():
        module.weight_hh_l0.mul_(0.9 / torch.linalg.matrix_norm(module.weight_hh_l0, 2))
    largest = fused_rnn.spectrum(module).blocks[0].singular_values[0]
    with fused_rnn.gradient_flow(module) as flow:
        module(torch.randn(30, 4, 2, dtype=F64))[0].sum().backward()
    ((_, norms),) = flow.norms()
    assert largest == pytest.approx(0.9)
    assert (norms[0, 0, :-1] <= largest * norms[0, 0, 1:]).all()


def test_spectrum_refuses():
    with pytest.raises(TypeError, match="got Linear"):
        fused_rnn.spectrum(nn.Linear(2, 3))
    module = fused_rnn.RNN(2, 3)
    with torch.no_grad():
        module.weight_hh_l0[0, 0] = math.nan
    with pytest.raises(ValueError, match="l0 h are not all finite"):
        fused_rnn.spectrum(module)


def test_spectrum_told_and_drawn(tmp_path):
    found = fused_rnn.spectrum(fused_rnn.LSTM(3, 4, **DEEP))
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert len(told["blocks"]) == 16 and len(told["blocks"][0]["singular_values"]) == 4
    assert all(block["name"] in str(found) for block in told["blocks"])
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert "l1 reverse output" in found.plot(tmp_path / "a.svg").read_text()
    assert found.plot(str(tmp_path / "a.png")).stat().st_size > 1000


# ---- gate_statistics -------------------------------------------------------------------------------------------------


def gates_by_loop(module, input, hx, lengths, reset_mask):
    """{layer, direction and gate: its values in every active step}, and norms of the state by step."""
    kind, hidden = module.mode.split("_")[0].lower(), module.hidden_size
    steps, batch, _ = input.shape
    lengths = [steps] * batch if lengths is None else list(lengths)
    hx = hx if isinstance(hx, tuple) else (hx,)
    values, norms, index = {}, {}, 0
    for k in range(module.num_layers):
        outputs = []
        for d in range(1 + module.bidirectional):
            suffix, name = f"l{k}" + "_reverse" * d, f"l{k}" + " reverse" * d
            w_ih, w_hh, b_ih, b_hh = (
                getattr(module, f"{n}_{suffix}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            output = torch.zeros(steps, batch, module.proj_size or hidden, dtype=input.dtype)
            taken = [[] for _ in range(steps)]
            for b in range(batch):
                h, c = hx[0][index, b], hx[-1][index, b]
                own = range(int(lengths[b]))
                for t in reversed(own) if d else own:
                    before = t + 1 if d else t
                    if reset_mask is not None and before in own and reset_mask[before, b]:
                        h, c = torch.zeros_like(h), torch.zeros_like(c)
                    x, r = linear(input[t, b], w_ih, b_ih).split(hidden), linear(h, w_hh, b_hh).split(hidden)
                    if kind == "lstm":
                        i, f, g, o = (a + b for a, b in zip(x, r, strict=True))
                        gates = [i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()]
                        c = gates[1] * c + gates[0] * gates[2]
                        h, state = gates[3] * c.tanh(), c
                        if module.proj_size:
                            h = linear(h, getattr(module, f"weight_hr_{suffix}"))
                    elif kind == "gru":
                        reset, z = (x[0] + r[0]).sigmoid(), (x[1] + r[1]).sigmoid()
                        gates = [reset, z, (x[2] + reset * r[2]).tanh()]
                        h = state = (1 - z) * gates[2] + z * h
                    else:
                        h = state = (x[0] + r[0]).tanh() if module.mode == "RNN_TANH" else (x[0] + r[0]).relu()
                        gates = [h]
                    output[t, b] = h
                    taken[t].append(state.norm().item())
                    for gate, value in zip(NAMES[kind], gates, strict=True):
                        values.setdefault(f"{name} {gate}", []).append(value)
            norms[name] = [sum(found) / len(found) if found else math.nan for found in taken]
            outputs.append(output)
            index += 1
        input = torch.cat(outputs, -1)
    return {name: torch.cat(found) for name, found in values.items()}, norms


MASKS = {
    "padded": {},
    "lengths": {"lengths": torch.tensor([4, 6, 0])},
    "resets": {"reset_mask": torch.rand(6, 3, generator=torch.Generator().manual_seed(1)) < 0.3},
}
MASKS["both"] = MASKS["lengths"] | MASKS["resets"]


def assert_statistics(found, module, values, norms, margin):
    assert [gate.name for gate in found.gates] == list(values)
    for gate in found.gates:
        of_gate = values[gate.name]
        assert gate.mean == pytest.approx(of_gate.mean().item(), abs=1e-9)
        ends = (-1, 1) if gate.name.split()[-1] in ("cell", "new", "h") else (0, 1)
        reach = margin * (ends[1] - ends[0])
        low, high = of_gate <= ends[0] + reach, of_gate >= ends[1] - reach
        if module.mode == "RNN_RELU":
            low, high = of_gate == 0, torch.zeros(1)
        assert (gate.low, gate.high) == pytest.approx((low.double().mean().item(), high.double().mean().item()))
    assert found.state_norms.keys() == norms.keys()
    for name, expected in norms.items():
        assert found.state_norms[name] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("masks", MASKS)
@every_layer
def test_gates_are_those_of_a_loop(kind, masks):
    module, _ = make_pair(kind, **DEEP)
    input, hx = make_input(module, 6, 3), make_states(module, 3)
    options = {"lengths": None, "reset_mask": None} | MASKS[masks]
    with torch.no_grad():
        values, norms = gates_by_loop(module, input, hx, **options)
    found = fused_rnn.gate_statistics(module, input, hx, **options, margin=0.3)
    assert_statistics(found, module, values, norms, 0.3)
    assert any(gate.low > 0 for gate in found.gates)
    json.dumps(found.to_dict(), allow_nan=False)
    assert all(name in str(found) for name in values)


@pytest.mark.parametrize("kind", ["lstm_projected", "gru"])
def test_other_layouts_of_the_input(kind):
    module, _ = make_pair(kind, **DEEP)
    packed = make_packed([2, 5, 3])
    padded, lengths = pad_packed_sequence(packed)
    found = fused_rnn.gate_statistics(module, packed)
    expected = fused_rnn.gate_statistics(module, padded, lengths=lengths)
    assert found == expected
    module.batch_first = True
    assert fused_rnn.gate_statistics(module, padded.transpose(0, 1), lengths=lengths) == expected
    alone = fused_rnn.gate_statistics(module, padded[:, 1])
    assert alone == fused_rnn.gate_statistics(module, padded[:, 1].unsqueeze(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gates_of_narrow_dtypes(dtype):
    module, _ = make_pair("lstm_projected", dtype=dtype)
    input = make_input(module, dtype=dtype)
    found = fused_rnn.gate_statistics(module, input)
    expected = fused_rnn.gate_statistics(module.double(), input.double())
    limit = fused_rnn.tools.verify.TOLERANCE[dtype]
    for one, other in zip(found.gates, expected.gates, strict=True):
        assert one.mean == pytest.approx(other.mean, rel=limit, abs=limit)
    assert found.state_norms["l0"] == pytest.approx(expected.state_norms["l0"], rel=limit)


def test_saturated_gates():
    module = fused_rnn.LSTM(3, 4)
    with torch.no_grad():
        module.bias_ih_l0[:4] = 100.0
        module.bias_ih_l0[4:12] = -100.0
    found = {gate.name: gate for gate in fused_rnn.gate_statistics(module, torch.randn(5, 2, 3)).gates}
    assert (found["l0 input"].low, found["l0 input"].high) == (0, 1)
    assert (found["l0 forget"].low, found["l0 forget"].high) == (1, 0)
    assert (found["l0 cell"].low, found["l0 cell"].mean) == (1, -1)
    assert (found["l0 output"].low, found["l0 output"].high) == (0, 0)


def test_statistics_refuse():
    input = torch.randn(5, 2, 3)
    for module in (nn.LSTM(3, 4), fused_rnn.LSTMCell(3, 4)):
        with pytest.raises(TypeError, match=f"got {type(module).__name__}"):
            fused_rnn.gate_statistics(module, input)
    module = fused_rnn.LSTM(3, 4)
    for margin in (0, 0.5):
        with pytest.raises(ValueError, match="margin must lie between"):
            fused_rnn.gate_statistics(module, input, margin=margin)
    with pytest.raises(ValueError, match="has its lengths already"):
        fused_rnn.gate_statistics(module, make_packed([2, 1], dtype=torch.float32), lengths=[2, 1])
    with pytest.raises(RuntimeError, match="Expected 3, got 4"):
        fused_rnn.gate_statistics(module, torch.randn(5, 2, 4))
