"""Sparing the host: limits, priorities, the page cache, and watching what changes."""
