"""What a build will do, as pure functions: no I/O, no clock."""
