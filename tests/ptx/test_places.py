"""Places in the kernels' PTX are found by functions and by how statements stand to each other."""

import pytest

from . import flow, listing, mutants, mutations, names

OF_CLASS = "_ZN9fused_rnn4cuda53_GLOBAL__N__f2b160d3_20_bfloat16_backward_cu_5adf1f43"
INTERNAL = "_ZN51_INTERNAL_f2b160d3_20_bfloat16_backward_cu_5adf1f439fused_rnn4cuda53_GLOBAL__N__f2b160d3_20_"
INTERNAL += "bfloat16_backward_cu_5adf1f43"


@pytest.mark.parametrize(
    "mangled, short",
    [
        ("_Z3addPKfRA2_l", "add"),
        (f"{OF_CLASS}11ForwardCellIfE5storeEv", "ForwardCell::store"),
        (f"{OF_CLASS}8OneBlock7publishILi0ELi1024EEEvi", "OneBlock::publish<0, 1024>"),
        (f"{INTERNAL}4pickIPvEET_RA2_KS5_l", "pick<void*>"),
        (f"_ZNK{OF_CLASS[3:]}6RemoteplEj", "Remote::operator+"),
        ("_ZNK1AclEi", "A::operator()"),
        ("_ZZNK1AIfE3putERKiENKUlRfE0_clES2_", "A::put::lambda#2"),
        ("_ZNK1AIfE3putIZNKS0_5storeERKiEUlRfE_EEvT_", "A::put<A::store::lambda#1>"),
        ("sqrtf", "sqrtf"),
    ],
)
def test_names_are_short(mangled, short):
    assert names.short(mangled) == short


def test_the_kernel_is_the_outermost_function(machine):
    for kernel in machine.names()[::20]:
        found = [s for s in listing.statements(machine, kernel) if s.frames]
        assert found and {s.frames[-1].function for s in found} == {names.short(kernel)}


def statements(text):
    """Of lines "function: statement"."""
    lines = [line.strip().partition(": ") for line in text.strip().split("\n")]
    frames = [(listing.Frame(function, "kernels.cu", 1),) for function, _, _ in lines]
    made = zip(lines, frames, strict=True)
    return [listing.Statement(k, s.split()[0], s, f, 1) for k, ((_, _, s), f) in enumerate(made)]


BODY = statements("""
    is_cut: selp.u16 %rs1, 1, 0, %p1;
    step: setp.ne.s16 %p2, %rs1, 0;
    step: mov.pred %p3, %p2;
    step: @%p3 bra $L1;
    step: selp.f32 %f1, %f2, 0f00000000, %p2;
    step: add.u16 %rs2, %rs1, 1;
    step: setp.ne.s16 %p4, %rs2, 0;
    step: @!%p4 bra $L1;
    clipped: setp.gt.f32 %p5, %f1, %f3;
    step: mov.f32 %f4, 0f00000000;
    step: st.global.f32 [%rd1+4], %f4;
    step: st.global.f32 [%rd1+8], %f1;
    step: mov.f32 %f5, 0f00000000;
    step: mov.f32 %f5, %f1;
    step: st.global.f32 [%rd1], %f5;
""")


def test_what_a_function_decides():
    found = flow.decided_by("^is_cut")(BODY, BODY)
    assert [s.line for s in found] == [3, 4]


def test_the_last_before_a_function():
    fit = [s for s in BODY if "bra" in s.text]
    assert [s.line for s in flow.last_before("^clipped")(BODY, fit)] == [7]
    decided = flow.both(flow.decided_by("^is_cut"), flow.last_before("^clipped"))
    assert [s.line for s in decided(BODY, fit)] == [3]


def test_stores_of_zero():
    assert [s.line for s in flow.stores_of_zero(BODY, BODY)] == [10]


CHANGES_NOTHING = mutants.Mutation("none", mutations.STEP, r"^forward_step<", ((r"\bbra\s+", "bra  "),))


def test_a_fault_without_a_place_fails(machine):
    with pytest.raises(AssertionError, match="no place for it"):
        mutants.unseen(machine, CHANGES_NOTHING._replace(at=r"^no_such_function<"))


@pytest.mark.parametrize("each", [False, True])
def test_faults_that_are_not_seen_are_named(machine, each):
    found = mutants.unseen(machine, CHANGES_NOTHING._replace(which=mutations.AT_RESET, each=each))
    assert len(found) > 1 if each else len(found) == 1
    assert all("forward_step<Lstm, float>" in place for place in found)
