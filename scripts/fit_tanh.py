"""Prints the table of csrc/cpu/simd/tanh.h: for each interval, its start and a polynomial in the distance from there.

Minimax polynomials of tanh(x) / min(x, 1) - 1, by least squares with iterated weights; coefficients are rounded to
float one after another, lowest first, each time fitting the others anew.
"""

import numpy as np

DEGREE = 7
ENTRIES = 16
FIRST = 0.25  # intervals: below it, then two for each power of two
LAST = 8.0
SHIFT = 22  # the bits of a float above these are its exponent and first bit of mantissa: the number of its interval


def wanted(x):
    near_zero = -x * x / 3 + 2 * x**4 / 15 - 17 * x**6 / 315
    below_one = np.where(x < 1e-3, near_zero, np.tanh(x) / np.where(x == 0, 1, x) - 1)
    return np.where(x < 1, below_one, -2 / (np.exp(2 * x) + 1))


def minimax(powers, values):
    weights = np.ones(len(values))
    for _ in range(60):
        factors = np.linalg.lstsq(powers * weights[:, None], values * weights, rcond=None)[0]
        errors = np.abs(powers @ factors - values)
        weights *= (errors / errors.max() + 1e-30) ** 0.25 + 1e-9
        weights /= weights.max()
    return factors


def fit(first, last):
    """Coefficients of float, and the largest error in 2^-24."""
    nodes = (1 - np.cos(np.pi * (np.arange(400) + 0.5) / 400)) / 2
    offsets = (nodes * (last - first)).astype(np.longdouble)
    values = wanted(offsets + first)
    rounded = {0: 0.0, 1: 0.0} if first == 0 else {}  # near 0 the function is even
    for k in range(DEGREE + 1):
        free = [n for n in range(DEGREE + 1) if n not in rounded]
        if k not in free:
            continue
        rest = (values - sum(rounded[n] * offsets**n for n in rounded)).astype(float)
        factors = minimax(np.stack([nodes**n for n in free], 1), rest)
        rounded[k] = float(np.float32(factors[0] / (last - first) ** k))
    fitted = [rounded[n] for n in range(DEGREE + 1)]
    error = np.abs(sum(c * offsets**n for n, c in enumerate(fitted)) - values).max()
    return fitted, float(error) * 2**24


def intervals():
    yield 0.0, FIRST
    start = FIRST
    while start < LAST:
        yield start, 1.5 * start
        yield 1.5 * start, 2 * start
        start *= 2
    yield LAST, 10.0  # from where tanh is 1


def as_text(number):
    if number == 0:
        return "0"
    small = abs(number) < 1e-3
    write = np.format_float_scientific if small else np.format_float_positional
    return write(np.float32(number), unique=True, trim="0") + "f"


def main():
    table = np.zeros((1 + 1 + DEGREE, ENTRIES))
    first_number = (int(np.float32(FIRST).view(np.int32)) >> SHIFT) - 1
    for number, (first, last) in enumerate(intervals(), first_number):
        factors, error = fit(first, last)
        print(f"// [{first:g}, {last:g}): within {error:.3f} * 2^-24")
        table[:, number % ENTRIES] = [first, *factors]
    for row in table:
        print("    {" + ", ".join(map(as_text, row)) + "},")


if __name__ == "__main__":
    main()
