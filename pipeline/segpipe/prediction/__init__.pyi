from .batch import predict as predict
from .batch_summary import BatchProgress as BatchProgress
from .batch_summary import BatchResult as BatchResult
from .batch_summary import Outcome as Outcome
from .client import WorkerDiedError as WorkerDiedError
from .judging import about_quality as about_quality
from .judging import not_judged_note as not_judged_note
from .options import PredictKeywords as PredictKeywords
