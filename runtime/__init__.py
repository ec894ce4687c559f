"""Native kernels, sessions of the networks and the numpy specification of the kernels."""
