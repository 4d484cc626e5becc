"""The programs: what each takes on the command line, calls, and prints. Heavy imports wait until one really starts."""
