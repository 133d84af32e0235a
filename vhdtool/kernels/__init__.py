"""Loops over arrays that NumPy cannot say well: numba in ``bitmap``, its NumPy twins in ``reference``.

Nothing here opens, logs or raises, and nothing here imports anything of ours.
"""
