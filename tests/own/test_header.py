"""Generated headers, compiled by themselves, against torch.func: values, gradients, second derivatives."""

import shutil

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fused_rnn import zoo
from fused_rnn.own.record import Declaration
from support import probing
from support.probing import Probed, generate, probe

if shutil.which(probing.CXX[0]) is None:
    pytest.skip(f"{probing.CXX[0]} is not installed", allow_module_level=True)

ROWS = 500
# Largest |error| / (1 + |expected|). Both sides round a few dozen operations, of numbers up to 300; a gradient of
# float32 loses what 1 - y of a saturated y loses.
LIMIT, LIMIT_WHERE_LARGE = 1e-12, 1e-10
LIMIT_OF_FLOAT32 = 1e-5


def every_function(x, r, h, c):
    i, f, g, o = x + r
    a = F.softplus(i) + F.elu(f) + F.gelu(g) + F.silu(o) + F.leaky_relu(i, 0.1) + F.logsigmoid(g)
    a = a + torch.rsqrt(h * h + 1) + torch.erf(h) + h.abs() + torch.sin(c) * torch.cos(c) + torch.clamp(c, -1, 1)
    a = a + torch.where(c > h, c, h * 2) + torch.log1p(c * c) + torch.expm1(-h * h) + torch.minimum(i, g)
    a = a + torch.reciprocal(2 + h.abs()) + torch.sign(c) * f + (c * c + 1) ** 1.5 + (h.abs() + 0.1) ** torch.tanh(i)
    b = F.gelu(o, approximate="tanh") + F.softplus(f, beta=2, threshold=3) + F.hardtanh(g) + F.mish(i) + torch.tan(h)
    return torch.tanh(a), F.relu(c + a) - torch.sqrt(1 + h * h) * torch.log(1.5 + torch.sigmoid(f)) + 0.1 * b


def rarer_functions(x, r, h, c):
    i, f = x + r
    a = torch.exp2(torch.tanh(i)) + torch.log2(1 + h * h) + torch.log10(2 + c * c) + torch.special.erfc(f) + F.selu(i)
    a = a + torch.lerp(h, c, 0.3) + torch.logaddexp(i, f) + F.relu6(f) + F.softsign(h)
    a = (
        a
        + torch.addcmul(i, h, c, value=0.5)
        + torch.addcdiv(f, h, 1 + c * c)
        + torch.square(torch.sin(i))
        + 2.0 ** h.sin()
    )
    b = i.masked_fill(f > 0, 0.25) + torch.where(torch.logical_and(h >= 0, ~(c < 0)) | (i != f), h, c) + (h > c) * f
    return torch.tanh(a), torch.sub(b, c, alpha=0.5) + torch.rsub(h, 1.0)


def tensors_of_gates(x, r, h):
    """Whole tensors of gates, indexed, sliced and stacked."""
    s = torch.sigmoid(x + r)
    first, second = torch.stack([s[1], s[0]]).unbind()
    rest = torch.cat([x[2:], r[1:2]]) * h
    return first * h + (1 - second) * torch.tanh(x[1] - r[1]) + rest[0] + rest[-1]


def uses_new_state(x, r, h, c):
    h = torch.tanh(x[0] + r[0] + c)
    c = c + h * torch.exp(-c * c)
    return h, c * h


def returns_arguments(x, h, c):
    return c, x[0] * h


def two_of_one(x, h, c):
    new = torch.tanh(x[0]) * h + c
    return new, new


def from_parameters(x, r, h, *, decay, new):
    keep = torch.exp(-0.1 - F.softplus(decay))
    return keep * h + torch.sqrt(1 - keep * keep) * (x[0] + r[0]) * new


FORMULAS = [
    (every_function, Declaration("every_function", 4, ("h", "c"))),
    (rarer_functions, Declaration("rarer_functions", 2, ("h", "c"))),
    (tensors_of_gates, Declaration("tensors_of_gates", 3, ("h",))),
    (uses_new_state, Declaration("uses_new_state", 1, ("h", "c"))),
    (returns_arguments, Declaration("returns_arguments", 1, ("h", "c"), (), False)),
    (two_of_one, Declaration("two_of_one", 1, ("h", "c"), (), False)),
    (from_parameters, Declaration("from_parameters", 1, ("h",), ("decay", "new"))),
]
OF_ZOO = [getattr(zoo, name) for name in zoo.__all__]
FORMULAS += [(c.function, Declaration(c.name, c.gates, c.states, c.params, c.recurrent)) for c in OF_ZOO]
NAMES = [declared.name for _, declared in FORMULAS]


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    found = probe(tmp_path_factory.mktemp("cells"), FORMULAS)
    return {one.declared.name: one for one in found}


def error(found, expected):
    """The largest; a NaN or an infinity must be met by the same."""
    differ = (found - expected).abs() / (1 + expected.abs())
    differ[(found == expected) | (found.isnan() & expected.isnan())] = 0
    return differ.nan_to_num(torch.inf).max().item()


