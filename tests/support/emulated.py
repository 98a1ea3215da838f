"""Compiles C++ for aarch64 and runs it under qemu-user, with every extension that it knows."""

import subprocess
from shutil import which

import pytest
import torch

from support.compiling import BUILD_FLAGS, CSRC
from support.paths import TESTS

COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = ("qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu")
# setup.py's.
FLAGS = {
    "neon": BUILD_FLAGS,
    "neon_bf16": f"{BUILD_FLAGS} -march=armv8.2-a+bf16 -DFUSED_RNN_BFLOAT16_PRODUCTS=1",
    "neon_dot": f"{BUILD_FLAGS} -march=armv8.2-a+dotprod",
    "neon_i8mm": f"{BUILD_FLAGS} -march=armv8.2-a+dotprod+i8mm",
}


def skip_without_tools():
    for tool, package in ((COMPILER, "g++-aarch64-linux-gnu"), (EMULATOR[0], "qemu-user")):
        if which(tool) is None:
            pytest.skip(f"{tool}, of the package {package}, is not installed")


def compile_program(folder, source, flags):
    """The command that runs the program whose C++ is ``source``, which may include from csrc/."""
    skip_without_tools()
    program = folder / "program"
    command = [COMPILER, "-std=c++20", f"-I{CSRC}", f"-I{TESTS / 'cpu'}", *flags.split(), "-o", str(program)]
    done = subprocess.run([*command, "-x", "c++", "-"], input=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [*EMULATOR, str(program)]


MAIN = """
#include <stdio.h>
#include <string.h>
#include <vector>
// name, count, bytes of a result, bytes of a number: numbers come from stdin, results go to stdout.
int main(int, char** arguments) {
  using Function = void (*)(void*, const void*, int64_t);
  const struct { const char* name; Function function; } functions[] = {%s};
  const int64_t count = atoll(arguments[2]);
  std::vector<char> to(count * atoll(arguments[3])), from(count * atoll(arguments[4]));
  if (fread(from.data(), 1, from.size(), stdin) != from.size()) return 1;
  for (const auto& [name, function] : functions)
    if (!strcmp(name, arguments[1])) {
      function(to.data(), from.data(), count);
      return fwrite(to.data(), 1, to.size(), stdout) != to.size();
    }
  return 1;
}
"""


class Functions:
    """C functions (to, from, count), called in the emulator."""

    def __init__(self, folder, source, flags, names):
        table = ", ".join(f'{{"{name}", reinterpret_cast<Function>(&{name})}}' for name in names)
        self.command = compile_program(folder, f"#include <stdlib.h>\n{source}{MAIN % table}", flags)

    def apply(self, name, to, source):
        sizes = map(str, (source.numel(), to.element_size(), source.element_size()))
        given = source.contiguous().view(torch.uint8).numpy().tobytes()
        done = subprocess.run([*self.command, name, *sizes], input=given, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        to.view(torch.uint8).copy_(torch.frombuffer(bytearray(done.stdout), dtype=torch.uint8))
