"""A set of predictions against the truth: every case, every label, and what they say together.

cases           read, compare and measure one case; a case that cannot be measured is a failure with a reason
calibration     of a case's labels, from kept probabilities
batch           all cases, in one process or several
statistics      mean, median and bootstrap interval over patients
summary         per label and overall
output          metrics.csv, metrics.json
panels          which cases to look at, and their volumes in one orientation
figures         Dice bars, the worst cases, animations, learning curves
page            report.html
postprocessing  which clean-up rule helps which label, on validation cases
"""

from __future__ import annotations

from pipeline.evaluate.batch import choose_workers, evaluate_cases, make_jobs, other_files
from pipeline.evaluate.cases import CaseResult, Job, evaluate_case
from pipeline.evaluate.figures import Figures, draw_figures, wanted_figures
from pipeline.evaluate.output import write_report
from pipeline.evaluate.page import PAGE, write_evaluation_page
from pipeline.evaluate.panels import read_panel, worst_cases
from pipeline.evaluate.postprocessing import choose_rules
from pipeline.evaluate.statistics import Estimate, bootstrap_mean
from pipeline.evaluate.summary import Summary, summarise

__all__ = [
    "PAGE",
    "CaseResult",
    "Estimate",
    "Figures",
    "Job",
    "Summary",
    "bootstrap_mean",
    "choose_rules",
    "choose_workers",
    "draw_figures",
    "evaluate_case",
    "evaluate_cases",
    "make_jobs",
    "other_files",
    "read_panel",
    "summarise",
    "wanted_figures",
    "worst_cases",
    "write_evaluation_page",
    "write_report",
]
