"""Speed and memory against the alternatives and the machine's limits: ``python -m benchmarks --help``.

    __main__  the command       suites    what is measured        problem   modules and tensors for one line
    run       one suite         timing    interleaved runs        peers/    torch.compile, ONNX Runtime, JAX
    limits    of the machine    roofline  what a line could take  memory    peak of a training step
    features  costs of options  results   the JSON files          table, report, plots: output

Nothing here imports torch before the number of threads is fixed (see ``threads``).
"""
