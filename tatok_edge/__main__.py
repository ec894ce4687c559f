"""``python -m tatok_edge`` is the ``tatok`` command."""

import sys

from tatok_edge.cli import main

sys.exit(main())
