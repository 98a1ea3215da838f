"""The adding problem with Accelerate, in one process or, as configured, in several.

    python examples/accelerate_loop.py
    accelerate launch examples/accelerate_loop.py

``split_batches``: the batch is split among the processes, so the losses do not depend on their number.
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from adding import Adder, Rows
from torch.utils.data import DataLoader

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=1000)
args = parser.parse_args()

accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True))
set_seed(0)
model = Adder()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
rows = DataLoader(Rows(64 * args.steps), batch_size=64)
model, optimizer, rows = accelerator.prepare(model, optimizer, rows)
for step, (x, lengths, target) in enumerate(rows, 1):
    loss = torch.nn.functional.mse_loss(model(x, lengths), target)
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
    if step % 100 == 0 or step == args.steps:
        accelerator.print(f"step {step:5}  loss {accelerator.reduce(loss.detach(), 'mean'):.6f}", flush=True)
