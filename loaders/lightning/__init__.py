"""Lightning DataModules and callbacks."""
