"""``python -m segpipe`` is the ``segpipe`` command."""

import os

from segpipe.cli.app import main

if __name__ == "__main__":
    if os.environ.pop("SEGPIPE_CHILD", None):  # set by `segpipe.common.processes`
        from segpipe.common.processes import die_with_parent

        die_with_parent()
    main()
