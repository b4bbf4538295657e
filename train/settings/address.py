"""The address that a server listens at."""

import socket


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address, but accepts no connections yet.

    Raises:
        ValueError: the address is not of this machine, or another program uses the port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(f"--host {host}: {error.strerror}. Give an address of this machine.") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        reason = f"{error.strerror.lower() if error.strerror else error}"
        raise ValueError(
            f"--host {host} --port {port}: {reason}. Choose another --port (0: any that is free), or another --host."
        ) from None
    return listener
