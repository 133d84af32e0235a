"""One question per file; README.md says how to run them and how to read what they print."""
