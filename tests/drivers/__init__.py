"""Containers by each storage driver, and the drivers' own trees."""
