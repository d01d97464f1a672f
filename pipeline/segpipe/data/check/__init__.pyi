from .dataset_check import check_dataset as check_dataset
