"""Which nodes go, how every tensor is re-parametrised, and why the others stay."""
