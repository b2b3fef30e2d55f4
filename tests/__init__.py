"""The tests. Directories mirror the rooms of the project; suites that cross rooms have directories of their own."""
