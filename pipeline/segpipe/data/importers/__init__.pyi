from .corrections import Corrected as Corrected
from .corrections import import_corrections as import_corrections
from .dataset_import import Imported as Imported
from .dataset_import import dicom_label_names as dicom_label_names
from .dataset_import import import_dataset as import_dataset
from .first_stage import import_first_stage as import_first_stage
from .label_choice import LabelsNotChosenError as LabelsNotChosenError
from .to_manifest import find_dataset as find_dataset
