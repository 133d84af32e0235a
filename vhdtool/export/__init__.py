"""Exports: a point in time as a new file, its manifest, and the proof that it is right."""
