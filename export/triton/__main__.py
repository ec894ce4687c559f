"""``python -m tatok_edge.export.triton`` writes a Triton model repository."""

import sys

from tatok_edge.export.triton.repository import main

sys.exit(main())
