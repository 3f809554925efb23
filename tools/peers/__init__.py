"""Small graphs with a BatchNormalization, one per construct, for the comparison with peers."""

from tools.peers.build import Construct
from tools.peers.layers import before_a_layer, behind_a_layer
from tools.peers.surroundings import constants, scopes, traps


def constructs() -> list[tuple[str, list[Construct]]]:
    """Return all constructs under their headings."""
    return [
        ("BN behind a layer", behind_a_layer()),
        ("BN before a layer", before_a_layer()),
        ("weights and parameters", constants()),
        ("scopes", scopes()),
        ("traps", traps()),
    ]
