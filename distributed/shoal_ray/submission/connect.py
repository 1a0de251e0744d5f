"""From what the command line says to a cluster that answers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.errors import ConfigError
from shoal_ray.submission.address import address, is_exposed, token
from shoal_ray.submission.api import JobsApi
from shoal_ray.submission.tunnel import Login, Tunnel


@contextmanager
def connected(given: str | None, cluster: Path | None, caution: Callable[[str], None]) -> Iterator[JobsApi]:
    """Talk to the cluster at an address, or of a cluster file, through a tunnel that lasts as long as the block.

    Args:
        given: the address.
        cluster: the file.
        caution: told of a token that will travel in the clear, before it does.

    Raises:
        ClusterError: nobody answers, or we are not let in.
    """
    if cluster is None:
        url, ours = address(given), token()
        if ours is not None and is_exposed(url):
            caution(f"the token travels to {url} unencrypted; --cluster cluster.yaml goes through ssh")
        yield JobsApi(url, ours)
        return
    if given is not None:
        raise ConfigError("--address and --cluster are two ways to name a cluster; give one")
    login = Login.read(cluster)
    with Tunnel(login).opened() as tunnel:
        yield JobsApi(tunnel.address, token(), f"{login.host}, through ssh,", tunnel.socket, tunnel.mend)
