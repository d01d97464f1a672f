from .bundle_metadata import NAME as NAME
from .bundle_metadata import VERSION as VERSION
from .run_record import MANIFEST as MANIFEST
from .run_record import PROVENANCE as PROVENANCE
from .run_record import TRAIN as TRAIN
from .run_record import weights_of as weights_of
from .tied_evaluation import check_figures as check_figures
from .write import export as export
