"""The values that travel: immutable, already checked, without I/O."""
