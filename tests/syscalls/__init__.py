"""What Python lacks of the system, by itself."""
