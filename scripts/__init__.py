"""Commands for those who work on Fleetune; not part of the package."""
