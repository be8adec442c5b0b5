"""Benchmarks: every row is measured side by side with what it is compared with, in one run."""
