from .demo_data import demo_manifest as demo_manifest
from .demo_page import read_outcome as read_outcome
from .demo_page import write_demo_page as write_demo_page
from .steps import Settings as Settings
from .steps import cores as cores
from .steps import prepare as prepare
from .steps import walk as walk
