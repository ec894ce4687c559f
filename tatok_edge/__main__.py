"""``python -m tatok_edge`` is the ``tatok`` command."""

import sys

from tatok_edge.cli.main import main

sys.exit(main())
