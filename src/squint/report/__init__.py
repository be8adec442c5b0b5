"""The report of a run: a function of the files in its folder, and of nothing else."""

from __future__ import annotations

from squint.report.page import write_report
from squint.report.table import TableRow, comparison_table
from squint.report.terminal import print_table

__all__ = ["TableRow", "comparison_table", "print_table", "write_report"]
