"""A resolver of names under `dns.example` for the processes of a build: put this folder on PYTHONPATH. Everything else is asked as ever.

Which answer a real resolver gives to a name that does not exist, or whether it answers at all, depends on the machine.
"""

import socket
import time
from typing import Any

_ask = socket.getaddrinfo


def getaddrinfo(host: Any, port: Any, *given: Any, **named: Any) -> Any:
    """socket.getaddrinfo with a few names that are known here."""
    name = host.decode() if isinstance(host, bytes) else host
    if not isinstance(name, str) or not name.endswith(".dns.example"):
        return _ask(host, port, *given, **named)
    kind = name.split(".")[-3]
    if kind == "unknown":
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    if kind == "again":
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    if kind == "hangs":
        time.sleep(6)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return _ask({"private": "127.0.0.1", "metadata": "169.254.169.254"}[kind], port, *given, **named)


socket.getaddrinfo = getaddrinfo
