"""The command `exodus`."""
