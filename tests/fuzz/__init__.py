"""Fuzzing: one target per format, scripts for atheris, and a replay of every kept case.

A fuzz input is a short recipe, not an image, so that its mutations hit structures: it names one of the
sound seeds below, patches of structures by their place, and what is repaired afterwards::

    byte 0   which seed
    byte 1   bit 0 leave a pending log out, bit 1 ignore checksums, bit 2 do NOT repair checksums
             (so that an empty recipe reaches past them), bit 3 cut the file, bit 4 make it longer
    then     patches: place, offset (2 bytes, little-endian), length - 1 (low 4 bits), that many bytes

Kept cases name seeds and places by number: add to the lists, never change their order.

A crash is any exception but VhdtoolError, an answer that its twin contradicts, or an input that takes long.
"""
