"""The command line: `python -m fleet plan | serve | ask | engines | demo`."""
