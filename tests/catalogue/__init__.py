"""The catalogue: damaged and hostile images, and what vhdtool must say to each.

A row says in a sentence what is wrong with an image, how surgery makes it, and the findings and exit codes
that are promised.  ``rules.py`` lists every rule of the format digests; a test proves that each has a row.
"""
