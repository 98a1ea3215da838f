"""What test files share. Tests import it as ``support``: pyproject.toml puts tests/ on their path."""
