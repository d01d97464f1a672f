from .case_check import Finding as Finding
from .dataset_check import check_dicom as check_dicom
from .dataset_check import check_manifest as check_manifest
