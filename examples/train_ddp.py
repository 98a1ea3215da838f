"""Trains an LSTM on ragged rows, in one process or in several.

    python examples/train_ddp.py                             one process
    torchrun --nproc-per-node 2 examples/train_ddp.py        two on this machine

Each process computes its share of a batch of fixed size, and the gradients are averaged: the losses are the same for
any number of processes, up to rounding. Uses one GPU per process if there are any, otherwise the CPU.
"""

import argparse
import os
import time

import torch
import torch.distributed as dist
from adding import Adder, Rows
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler


def main() -> None:
    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1} | os.environ  # set by torchrun
    rank, local_rank, world = (int(place[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    args = parse_arguments(world)
    device = torch.device("cpu")
    if args.device == "cuda":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
    train(args, device, rank, world)
    if world > 1:
        time.sleep(0.2)  # gloo's threads may still need the interpreter, and abort the process if it has exited
        dist.destroy_process_group()


def train(args: argparse.Namespace, device: torch.device, rank: int, world: int) -> None:
    torch.manual_seed(args.seed)  # the same initial weights in every process
    model = Adder(args.hidden).to(device)
    if world > 1:
        model = nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    rows = Rows(args.steps * args.batch)
    # Row i goes to process i % world, so that each batch has the same rows as in a single process.
    sampler = DistributedSampler(rows, world, rank, shuffle=False)
    losses, report_every, start = [], max(1, args.steps // 10), time.perf_counter()
    for step, batch in enumerate(DataLoader(rows, args.batch // world, sampler=sampler), 1):
        x, lengths, target = (tensor.to(device) for tensor in batch)
        loss = nn.functional.mse_loss(model(x, lengths), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if step % report_every == 0 or step == args.steps:
            mean = mean_over_processes(torch.stack(losses).mean(), world)
            losses.clear()
            if rank == 0:
                rate = step * args.batch / (time.perf_counter() - start)
                print(f"step {step:5}  loss {mean:.4f}  {rate:8.0f} rows/s", flush=True)
    if rank == 0:
        processes = "1 process" if world == 1 else f"{world} processes"
        print(f"final loss {mean:.6f}, {processes} on {device.type} (always saying 1: 0.167)")


def mean_over_processes(number: Tensor, world: int) -> float:
    if world > 1:
        dist.all_reduce(number)
    return number.item() / world


def parse_arguments(world: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--steps", type=int, default=1000, help="updates of the weights (%(default)s)")
    add("--batch", type=int, default=64, help="rows of one update, over all processes (%(default)s)")
    add("--hidden", type=int, default=64, help="units of the LSTM (%(default)s)")
    add("--lr", type=float, default=3e-3, help="Adam's step size (%(default)s)")
    add("--seed", type=int, default=0, help="of the first weights (%(default)s)")
    found = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=("cpu", "cuda"), default=found, help="here: %(default)s")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    if args.batch < 1 or args.batch % world:
        parser.error(f"--batch must be a multiple of the number of processes, {world}, got {args.batch}")
    return args


if __name__ == "__main__":
    main()
