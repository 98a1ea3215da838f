"""Small correct kernels, each made wrong by replacing one piece of its text."""

from typing import NamedTuple

import torch

HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n\n"
ASSERT = ".extern .func __assertfail(.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);\n"
# %memory: of the grid, which is given to it. %own: the address of this thread's word there.
BEGIN = """\
	.reg .pred %p<8>;
	.reg .b32 %r<32>, %i, %block, %rank, %thread;
	.reg .b64 %rd<16>, %memory, %own;
	ld.param.u64 %rd0, [{name}_param_0];
	cvta.to.global.u64 %memory, %rd0;
	mov.u32 %i, %tid.x;
	mov.u32 %block, %ctaid.x;
	mov.u32 %rank, %cluster_ctarank;
	mov.u32 %r0, %ntid.x;
	mad.lo.s32 %thread, %block, %r0, %i;
	mul.wide.u32 %rd0, %thread, 4;
	add.s64 %own, %memory, %rd0;
"""
ORDERS = ("in_turn", "shuffled", "adversarial", "block_ahead", "warp_ahead", "block_behind")
PATIENCE = 20_000  # enough for any of these kernels


class Small(NamedTuple):
    """How a kernel is launched, and the words that it leaves in its memory: as many as it has, zeros at first."""

    name: str
    body: str
    leaves: list[int]
    grid: int = 1
    block: int = 32
    cluster: int = 1
    cooperative: bool = False
    directives: str = ""

    def text(self, before="", after=""):
        """With ``before``, which must be there, replaced by ``after``."""
        assert before in self.body
        body = self.body.replace(before, after, 1) if before else self.body
        body = BEGIN.format(name=self.name) + body
        entry = f".visible .entry {self.name}(.param .u64 {self.name}_param_0)\n{self.directives}{{\n"
        return f"{HEADER}{ASSERT}{entry}{body}\tret;\n}}\n"


class Fault(NamedTuple):
    kernel: Small
    before: str
    after: str
    says: str  # a regular expression that some of the messages match
    always: bool = True  # whether every order shows it; else some do

    def text(self):
        return self.kernel.text(self.before, self.after)


def run(machine, kernel, text, **options):
    """What is wrong: what the machine says, or "a wrong result"; else nothing."""
    memory = torch.zeros(len(kernel.leaves), dtype=torch.int32)
    machine.options(patience=PATIENCE, **options)
    try:
        machine.launch(
            text,
            kernel.name,
            grid=(kernel.grid, 1, 1),
            block=(kernel.block, 1, 1),
            arguments=[memory.data_ptr()],
            cluster=kernel.cluster,
            cooperative=kernel.cooperative,
        )
    except RuntimeError as error:
        return str(error)
    finally:
        machine.options()
    return "" if memory.tolist() == kernel.leaves else f"a wrong result: {memory.tolist()}"


def in_every_order(machine, kernel, text, seeds=3, **options):
    return [run(machine, kernel, text, seed=seed, order=order, **options) for order in ORDERS for seed in range(seeds)]
