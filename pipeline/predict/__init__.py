"""Prediction of many cases with one bundle: a light parent, and a worker process that holds the model."""

from pipeline.predict.batch import Options, Outcome, predict_cases
from pipeline.predict.worklist import WorkItem, find_cases

__all__ = ["Options", "Outcome", "WorkItem", "find_cases", "predict_cases"]
