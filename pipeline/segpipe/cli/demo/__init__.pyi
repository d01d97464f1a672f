from .demo_data import demo_manifest as demo_manifest
from .demo_page import read_outcome as read_outcome
from .demo_page import write_demo_page as write_demo_page
from .demo_steps import Settings as Settings
from .demo_steps import prepare as prepare
from .demo_steps import run_python as run_python
from .demo_steps import run_steps as run_steps
