"""A pytest plugin, ``-p support.on_machine``: tests run on the CUDA engine, whose PTX is executed on the CPU (ptx/)."""

import ptx
from support.machine import take_over

machine = ptx.load()
machine.fill_memory(True)
take_over(machine)
