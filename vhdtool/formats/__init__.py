"""From bytes to block maps: one package per format, each unaware of the other and of chains."""
