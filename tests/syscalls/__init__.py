"""System calls that Python lacks, without the rest of the project."""
