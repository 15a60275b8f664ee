"""`knee report`: a run as a page, and all runs of a folder as one log."""

from knee.lab.report.log import to_log
from knee.lab.report.page import to_html

__all__ = ["to_html", "to_log"]
