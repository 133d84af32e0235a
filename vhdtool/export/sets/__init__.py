"""Every point in time of a tree as one set."""
