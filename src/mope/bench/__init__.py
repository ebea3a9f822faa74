"""Benchmarks, as commands: ratios within one run, medians of interleaved repeats."""
