from .all_formats import write_dicom as write_dicom
from .judgement import Judgement as Judgement
from .stored_object import AlgorithmInfo as AlgorithmInfo
