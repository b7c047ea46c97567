"""`python -m fleetune`, the same as the command `fleetune`."""

from fleetune.cli.main import main

if __name__ == "__main__":
    main()
