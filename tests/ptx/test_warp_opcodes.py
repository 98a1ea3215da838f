"""Opcodes that a warp's lanes execute together: shuffles, votes and matrix products, against their definitions."""

import numpy as np
import pytest
import torch

from ptx.kernels import apply, kernel

LANES = np.arange(32)


# ---- shuffles and votes ----------------------------------------------------------------------------------------------


def source_lane(how, lane, b, width):
    """CUDA's __shfl_*_sync: the lane that a value comes from, and whether that is of the segment of `width` lanes."""
    first = lane // width * width
    lane_of = {"idx": first + b % width, "bfly": lane ^ b, "up": lane - b, "down": lane + b}[how]
    inside = lane_of >= first if how == "up" else lane_of < first + width
    return (lane_of, True) if inside else (lane, False)


@pytest.mark.parametrize("how", ["idx", "bfly", "up", "down"])
@pytest.mark.parametrize("width", [32, 16, 8, 1])
def test_shuffle(machine, how, width):
    values = np.random.default_rng(1).integers(0, 2**32, 32).astype(np.uint32)
    bound = (32 - width) << 8 | (0 if how == "up" else 31)
    for b in (0, 1, 3, 8, 31):
        statement = f"shfl.sync.{how}.b32 %d0|%d1, %s0, {b}, {bound}, -1;"
        actual, inside = apply(machine, statement, [np.uint32, bool], values)
        expected = [source_lane(how, lane, b, width) for lane in range(32)]
        assert inside.tolist() == [is_inside for _, is_inside in expected]
        assert actual.tolist() == [values[lane] for lane, _ in expected]


def test_shuffle_by_a_register_in_part_of_a_warp(machine):
    values = np.random.default_rng(2).integers(0, 2**32, 32).astype(np.uint32)
    to = np.random.default_rng(3).integers(0, 16, 32).astype(np.uint32) * 2  # even lanes
    even = LANES % 2 == 0
    statement = "mov.b32 %d0, 0;\n\t@%s2 shfl.sync.idx.b32 %d0, %s0, %s1, 31, 0x55555555;"
    with pytest.raises(RuntimeError, match="not uniform"):
        apply(machine, statement, [np.uint32], values, to, even)
    branching = "mov.b32 %d0, 0;\n\t@!%s2 bra OTHER;\n\tshfl.sync.idx.b32 %d0, %s0, %s1, 31, 0x55555555;\nOTHER:"
    (actual,) = apply(machine, branching, [np.uint32], values, to, even)
    assert (actual == np.where(even, values[to], 0)).all()
    with pytest.raises(RuntimeError, match="lane 1, which takes no part"):
        apply(machine, branching, [np.uint32], values, np.ones_like(to), even)


VOTES = {
    "any": lambda votes: votes.any(),
    "all": lambda votes: votes.all(),
    "uni": lambda votes: votes.all() or not votes.any(),
}


@pytest.mark.parametrize("negated", ["", "!"])
@pytest.mark.parametrize("votes", [LANES < 0, LANES >= 0, LANES == 17, LANES != 5, LANES % 3 == 1])
def test_votes(machine, votes, negated):
    said = ~votes if negated else votes
    for how, decide in VOTES.items():
        (actual,) = apply(machine, f"vote.sync.{how}.pred %d0, {negated}%s0, -1;", [bool], votes)
        assert (actual == decide(said)).all(), how
    (ballot,) = apply(machine, f"vote.sync.ballot.b32 %d0, {negated}%s0, -1;", [np.uint32], votes)
    assert (ballot == np.packbits(said, bitorder="little").view(np.uint32)).all()


def test_votes_count_only_members(machine):
    votes = LANES == 17
    low = LANES < 16
    statement = """mov.b32 %d0, 77;
    setp.ne.s32 %d1, 0, 0;
    @!%s1 bra OTHER;
    vote.sync.ballot.b32 %d0, %s0, 0xffff;
    vote.sync.any.pred %d1, %s0, 0xffff;
    activemask.b32 %d2;
OTHER:"""
    ballot, any_, active = apply(machine, statement, [np.uint32, bool, np.uint32], votes, low)
    assert (ballot[:16] == 0).all() and (ballot[16:] == 77).all()
    assert not any_.any()
    assert (active[:16] & ~np.uint32(0xFFFF) == 0).all()
    assert all(mask >> lane & 1 for lane, mask in enumerate(active[:16]))


# ---- matrix products -------------------------------------------------------------------------------------------------

FORMATS = {"bf16": (16, torch.bfloat16), "f16": (16, torch.float16), "tf32": (8, torch.float32)}


