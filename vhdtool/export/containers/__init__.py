"""What exports are written to: formats as containers, and the files that hold them."""
