from .config_checks import check_components as check_components
from .config_checks import check_network as check_network
from .config_checks import padded_patch as padded_patch
from .fragments import Composed as Composed
from .fragments import compose_config as compose_config
from .fragments import known_fragments as known_fragments
from .fragments import read_comment as read_comment
from .fragments import read_fragment as read_fragment
