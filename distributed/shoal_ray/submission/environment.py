"""What a job's processes find in their environment: settings that anyone may see, and secrets that nobody sees.

Ray's runtime environment is no place for a secret: `ray job list`, the Python client, the state API and the logs of
every node show it. So secrets travel in the package of the working tree instead, in a file that only its owner may
read, and each process that Ray starts for the job takes them from there before it does anything else. Whoever may
submit jobs can still get at them, since that person can run any code in the cluster: they are hidden from view, not
from the cluster.

Imports nothing but the standard library up here: it is loaded by every worker.
"""

import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

SECRETS = ".shoal-environment.json"
"""In the working tree of a job."""

HOOK = "shoal_ray.submission.environment.load"
"""What Ray calls in every process of a job that has secrets."""

SECRET_NAME = re.compile(
    r"SECRET|TOKEN|PASSW|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CONNECTION_STRING", re.IGNORECASE
)
RESERVED = ("PYTHONPATH", "RAY_")
"""What `shoal submit` or Ray sets; names that begin so."""


def read(options: Sequence[str], environment: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return settings and secrets: ``NAME=VALUE`` is a setting, ``NAME`` a secret whose value is in ``environment``.

    Raises:
        ConfigError: no name, an unset one, one that is not to be set, or a secret on the command line. No message
            repeats a value.
    """
    from shoal.errors import ConfigError

    settings: dict[str, str] = {}
    hidden: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is None:
            raise ConfigError(
                "--env takes NAME, for a secret from this environment, or NAME=VALUE; a name is letters, digits and _"
            )
        if name.startswith(RESERVED):
            raise ConfigError(f"--env {name}: Ray and shoal set this themselves; leave it out")
        if name in settings or name in hidden:
            raise ConfigError(f"--env {name} is given twice; give it once")
        if equals:
            if SECRET_NAME.search(name):
                raise ConfigError(
                    f"--env {name}=…: others see what stands on a command line; export {name}, and say --env {name}"
                )
            settings[name] = value
        elif name not in environment:
            raise ConfigError(
                f"--env {name}: it is not set here; export {name}, or say --env {name}=VALUE if it is no secret"
            )
        else:
            hidden[name] = environment[name]
    return settings, hidden


def packed(hidden: Mapping[str, str]) -> bytes:
    """Return the content of the file of secrets, salted: the package's name is a hash of it, and is shown."""
    return json.dumps({"salt": secrets.token_hex(16), "environment": dict(hidden)}).encode()


def load() -> None:
    """Put the secrets of the job that this process belongs to into its environment; without any, do nothing."""
    with suppress(FileNotFoundError):
        os.environ.update(json.loads(Path(SECRETS).read_text())["environment"])
