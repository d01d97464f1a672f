from .batch import predict as predict
from .batch_summary import BatchProgress as BatchProgress
from .batch_summary import BatchResult as BatchResult
from .batch_summary import Outcome as Outcome
from .client import WorkerDiedError as WorkerDiedError
from .options import PredictKeywords as PredictKeywords
