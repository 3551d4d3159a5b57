"""The `vl` command: one module per command, assembled in `vl.cli.app`."""
