"""``python -m shoal_ray.cli``: what torchrun starts."""

from shoal_ray.cli import main

main()
