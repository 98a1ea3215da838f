"""What the persistent kernels execute: instructions of a warp before the first step and in a step, from two lengths.

python -m ptx.counting [engine,dtype,cell,batch,hidden ...]     in tests/: a table, with classes of instructions

Counts are no times. They tell how many issue slots a step takes; a GPU has four of them in a cycle for a block's warps.
"""

import collections
import re
import sys
from typing import NamedTuple

import torch

import ptx

from . import cases

SHAPES = """
one,float32,lstm,1,64 cluster,float32,lstm,8,128 polling,float32,lstm,8,256 polling,float32,lstm,8,512
one,bfloat16,lstm,1,64 cluster,bfloat16,lstm,8,256 cluster,bfloat16,lstm,8,512 polling,bfloat16,lstm,8,1024
cluster,bfloat16,gru,8,512 cluster,float64,lstm,8,128
"""
CLASSES = [
    ("mma", r"mma"),
    ("multiply, add", r"fma|mul\.f|add\.f|sub\.f"),
    ("special", r"ex2|rcp|tanh\.approx|sqrt|div\.rn"),
    ("shared load", r"ld\.shared"),
    ("shared store", r"st\.shared"),
    ("st.async", r"st\.async"),
    ("parameter", r"ld\.param"),
    ("global load", r"ld\."),
    ("global store", r"st\."),
    ("shuffle", r"shfl"),
    ("barrier", r"bar|mbarrier|fence|nanosleep"),
    ("division", r"(div|rem)\.[su]"),
    ("branch", r"bra|ret"),
    ("conversion", r"cvt"),
    ("move, select", r"mov|selp|prmt"),
    ("comparison", r"setp|(and|or|xor|not)\.pred"),
    ("integer", r""),
]
FEW, MANY = 4, 12  # steps
# A register under another name: no instruction of a GPU, wherever the compiler of PTX puts it.
RENAMING = re.compile(r"mov\.b(32|64)\s+%(f|r|fd|rd)\d+, %(f|r|fd|rd)\d+;")
SLOW_DIVISION = re.compile(r"(div|rem)\.[su]64")


def class_of(opcode: str) -> str:
    return next(name for name, pattern in CLASSES if re.match(pattern, opcode))


class Cost(NamedTuple):
    """Of a warp, on average; what polls repeat is not in it."""

    kernel: str
    warps: int
    first: float  # before the first step, and after the last one
    step: float
    classes: dict[str, float]  # of a step
    sectors: float  # of global memory that a block's stores touch in a step
    divisions: float  # of 64 bits, in a step


def executed(machine, case, steps, seed):
    """{kernel: counts of its instructions}, of persistent kernels; what only renames registers is no instruction."""
    machine.reset_counts()
    # Lanes meet again as soon as they can, so that nothing but polls differs from seed to seed.
    machine.options(seed=seed, order="warp_ahead", traffic=True)
    cases.errors(case._replace(steps=steps))
    found = {name: machine.counts(name) for name in machine.decoded() if "10persistentINS" in name}
    found = {name: counts for name, counts in found.items() if counts.numbers[0, 0]}
    for name, counts in found.items():
        text = machine.text_of(name)
        renames = [bool(line) and bool(RENAMING.match(text[line - 1].strip())) for line, *_ in counts.lines]
        counts.numbers[renames] = 0
    return found


def cost_of(kernel: str, runs) -> Cost:
    few, few_again, many, many_again = (run[kernel].numbers.astype(float) for run in runs)
    lines = runs[0][kernel].lines
    tiles = re.search(r"TilesELi(\d+)ELi(\d+)", kernel)
    warps = few[0, 0]
    blocks = warps / (int(tiles[1]) * int(tiles[2]))
    slots = FEW + ("BackwardCell" in kernel)  # that hands on what came back through the first step's gates
    step, first, divisions, sectors = 0.0, 0.0, 0.0, 0.0
    classes = collections.Counter()
    for i, (line, opcode, _, _) in enumerate(lines):
        if not line or few[i, 0] != few_again[i, 0] or many[i, 0] != many_again[i, 0]:
            continue  # a poll
        each = (many[i, 0] - few[i, 0]) / (MANY - FEW) / warps
        step += each
        first += few[i, 0] / warps - slots * each
        classes[class_of(opcode)] += each
        divisions += each if SLOW_DIVISION.match(opcode) else 0
        if class_of(opcode) == "global store":
            sectors += (many[i, 2] - few[i, 2]) / (MANY - FEW) / blocks
    return Cost(kernel, int(warps), first, step, dict(classes.most_common()), sectors, divisions)


def costs(machine, shape: str) -> dict[str, Cost]:
    """{"forward": ..., "backward": ...}"""
    engine, dtype, cell, batch, hidden = shape.split(",")
    case = cases.Case(getattr(torch, dtype), engine, cell, FEW, int(batch), 4, int(hidden), states=False)
    try:
        runs = [executed(machine, case, steps, seed) for steps in (FEW, MANY) for seed in (1, 2)]
    finally:
        machine.options()
    return {"forward" if "ForwardCell" in kernel else "backward": cost_of(kernel, runs) for kernel in runs[0]}


def main():
    machine = ptx.load()
    print(f"{'':34} {'warps':>5} {'first':>7} {'step':>7} {'sectors':>8}")
    for shape in sys.argv[1:] or SHAPES.split():
        for way, cost in costs(machine, shape).items():
            numbers = f"{cost.warps:5} {cost.first:7.0f} {cost.step:7.1f} {cost.sectors:8.1f}"
            print(f"{shape:25} {way:8} {numbers}", flush=True)
            print("   ", ", ".join(f"{name} {value:.1f}" for name, value in cost.classes.items() if value > 0.05))


if __name__ == "__main__":
    main()
