"""bfloat16 products (avx512_bf16, amx, neon_bf16) against the same numbers as floats (avx512, baseline), and
split-float products (amx) against float64.

A process chooses its instruction set once, so each one runs in a process of its own.
"""

import os
import platform
import subprocess
import sys
from functools import partial

import pytest
import torch

import fused_rnn

KINDS = {
    "lstm": fused_rnn.LSTM,
    "gru": fused_rnn.GRU,
    "rnn tanh": fused_rnn.RNN,
    "rnn relu": partial(fused_rnn.RNN, nonlinearity="relu"),
}
PLAIN, OWN = ("baseline", ("neon_bf16",)) if platform.machine() == "aarch64" else ("avx512", ("avx512_bf16", "amx"))
# Sizes at, below and above those of tiles (16 rows, depth 32, 16 columns) and of pairs.
SIZES = {  # T, B, I, H
    "ones": (1, 1, 1, 1),
    "one step": (1, 5, 32, 16),
    "small": (5, 3, 7, 5),
    "one row": (6, 1, 33, 31),
    "whole tiles": (4, 32, 64, 48),
    "odd": (7, 17, 35, 47),
    "wide": (3, 21, 530, 190),
    "deep": (3, 16, 600, 64),
    "deep and odd": (1, 17, 600, 128),
    "many rows": (3, 150, 20, 64),
    "shared units": (3, 7, 33, 144),
}


def results(kind, T, B, inputs, H, options, variant, dtype):
    """Outputs, states and gradients of a layer and a sequence drawn alike in every process."""
    random = torch.Generator().manual_seed(T + B + inputs + H)
    layer = KINDS[kind](inputs, H, dtype=dtype, **options)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=random) / max(inputs, H) ** 0.5)
    input = torch.randn(T, B, inputs, generator=random).to(dtype)
    masks = {}
    if variant == "lengths and resets":
        masks["lengths"] = torch.randint(T + 1, (B,), generator=random)
        masks["reset_mask"] = torch.rand(T, B, generator=random) < 0.2
        input[torch.arange(T)[:, None] >= masks["lengths"]] = torch.nan  # never read
    given = input.requires_grad_()
    if variant == "packed":
        lengths = torch.randint(1, T + 1, (B,), generator=random)
        given = torch.nn.utils.rnn.pack_padded_sequence(input, lengths, enforce_sorted=False)
    output, states = layer(given, **masks)
    output = output.data if variant == "packed" else output
    outputs = [output, *(states if isinstance(states, tuple) else (states,))]
    grads = [torch.randn(t.shape, generator=random).to(dtype) for t in outputs]
    gradients = torch.autograd.grad(outputs, [input, *layer.parameters()], grads)
    if masks:
        gradients = [gradients[0].nan_to_num(), *gradients[1:]]
    with torch.no_grad():
        frozen = fused_rnn.freeze(layer)(given, **masks)[0]
    frozen = frozen.data if variant == "packed" else frozen
    return [t.detach().double() for t in (*outputs, *gradients, frozen)]


def ensemble(dtype):
    """An ensemble's gradients under vmap, and per-sample gradients."""
    random = torch.Generator().manual_seed(0)
    layer = fused_rnn.GRU(35, 20, dtype=dtype)
    input = torch.randn(4, 5, 35, generator=random).to(dtype)
    weights = {name: torch.randn(3, *w.shape, generator=random).to(dtype) / 6 for name, w in layer.named_parameters()}

    def loss(weights, input):
        output = torch.func.functional_call(layer, weights, (input,))[0]
        return (output.float() if dtype == torch.bfloat16 else output).square().sum()

    members = torch.func.vmap(torch.func.grad(loss), (0, None))(weights, input)
    one = {name: w[0] for name, w in weights.items()}
    rows = torch.func.vmap(torch.func.grad(loss), (None, 1))(one, input)
    return [t.double() for t in (*members.values(), *rows.values())]


def everything(dtype):
    found = {}
    for kind in KINDS:
        for name, sizes in SIZES.items():
            options = {"bidirectional": name in ("odd", "small"), "num_layers": 2 if name == "small" else 1}
            for variant in ("padded", "packed", "lengths and resets"):
                found[kind, name, variant] = results(kind, *sizes, options, variant, dtype)
    for name in ("odd", "whole tiles", "one row", "wide"):
        for proj_size in (1, 15):
            found["lstm", name, f"projected to {proj_size}"] = results(
                "lstm", *SIZES[name], {"proj_size": proj_size}, "lengths and resets", dtype
            )
    found["ensemble"] = ensemble(dtype)
    return found


def computed(isa, folder, dtype="bfloat16"):
    path = folder / f"{isa} {dtype}.pt"
    script = (
        "import sys, torch, test_bfloat16 as t; t.fused_rnn.ops.library.fill_memory(True);"
        "isa = t.fused_rnn.info()['CPU instruction set for bfloat16'];"
        f"torch.save((isa, t.everything(torch.{dtype})), sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        cwd=os.path.dirname(__file__),
        env=os.environ | {"FUSED_RNN_ISA": isa, "PYTHONPATH": os.path.dirname(os.path.dirname(fused_rnn.__file__))},
        capture_output=True,
        text=True,
        check=False,
    )
    unsupported = "is not supported by this processor or build"
    if unsupported in done.stderr:
        pytest.skip(f"{isa} {unsupported}")
    assert done.returncode == 0, done.stderr
    used, found = torch.load(path)
    assert used == isa
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return computed(PLAIN, tmp_path_factory.mktemp("bfloat16"))


@pytest.mark.parametrize("isa", OWN)
def test_products_of_bfloat16(isa, plain, tmp_path):
    found = computed(isa, tmp_path)
    assert found.keys() == plain.keys()
    differs = False
    for case, expected in plain.items():
        largest = max(theirs.norm() for theirs in expected)
        for ours, theirs in zip(found[case], expected, strict=True):
            assert ours.isfinite().all(), case
            # h and the gates' gradients are rounded to 8 bits once a step, and may cancel in a sum.
            assert (ours - theirs).norm() <= 2e-2 * theirs.norm() + 5e-3 * largest, case
            differs = differs or not torch.equal(ours, theirs)
    assert differs, "bfloat16 products were not used"


def test_split_floats(tmp_path):
    """As close to float64 as float products."""
    found = computed("amx", tmp_path, "float32")
    plain, exact = (computed(PLAIN, tmp_path, dtype) for dtype in ("float32", "float64"))
    differs = False
    for case, expected in exact.items():
        largest = max(theirs.norm() for theirs in expected)
        for ours, floats, theirs in zip(found[case], plain[case], expected, strict=True):
            allowed = 2 * (floats - theirs).norm() + 5e-7 * theirs.norm() + 1e-7 * largest
            assert (ours - theirs).norm() <= allowed, case
            differs = differs or not torch.equal(ours, floats)
    assert differs, "split-float products were not used"
