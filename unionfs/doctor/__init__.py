"""What this machine allows and what it lacks (`unionfs doctor`)."""
