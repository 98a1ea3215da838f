"""Speed and memory against the alternatives and the machine's limits: ``python -m benchmarks --help``.

    __main__  the command       suites    what is measured        problem   modules and tensors for one line
    run       one suite         timing    interleaved runs        variants  our layers frozen, as streams, in 8 bits
    limits    of the machine    roofline  what a line could take  peers/    ONNX Runtime, OpenVINO, JAX, torch.ao ...
    features  costs of options  load      is the machine busy     memory    peak of a training step
    results   the JSON files    table, report, page, markdown, plots: output

Nothing here imports torch before the number of threads is fixed (see ``threads``).
"""
