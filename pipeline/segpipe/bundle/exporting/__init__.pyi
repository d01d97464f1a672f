from .bundle_metadata import NAME as NAME
from .bundle_metadata import VERSION as VERSION
from .bundle_metadata import Labelling as Labelling
from .run_record import MANIFEST as MANIFEST
from .run_record import PROVENANCE as PROVENANCE
from .run_record import TRAIN as TRAIN
from .run_record import WEIGHTS as WEIGHTS
from .write import export as export
