"""Objects to text and to JSON-ready values.  Pure functions: nothing here opens, prints or exits."""
