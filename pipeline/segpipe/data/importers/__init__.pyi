from .dataset_import import Imported as Imported
from .dataset_import import LabelsNotChosenError as LabelsNotChosenError
from .dataset_import import dicom_label_names as dicom_label_names
from .dataset_import import import_dataset as import_dataset
from .to_manifest import find_dataset as find_dataset
