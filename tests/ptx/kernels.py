"""Kernels made for a test: every thread loads the operands of an instruction, executes it and stores the results."""

import numpy as np
import torch

HEADER = ".version 9.0\n.target sm_90a\n.address_size 64\n\n"


def memory(array):
    """A tensor of the array's bytes: what kernels may touch."""
    tensor = torch.empty(array.nbytes, dtype=torch.uint8)
    tensor.numpy()[:] = np.frombuffer(array.tobytes(), np.uint8)
    return tensor


def kernel(name, pointers, body, declarations=""):
    """The text of a kernel with so many pointers, in %arg0, %arg1 ...; the thread's number is in %tid."""
    parameters = ", ".join(f".param .u64 {name}_{k}" for k in range(pointers))
    loads = "".join(f"\tld.param.u64 %arg{k}, [{name}_{k}];\n" for k in range(pointers))
    return (
        f"{HEADER}.visible .entry {name}({parameters})\n{{\n"
        f"\t.reg .b64 %arg<{pointers + 1}>, %at;\n\t.reg .b32 %tid;\n\t.reg .b16 %byte;\n{declarations}"
        f"{loads}\tmov.u32 %tid, %tid.x;\n{body}\tret;\n}}\n"
    )


def register_type(dtype):
    return "pred" if dtype.kind == "b" else f"b{max(16, 8 * dtype.itemsize)}"


def memory_type(dtype):
    """As loads and stores name it: "u16"; of floats the bits are moved."""
    return f"{'s' if dtype.kind == 'i' else 'u'}{8 * dtype.itemsize}"


def element(pointer, dtype):
    """%at becomes the address of the thread's own element."""
    return f"\tmad.wide.u32 %at, %tid, {dtype.itemsize}, {pointer};\n"


def load(register, pointer, dtype):
    if dtype.kind == "b":
        return element(pointer, dtype) + f"\tld.global.u8 %byte, [%at];\n\tsetp.ne.s16 {register}, %byte, 0;\n"
    return element(pointer, dtype) + f"\tld.global.{memory_type(dtype)} {register}, [%at];\n"


def store(register, pointer, dtype):
    if dtype.kind == "b":
        return element(pointer, dtype) + f"\tselp.u16 %byte, 1, 0, {register};\n\tst.global.u8 [%at], %byte;\n"
    return element(pointer, dtype) + f"\tst.global.{memory_type(dtype)} [%at], {register};\n"


def apply(machine, statements, results, *sources, declarations=""):
    """``statements`` with sources %s0, %s1 ..., arrays of a value a thread, and results %d0, %d1 ... of these types."""
    threads = len(sources[0])
    outputs = [np.full(threads, 0xFF, f"u{np.dtype(dtype).itemsize}") for dtype in results]
    types = [array.dtype for array in sources] + [np.dtype(dtype) for dtype in results]
    names = [f"%s{k}" for k in range(len(sources))] + [f"%d{k}" for k in range(len(results))]
    body = declared = stores = ""
    for k, (name, dtype) in enumerate(zip(names, types, strict=True)):
        declared += f"\t.reg .{register_type(dtype)} {name};\n"
        if k < len(sources):
            body += load(name, f"%arg{k}", dtype)
        else:
            stores += store(name, f"%arg{k}", dtype)
    text = kernel("applied", len(types), f"{body}\t{statements}\n{stores}", declared + declarations)
    tensors = [memory(array) for array in (*sources, *outputs)]
    machine.launch(text, "applied", block=(threads, 1, 1), arguments=[tensor.data_ptr() for tensor in tensors])
    made = zip(tensors[len(sources) :], results, strict=True)
    return [tensor.numpy().view(dtype).copy() for tensor, dtype in made]
