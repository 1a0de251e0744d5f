"""``shoal data``: make, look at, check, mend and hand on data sets."""

import typer

from shoal_ray.cli.data import copying, exporting, importing, info, repairing, verifying

app = typer.Typer(help="Import, show, verify, repair, copy and export data sets.", no_args_is_help=True)

for command in (importing, info, verifying, repairing, copying, exporting):
    command.register(app)