def inputs_of(one: Probed, scale: float):
    values, moves = one.inputs(lambda *shape: torch.randn(shape) * scale, ROWS)
    if one.declared.name == "slstm":  # its normaliser is positive
        values[2][:, 2] = values[2][:, 2].abs() + 0.5
    return values, moves


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("name", NAMES)
def test_values_and_derivatives(probed, name, scale):
    one = probed[name]
    values, moves = inputs_of(one, scale)
    results, tangents = one.run(values, moves, wide=True)
    expected, moved = one.expected(values, moves)
    limit = LIMIT if scale == 1.0 else LIMIT_WHERE_LARGE
    assert error(one.compared(results), expected) <= limit
    assert error(one.compared(tangents), moved) <= limit


@pytest.mark.parametrize("name", NAMES)
def test_float32(probed, name):
    one = probed[name]
    values, moves = inputs_of(one, 1.0)
    found, expected = (one.run(values, moves, wide)[0] for wide in (False, True))
    assert error(found, expected) <= LIMIT_OF_FLOAT32


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_advance_repeats_every_bit(probed, name, wide):
    one = probed[name]
    for scale in (1.0, 30.0):
        forward, advance = one.advanced(one.run(*inputs_of(one, scale), wide)[0])
        assert torch.equal(forward.nan_to_num(7.0), advance.nan_to_num(7.0))


@pytest.mark.parametrize("name", [c.name for c in OF_ZOO])
def test_the_collection_is_finite_for_extreme_inputs(probed, name):
    one = probed[name]
    values, moves = inputs_of(one, 1.0)
    for k in (0, 1):
        values[k] = values[k].sign() * 1e4
    results, tangents = one.run(values, moves, wide=False)
    assert results.isfinite().all() and tangents.isfinite().all()


def test_slstm_begins_at_minus_infinity(probed):
    one = probed["slstm"]
    values, moves = inputs_of(one, 1.0)
    values[2][:, 1:3], values[2][:, 3] = 0.0, -torch.inf
    moves[2].zero_()
    results, tangents = one.run(values, moves, wide=True)
    expected, _ = one.expected(values, moves)
    compared = one.compared(results)
    assert error(compared, expected) <= LIMIT
    assert compared.isfinite().all() and tangents.isfinite().all()


def whole_gradients(one: Probed, results):
    return results[:, results.shape[1] - len(one.declared.states) :]


def test_whole_gradients_include_what_passes_inside_the_step(probed):
    one = probed["peephole_lstm"]
    values, moves = inputs_of(one, 1.0)
    results, _ = one.run(values, moves, wide=True)
    state, params, gradient = values[2], values[3], values[4]
    i, f, g, o = (values[0] + values[1]).unbind(1)
    p_i, p_f, p_o = params.unbind(1)
    c = (torch.sigmoid(f + p_f * state[:, 1]) * state[:, 1] + torch.sigmoid(i + p_i * state[:, 1]) * g.tanh()).detach()
    c.requires_grad_()
    h = torch.sigmoid(o + p_o * c) * torch.tanh(c)
    (inside,) = torch.autograd.grad(h, c, gradient[:, 0])
    expected = torch.stack([gradient[:, 0], gradient[:, 1] + inside], 1)
    assert error(whole_gradients(one, results), expected) <= LIMIT


# In the header of the peephole LSTM: something in each of its functions.
MUTATIONS = {
    "forward": ("saved[3] = sigmoid(sum_o);", "saved[3] = sigmoid(sum_o - p_o);"),
    "advance": ("saved[0] * c + saved[1] * saved[2]", "saved[0] * c - saved[1] * saved[2]"),
    "tangent": ("sum_d_c_2 * p_o", "(sum_d_c_2 - sum_d_c) * p_o"),
    "backward, a gate": ("dx[2] = dr[2] = d_c_whole * sigmoid_i", "dx[2] = dr[2] = d_c_whole * sigmoid_f"),
    "backward, a state": ("dstate[1] = sum_d_i_2;", "dstate[1] = sum_d_i_2 - d_f * p_f;"),
    "backward, a parameter": ("dparams[2] = d_o * c_next;", "dparams[2] = d_o * c;"),
    "backward, a derivative": ("T(1) - tanh_c_next * tanh_c_next", "T(1) - tanh_c_next"),
}


def test_a_wrong_header_is_detected(tmp_path):
    formula = next(formula for formula in FORMULAS if formula[1].name == "peephole_lstm")
    right = zoo.peephole_lstm.header
    assert [mutation for mutation, (old, _) in MUTATIONS.items() if right.count(old) != 1] == []
    texts = [right.replace(*change) for change in MUTATIONS.values()]
    for mutation, one in zip(MUTATIONS, probe(tmp_path, [formula] * len(texts), texts), strict=True):
        values, moves = inputs_of(one, 1.0)
        results, tangents = one.run(values, moves, wide=True)
        expected, moved = one.expected(values, moves)
        errors = [error(one.compared(results), expected), error(one.compared(tangents), moved)]
        assert max(errors) > 1e-3 > LIMIT, mutation


