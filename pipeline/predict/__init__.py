"""Prediction of many cases with one bundle: a light parent, and a worker process that holds the model."""

from pipeline.predict.batch import predict_cases
from pipeline.predict.choice import Chosen, NotSelected, Rules, make_rules
from pipeline.predict.ensemble import parse_mirror
from pipeline.predict.outcome import Options, Outcome, parse_formats, parse_runtime, parse_words
from pipeline.predict.work import find_work
from pipeline.predict.worklist import WorkItem, find_cases

__all__ = [
    "Chosen",
    "NotSelected",
    "Options",
    "Outcome",
    "Rules",
    "WorkItem",
    "find_cases",
    "find_work",
    "make_rules",
    "parse_formats",
    "parse_mirror",
    "parse_runtime",
    "parse_words",
    "predict_cases",
]
