"""Benchmarks: both sides in one run, interleaved, with medians and spread. `make bench`, or `python -m benchmarks`."""
