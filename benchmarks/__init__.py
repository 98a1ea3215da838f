"""Speed against torch.nn, measured side by side in one run: ``python -m benchmarks``."""
