from .batch import predict as predict
from .batch_result import BatchProgress as BatchProgress
from .batch_result import BatchResult as BatchResult
from .batch_result import Outcome as Outcome
from .client import WorkerDiedError as WorkerDiedError
from .options import PredictKeywords as PredictKeywords
