from .case_check import Finding as Finding
from .dataset_check import CheckReport as CheckReport
from .dataset_check import check_dataset as check_dataset
