"""Small lines of the benchmarks."""

from dataclasses import replace

from benchmarks.suites import SUITES, Shape

EVERY_KIND = list(  # one line of each group, layer and mode
    {(w.group, w.layer, w.mode): replace(w, shape=Shape(min(w.shape.steps, 3), 4, 6)) for w in SUITES["cpu"]}.values()
)
