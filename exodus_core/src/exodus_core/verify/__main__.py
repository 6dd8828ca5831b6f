"""`python -m exodus_core.verify`: the command without `exodus`."""

import sys

try:
    from exodus_core.verify.commands import app
except ModuleNotFoundError as error:
    if error.name not in ("typer", "rich"):
        raise
    sys.exit("exodus: the command line needs typer and rich: pip install 'exodus-core[verify]'")

if __name__ == "__main__":
    app(prog_name="python -m exodus_core.verify")
