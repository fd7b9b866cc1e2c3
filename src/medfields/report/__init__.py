"""Reports: self-contained HTML pages with the pictures, figures and facts of a run."""

from .page import Page, write_report
from .superres import superres_page

__all__ = ["Page", "superres_page", "write_report"]
