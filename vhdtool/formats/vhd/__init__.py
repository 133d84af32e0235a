"""VHD, version 1: fixed, dynamic and differencing disks, 512-byte sectors, everything big-endian."""