def fragments(a, b, c):
    """The registers of each lane, [32, 4], [32, 2], [32, 4]; of 16 bits a register holds two numbers (9.7.14.5)."""
    g, q = LANES // 4, LANES % 4
    if a.dtype == torch.float32:
        of_a = torch.stack([a[g, q], a[g + 8, q], a[g, q + 4], a[g + 8, q + 4]], 1)
        of_b = torch.stack([b[q, g], b[q + 4, g]], 1)
    else:
        rows = [(g, 2 * q), (g + 8, 2 * q), (g, 2 * q + 8), (g + 8, 2 * q + 8)]
        of_a = torch.stack([torch.stack([a[row, k], a[row, k + 1]], 1) for row, k in rows], 1)
        of_b = torch.stack([torch.stack([b[k, g], b[k + 1, g]], 1) for k in (2 * q, 2 * q + 8)], 1)
    of_c = torch.stack([c[g, 2 * q], c[g, 2 * q + 1], c[g + 8, 2 * q], c[g + 8, 2 * q + 1]], 1)
    return of_a, of_b, of_c


def multiply(machine, form, a, b, c):
    depth, _ = FORMATS[form]
    arguments = [part.contiguous() for part in fragments(a, b, c)]
    body = "".join(
        f"\tmad.wide.u32 %at, %tid, {4 * count}, %arg{k};\n\tld.global.v{count}.b32 {{{names}}}, [%at];\n"
        for k, (count, names) in enumerate([(4, "%a0, %a1, %a2, %a3"), (2, "%b0, %b1"), (4, "%c0, %c1, %c2, %c3")])
    )
    body += (
        f"\tmma.sync.aligned.m16n8k{depth}.row.col.f32.{form}.{form}.f32 "
        "{%c0, %c1, %c2, %c3}, {%a0, %a1, %a2, %a3}, {%b0, %b1}, {%c0, %c1, %c2, %c3};\n"
        "\tmad.wide.u32 %at, %tid, 16, %arg3;\n\tst.global.v4.b32 [%at], {%c0, %c1, %c2, %c3};\n"
    )
    text = kernel("multiply", 4, body, "\t.reg .b32 %a<4>, %b<2>, %c<4>;\n")
    result = torch.empty(32, 4)
    machine.launch(text, "multiply", arguments=[tensor.data_ptr() for tensor in (*arguments, result)])
    made = torch.empty(16, 8)
    for register in range(4):
        made[LANES // 4 + 8 * (register // 2), 2 * (LANES % 4) + register % 2] = result[:, register]
    return made


def matrices(form, seed):
    depth, dtype = FORMATS[form]
    generator = torch.Generator().manual_seed(seed)
    a, b, c = (torch.randn(*size, generator=generator) for size in ((16, depth), (depth, 8), (16, 8)))
    if form == "tf32":
        a, b = (((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32) for x in (a, b))
    return a.to(dtype), b.to(dtype), c


@pytest.mark.parametrize("form", FORMATS)
def test_matrix_product(machine, form):
    a, b, c = matrices(form, 1)
    exact = torch.matmul(a.double(), b.double()) + c.double()
    size = torch.matmul(a.double().abs(), b.double().abs()) + c.double().abs()
    fine = multiply(machine, form, a, b, c)
    assert ((fine - exact).abs() <= 2.0**-24 * exact.abs() + 2.0**-50 * size).all()
    machine.options(rough=True)
    rough = multiply(machine, form, a, b, c)
    machine.options()
    assert ((rough - exact).abs() <= 5 * 2.0**-23 * size).all()
    assert (rough != fine).any()
    integers = [torch.round(8 * x.float()).to(x.dtype) for x in (a, b, c)]
    assert torch.equal(multiply(machine, form, *integers), integers[0].float() @ integers[1].float() + integers[2])


def test_matrix_product_ignores_the_lowest_bits_of_tf32(machine):
    a, b, c = matrices("tf32", 2)
    dirty = [(x.view(torch.int32) | 0x1FFF).view(torch.float32) for x in (a, b)]
    assert torch.equal(multiply(machine, "tf32", *dirty, c), multiply(machine, "tf32", a, b, c))


def test_matrix_product_of_subnormals_infinities_and_nans(machine):
    a, b, c = matrices("f16", 3)
    a[0, 0], a[1, 0], a[2] = float("inf"), float("nan"), 2.0**-24
    made, exact = multiply(machine, "f16", a, b, c), a.double() @ b.double() + c
    assert torch.equal(made[:2].isnan(), exact[:2].isnan())
    torch.testing.assert_close(made[2], exact[2].float(), rtol=2.0**-23, atol=0)


def test_matrix_product_needs_all_lanes(machine):
    four, two = "{%s0, %s0, %s0, %s0}", "{%s0, %s0}"
    product = f"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {four}, {four}, {two}, {four};"
    with pytest.raises(RuntimeError, match="without all 32 lanes"):
        apply(machine, product, [], np.zeros(20, np.uint32))
