"""The verbs of the command line, one file each: options, and a function that returns plain results."""
