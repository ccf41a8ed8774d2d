"""What `serve` needs of the system: sockets that listen, and a directory in which several processes count."""

import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from typing import Final

from clerk_session_feed.errors import ConfigurationError

METRICS_DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable in which the Prometheus client looks for that directory."""


@contextlib.contextmanager
def metrics_directory(processes: int) -> Iterator[str | None]:
    """Make the directory in which several processes count, so that any can report the sum; remove it at the end.

    It is made in PROMETHEUS_MULTIPROC_DIR, if that is set, else where the system keeps temporary files.

    Args:
        processes: WEB_CONCURRENCY. One process needs no directory, and gets None.

    Raises:
        ConfigurationError: It can't be made.
    """
    if processes == 1:
        yield None
        return
    parent = os.environ.get(METRICS_DIRECTORY) or None
    why = f"WEB_CONCURRENCY={processes} needs one: set it to 1"
    with temporary_directory("session-relay-metrics-", why, METRICS_DIRECTORY if parent else "TMPDIR", parent) as path:
        yield path


@contextlib.contextmanager
def temporary_directory(prefix: str, why: str, variable: str = "TMPDIR", parent: str | None = None) -> Iterator[str]:
    """Make a directory, and remove it at the end.

    Args:
        prefix: what its name begins with.
        why: what needs it, and how to do without.
        variable: the environment variable that can name another place for it.
        parent: where it is made; by default, where the system keeps temporary files.

    Raises:
        ConfigurationError: It can't be made.
    """
    try:
        directory = tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        where = f"in {parent}" if parent else "for temporary files"
        advice = f"mount a writable one (in a container, a tmpfs at /tmp), and let {variable} name it"
        raise ConfigurationError(
            [f"{variable}: no directory can be made {where} ({error.strerror}). {why}, or {advice}"]
        ) from None
    with directory as path:
        yield path


def listen(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen: one for each address of the host, on one port.

    `::` also takes IPv4, where the system can. An address that this machine does not have is left out, if another one
    works: `localhost` is both `127.0.0.1` and `::1`, also where there is no IPv6.

    Raises:
        ConfigurationError: No address is usable, or one is taken.
    """
    listening: list[socket.socket] = []
    unusable: OSError | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, (name, *rest) in dict.fromkeys((family, address) for family, *_, address in found):
            both = family == socket.AF_INET6 and name == "::" and socket.has_dualstack_ipv6()
            if listening:  # if the port is 0, the first one has chosen
                rest[0] = listening[0].getsockname()[1]
            try:
                listening.append(socket.create_server((name, *rest), family=family, dualstack_ipv6=both))
            except OSError as error:
                if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                    raise
                unusable = error
        if unusable and not listening:
            raise unusable
    except (OSError, UnicodeError) as error:
        for each in listening:
            each.close()
        reason = str(getattr(error, "strerror", error)).partition(" (")[0]
        fault = f"HOST, PORT: can't listen on {host} port {port}: {reason}"
        advice = "set PORT to a free one, and HOST to an address of this machine"
        raise ConfigurationError([f"{fault}; {advice}"]) from None
    return listening
