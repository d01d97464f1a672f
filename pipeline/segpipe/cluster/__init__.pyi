from .commands import Command as Command
from .jobs import ENGINES as ENGINES
from .jobs import Resources as Resources
from .submission import exit_code as exit_code
from .submission import submit as submit
from .tasks import VERBS as VERBS
from .tasks import Task as Task
from .tasks import planned as planned
