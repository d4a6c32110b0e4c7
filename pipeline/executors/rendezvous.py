"""Where the ranks of a launch meet: an address on the machine of rank 0."""

import socket


def free_address(host: str) -> str:
    """`tcp://HOST:PORT` of a port that is free now on this machine, which has that address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as chosen:
        chosen.bind((host, 0))
        port = chosen.getsockname()[1]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
