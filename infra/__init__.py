"""Environment settings, the command line entry and deployment files."""
