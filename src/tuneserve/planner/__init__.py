"""How to serve a model on some hardware: what fits, how fast it would be, which way is best, and why. No torch here."""

from tuneserve.planner._entry import DEFAULT_CONTEXT, plan
from tuneserve.planner._html import html_report
from tuneserve.planner._options import Objective
from tuneserve.planner._plan import Plan
from tuneserve.planner._roofline import Roofline, roofline
from tuneserve.planner._text import explain

__all__ = ["DEFAULT_CONTEXT", "Objective", "Plan", "Roofline", "explain", "html_report", "plan", "roofline"]
