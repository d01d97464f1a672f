from .run_folder import compose_run as compose_run
from .run_folder import require_same as require_same
from .seeds import SEEDS as SEEDS
from .seeds import resume_seeds as resume_seeds
from .seeds import train_seeds as train_seeds
from .session import dry_run as dry_run
from .session import resume as resume
from .session import start as start
