from . import errors as errors
from .bundle import Bundle as Bundle
from .bundle import Segmentation as Segmentation
from .bundle import export as export
from .bundle import open_bundle as open_bundle
from .dicom import read_dicom as read_dicom
from .evaluation import evaluate as evaluate
from .prediction import predict as predict
from .training import plan as plan
from .training import train as train

__version__: str
