from .jobs import ENGINES as ENGINES
from .jobs import Resources as Resources
from .submission import exit_code as exit_code
from .submission import submit as submit
from .tasks import planned as planned
