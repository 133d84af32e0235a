"""VHDX (version 2): dynamic, fixed and differencing disks with a log.

::

    identifier ─ headers ─ log, in memory ─ region tables ─ metadata ─► VhdxImage  image.py
                 header.py  log.py           region.py       metadata.py   ├ table.py  one entry, counts
                                                             locator.py    └ bat.py    arrays (NumPy)

``layout.py`` states shapes, ``chunk.py`` the arithmetic of the BAT, ``write.py`` makes new images.
Source of all rules: [MS-VHDX] "Virtual Hard Disk v2 (VHDX) File Format", revision 8.0 of 23 April 2024.
"""
