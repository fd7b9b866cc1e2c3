"""Reports: self-contained HTML pages with the pictures, figures and facts of a run."""

from .ct import ct_page
from .page import Page, write_report
from .register import register_page
from .superres import superres_page
from .ultrasound import ultrasound_page

__all__ = ["Page", "ct_page", "register_page", "superres_page", "ultrasound_page", "write_report"]
