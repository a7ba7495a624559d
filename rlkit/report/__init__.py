"""This package turns run folders into a page with tables, figures and data to publish."""

from rlkit.report.build import ReportOptions, build_page, write_page, write_report
from rlkit.report.load import JobRecord, State, Study, load_study
from rlkit.report.results import Results, analyse

__all__ = [
    "JobRecord",
    "ReportOptions",
    "Results",
    "State",
    "Study",
    "analyse",
    "build_page",
    "load_study",
    "write_page",
    "write_report",
]
