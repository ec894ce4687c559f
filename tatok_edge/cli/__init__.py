"""The ``tatok`` command: one file per command, with its options, its run and its report."""