# ---- what a header says ----------------------------------------------------------------------------------------------


def constants(text):
    lines = [line.split("static constexpr ")[1] for line in text.splitlines() if "static constexpr" in line]
    return {name: value for name, value in (line.split(" ", 1)[1].rstrip(";").split(" = ") for line in lines)}


@pytest.mark.parametrize(
    ("name", "saved", "shared", "reads_h"),
    [
        ("peephole_lstm", 4, 4, False),
        ("cifg_lstm", 3, 3, False),
        ("mgu", 3, 1, True),
        ("ugrnn", 2, 2, True),
        ("indrnn", 1, 1, True),
        ("qrnn", 3, 3, False),
        ("min_gru", 2, 2, True),
        ("slstm", 4, 4, False),
        ("two_of_one", 1, 1, True),
    ],
)
def test_traits(probed, name, saved, shared, reads_h):
    found = constants(probed[name].text)
    expected = {"kSaved": saved, "kSharedGates": shared, "kReadsH": str(reads_h).lower()}
    assert {trait: found[trait] for trait in expected} == {trait: str(value) for trait, value in expected.items()}


def test_initial_states_are_in_the_header():
    assert "kInitial[kStates] = {0, 0, 0, -HUGE_VAL};" in zoo.slstm.header


def test_a_header_has_the_users_names():
    text = zoo.peephole_lstm.header
    assert "const T sigmoid_i = sigmoid(i + p_i * c);" in text
    assert "const T c_next = sigmoid_f * c + sigmoid_i * tanh_g;" in text


def test_names_that_cpp_keeps_are_changed():
    def formula(x, r, new, *, double, T):
        int, für, __a__ = x + r
        exp = torch.exp(int) * für * new
        return exp * double + T * __a__ + torch.tanh(exp)

    text = generate(formula, Declaration("class", 3, ("new",), ("double", "T")))
    assert text.isascii() and "für" not in text
    for word in ("new", "double", "T", "exp", "int"):
        assert f"const T {word} =" not in text and f", {word} =" not in text


def test_generation_is_the_same_every_time():
    cell = zoo.slstm
    assert generate(cell.function, cell._declared, cell.initial) == cell.header


# ---- random formulas -------------------------------------------------------------------------------------------------

LEAVES = ("x0", "x1", "r0", "r1", "h", "c", "p", 0.5, -2.0)
ONE = {
    "neg": lambda a: -a,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": F.elu,
    "abs": torch.abs,
    "sin": torch.sin,
    "erf": torch.erf,
    "exp": lambda a: torch.exp(torch.tanh(a)),
    "expm1": lambda a: torch.expm1(torch.sin(a)),
    "log": lambda a: torch.log(a * a + 0.5),
    "log1p": lambda a: torch.log1p(torch.sigmoid(a)),
    "sqrt": lambda a: torch.sqrt(a * a + 0.25),
    "rsqrt": lambda a: torch.rsqrt(a * a + 0.25),
    "square": lambda a: torch.clamp(a, -4, 4) ** 2,
    "sign": torch.sign,
}
TWO = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": lambda a, b: a * torch.tanh(b),
    "div": lambda a, b: a / (1 + b * b),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "where": lambda a, b: torch.where(a > b, a, 0.5 * b),
    "pow": lambda a, b: torch.pow(a.abs() + 0.5, torch.tanh(b)),
}
TREES = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(sorted(ONE)), inner), st.tuples(st.sampled_from(sorted(TWO)), inner, inner)
    ),
    max_leaves=12,
)


def formula_of(first, second):
    def formula(x, r, h, c, *, p):
        known = {"x0": x[0], "x1": x[1], "r0": r[0], "r1": r[1], "h": h, "c": c, "p": p}

        def value(tree):
            if isinstance(tree, float):
                return torch.full_like(h, tree)
            if isinstance(tree, str):
                return known[tree]
            return (ONE | TWO)[tree[0]](*map(value, tree[1:]))

        return value(first), value(second) + 0.5 * h

    return formula


@settings(max_examples=3, phases=[Phase.generate])  # each example is compiled
@given(st.lists(st.tuples(TREES, TREES), min_size=12, max_size=12))
def test_random_formulas(tmp_path_factory, trees):
    declared = Declaration("random", 2, ("h", "c"), ("p",))
    for one in probe(tmp_path_factory.mktemp("random"), [(formula_of(*pair), declared) for pair in trees]):
        values, moves = one.inputs(lambda *shape: torch.randn(shape), 100)
        results, tangents = one.run(values, moves, wide=True)
        expected, moved = one.expected(values, moves)
        assert error(one.compared(results), expected) <= LIMIT_WHERE_LARGE, one.text
        assert error(one.compared(tangents), moved) <= LIMIT_WHERE_LARGE, one.text
        forward, advance = one.advanced(results)
        assert torch.equal(forward, advance), one.text
