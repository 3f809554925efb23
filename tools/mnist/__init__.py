"""The seed's proof on MNIST, from the download to the comparison: ``python -m tools.mnist``."""
