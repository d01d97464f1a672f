from .all_formats import write_dicom as write_dicom
from .judgement import Judgement as Judgement
from .release import check_name as check_name
from .release import write_release as write_release
from .stored_object import AlgorithmInfo as AlgorithmInfo
