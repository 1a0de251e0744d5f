"""What a member's metric is the mean of, on disk: a value per image, for the error of a lead."""

import numpy as np

from shoal.files import atomic_file
from shoal_ray.population.directory import SearchDirectory
from shoal_ray.population.exploit import Parts

FOLDER = "parts"
KEPT = 2


def write_parts(directory: SearchDirectory, member: int, samples: int, parts: Parts) -> None:
    """Keep the values of a generation, float64 [images], and forget those of long ago."""
    folder = directory.member(member) / FOLDER
    with atomic_file(folder / f"{samples:012d}.npy") as file:
        np.save(file, parts, allow_pickle=False)
    for old in sorted(folder.glob("*.npy"))[:-KEPT]:
        old.unlink(missing_ok=True)


def read_parts(directory: SearchDirectory, member: int, samples: int) -> Parts | None:
    """Return the values of a generation; None where its metric is no mean over images, or they are lost."""
    try:
        found: Parts = np.load(directory.member(member) / FOLDER / f"{samples:012d}.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found
